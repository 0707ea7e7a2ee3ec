//! b04: requests that are sent without waiting for answers. Each is answered by its own side, in order, however slow any
//! of them is.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use sluice_tests::{
    Host,
    peers::{
        ANSWERED_BY,
        http1::{Answer, Http1App, Http1Caller, request},
        pattern,
    },
    stage::{MATCHING, OTHER},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use crate::{Ruled, any};

const PORT: u16 = 8081;

/// How many milliseconds the app thinks about a request.
const SLOWNESS: &str = "x-slowness";

/// A request, and who is to answer it.
struct Ask {
    bytes: Vec<u8>,
    method: &'static str,
    by: &'static str,
    body: Vec<u8>,
}

// === impl Ask ===

impl Ask {
    fn new(number: usize, method: &'static str, taken: bool, slowness: usize, size: u64) -> Result<Self> {
        let (header, by) = if taken { (MATCHING, "laptop") } else { (OTHER, "pod") };
        let body = pattern::body(u64::try_from(number)?, size);
        let (slowness, target) = (slowness.to_string(), format!("/{number}"));
        Ok(Self { bytes: request(method, &target, &[header, (SLOWNESS, &slowness)], &body), method, by, body })
    }
}

/// A server that takes its time for each request, and sends its body back. It ends when this is dropped.
fn slow_app(host: &Host, port: u16) -> Result<AbortOnDropHandle<()>> {
    let listener = host.listen(any(port))?;
    let name = host.name().to_owned();
    let task = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let name = name.clone();
            let answer = service_fn(move |request| slowly(name.clone(), request));
            // Where a connection breaks the caller sees it.
            tasks.spawn(async move {
                http1::Builder::new().pipeline_flush(true).serve_connection(TokioIo::new(stream), answer).await.ok()
            });
        }
    });
    Ok(AbortOnDropHandle::new(task))
}

async fn slowly(name: String, request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let slowness = request.headers().get(SLOWNESS).and_then(|value| value.to_str().ok()?.parse().ok());
    let target = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(slowness.unwrap_or_default())).await;
    let answer = hyper::Response::builder().header(ANSWERED_BY, name).header("x-target", target).body(Full::new(body));
    Ok(answer.unwrap_or_default())
}

/// Sends all requests at once, and reads the answers.
async fn pipeline(from: &Host, to: SocketAddr, asks: &[Ask]) -> Result<()> {
    let stream = from.connect(to).await?.into_std()?;
    let mut sender = TcpStream::from_std(stream.try_clone()?)?;
    let mut caller = Http1Caller::over(TcpStream::from_std(stream)?)?;
    let all = asks.iter().map(|ask| &ask.bytes[..]).collect::<Vec<_>>().concat();
    let sending = tokio::spawn(async move { sender.write_all(&all).await });
    for (number, ask) in asks.iter().enumerate() {
        let answer = caller.response(ask.method).await.with_context(|| format!("answer {number}"))?;
        ensure!(answer.answered_by() == Some(ask.by), "answer {number}: by {:?}, not {}", answer.answered_by(), ask.by);
        ensure!(answer.header("x-target") == Some(&format!("/{number}")), "answer {number} is that of another request");
        ensure!(answer.body == ask.body || ask.method == "HEAD", "answer {number}: another body");
    }
    Ok(sending.await??)
}

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
