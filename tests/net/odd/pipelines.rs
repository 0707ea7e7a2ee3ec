//! b04: requests that are sent without waiting for answers. Each is answered by its own side, in order, however slow any
//! of them is.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    peers::http1::{Answer, Http1App, Http1Caller, request},
    stage::{MATCHING, OTHER},
};

use crate::{
    Ruled, any,
    slow::{Ask, pipeline, slow_app},
};

const PORT: u16 = 8081;

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b04_pipelined_requests_are_answered_in_order_however_slow_each_is() -> Result<()> {
    const CALLERS: usize = 4;
    const REQUESTS: usize = 30;
    let ruled = Ruled::set("b04_slow", &[PORT]).await?;
    let _apps = [slow_app(&ruled.stage.pod, PORT)?, slow_app(&ruled.stage.laptop, PORT)?];
    let run = |caller: usize| {
        let asks = (0..REQUESTS).map(|number| {
            // Numbers without a common pattern: all kinds meet all kinds.
            let taken = (number + caller).is_multiple_of(3) || number % 7 == 2;
            let slowness = [0, 0, 40, 5, 0][(number * 3 + caller) % 5];
            let (method, size) = [("GET", 0), ("POST", 90_000), ("HEAD", 0), ("PUT", 10)][(number * 5 + caller) % 4];
            Ask::new(number, method, taken, slowness, size)
        });
        asks.collect::<Result<Vec<_>>>()
    };
    let runs = (0..CALLERS).map(run).collect::<Result<Vec<_>>>()?;
    let (from, to) = (&ruled.stage.caller, ruled.stage.pod.at(PORT));
    try_join_all(runs.iter().map(|asks| pipeline(from, to, asks))).await?;
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b04_an_answer_waits_for_those_before_it_and_for_nothing_else() -> Result<()> {
    let ruled = Ruled::set("b04_waits", &[PORT]).await?;
    let respond = |name: &str, request: &sluice_tests::peers::http1::Request| Answer::identity(name, request);
    let app = Http1App::with(&ruled.stage.pod, any(PORT), "pod", respond)?;
    let local = Http1App::with(&ruled.stage.laptop, any(PORT), "laptop", respond)?;
    let mut caller = Http1Caller::connect(&ruled.stage.caller, ruled.stage.pod.at(PORT)).await?;
    // The body of the first is not all there: neither side may answer what follows it, and nothing follows it yet.
    let posts = [OTHER, MATCHING].map(|header| request("POST", "/", &[header], b"0123456789"));
    for (post, by) in posts.iter().zip(["pod", "laptop"]) {
        let (begun, rest) = post.split_at(post.len() - 5);
        caller.send(begun).await?;
        ruled.works().await?;
        ensure!(app.requests().len() + local.requests().len() == 0 || by == "laptop", "answered too early");
        let behind = [request("GET", "/a", &[OTHER], b""), request("GET", "/b", &[MATCHING], b"")].concat();
        caller.send(&[rest, &behind].concat()).await?;
        for (by, bytes) in [(by, Some(post)), ("pod", None), ("laptop", None)] {
            let answer = caller.response("GET").await?;
            ensure!(answer.answered_by() == Some(by), "by {:?} instead of {by}", answer.answered_by());
            ensure!(bytes.is_none_or(|bytes| answer.request_seen() == bytes), "another request");
        }
    }
    ruled.finish()
}
