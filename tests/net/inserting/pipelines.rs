//! f03: requests that do not wait for answers, before, behind and around one that fits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    eventually,
    peers::{
        http1::{Http1Caller, request},
        raw::{RawApp, Script},
    },
};

use crate::{
    OURS, SOON, Scene, THEIRS, any, ask, play,
    programs::echo,
    slow::{Ask, pipeline, slow_app},
};

const SLOW: u16 = 8081;

/// `t` is theirs, `o` ours; a capital letter has a body of some packets.
const PIPELINES: &[&str] = &[
    "to",
    "ot",
    "tot",
    "too",
    "oot",
    "totototo",
    "tttttto",
    "otttttt",
    "To",
    "tO",
    "oT",
    "Ot",
    "TOTO",
    "tToOtT",
    "TTTTTTTO",
    "tttttttttttttttttttto",
    "ttttttttttttttttttttttttttttttttttttttto",
];

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_pipelined_before_behind_and_around_one_that_fits() -> Result<()> {
    play(Scene::set("f03_pipelined", &[]).await?, async |scene| {
        for pattern in PIPELINES {
            for native in [0, 1, 4] {
                for at_once in [true, false] {
                    let what = || format!("{pattern}, behind {native}, in one piece: {at_once}");
                    one(scene, pattern, native, at_once).await.with_context(what)?;
                }
            }
        }
        scene.ensure_inserted(u64::try_from(PIPELINES.len() * 6)?).await
    })
    .await
}

async fn one(scene: &Scene, pattern: &str, native: usize, at_once: bool) -> Result<()> {
    let mut caller = scene.connect().await?;
    for _ in 0..native {
        ask(&mut caller, THEIRS).await?;
    }
    let asks = pattern.chars().enumerate().map(|(number, kind)| {
        let (header, by) = if kind.eq_ignore_ascii_case(&'o') { OURS } else { THEIRS };
        let body = vec![b'b'; if kind.is_uppercase() { 9_000 } else { 0 }];
        (request("POST", &format!("/{number}"), &[header], &body), by)
    });
    let asks: Vec<_> = asks.collect();
    if at_once {
        caller.send(&asks.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>()).await?;
    } else {
        for (bytes, _) in &asks {
            caller.send(bytes).await?;
        }
    }
    for (number, (bytes, by)) in asks.iter().enumerate() {
        let answer = tokio::time::timeout(SOON, caller.response("POST")).await;
        let answer =
            answer.with_context(|| format!("no answer {number}"))?.with_context(|| format!("answer {number}"))?;
        ensure!(answer.answered_by() == Some(by), "answer {number}: by {:?} instead of {by}", answer.answered_by());
        ensure!(answer.request_seen() == bytes, "answer {number}: that of another request");
    }
    for turn in [THEIRS, OURS, THEIRS] {
        ask(&mut caller, turn).await.context("behind the pipeline")?;
    }
    Ok(())
}

/// Where answers are owed, the order is the app's to keep.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_pipelined_behind_slow_answers() -> Result<()> {
    const CALLERS: usize = 6;
    const ROUNDS: usize = 5;
    const REQUESTS: usize = 20;
    play(Scene::set("f03_slow", &[SLOW]).await?, async |scene| {
        let _apps = [slow_app(&scene.stage.pod, SLOW)?, slow_app(&scene.stage.laptop, SLOW)?];
        let run = |caller: usize| {
            let asks = (0..REQUESTS).map(|number| {
                // The first ones are the app's; then all kinds meet all kinds.
                let taken = number > 2 && ((number + caller).is_multiple_of(5) || number % 7 == 2);
                let slowness = [0, 0, 25, 5, 0][(number * 3 + caller) % 5];
                let (method, size) =
                    [("GET", 0), ("POST", 60_000), ("HEAD", 0), ("PUT", 10)][(number * 5 + caller) % 4];
                Ask::new(number, method, taken, slowness, size)
            });
            asks.collect::<Result<Vec<_>>>()
        };
        let (from, to) = (&scene.stage.caller, scene.stage.pod.at(SLOW));
        for round in 0..ROUNDS {
            let runs = (0..CALLERS).map(|caller| run(caller + round)).collect::<Result<Vec<_>>>()?;
            let all = try_join_all(runs.iter().map(|asks| pipeline(from, to, asks)));
            tokio::time::timeout(SOON * 2, all).await.with_context(|| format!("round {round} hangs"))??;
        }
        scene.ensure_inserted(1).await
    })
    .await
}

/// One that fits comes while the app thinks about the one before it.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_one_that_fits_waits_for_the_answer_that_is_owed_before_it() -> Result<()> {
    play(Scene::set("f03_owed", &[SLOW]).await?, async |scene| {
        let _apps = [slow_app(&scene.stage.pod, SLOW)?, slow_app(&scene.stage.laptop, SLOW)?];
        let (from, to) = (&scene.stage.caller, scene.stage.pod.at(SLOW));
        for slowness in [1, 5, 50, 300] {
            for (method, size) in [("GET", 0), ("HEAD", 0), ("POST", 20_000)] {
                let mut caller = Http1Caller::connect(from, to).await?;
                let slow = ("x-slowness", slowness.to_string());
                let slow = (slow.0, slow.1.as_str());
                let body = vec![b'b'; size];
                caller.send(&request(method, "/first", &[THEIRS.0, slow], &body)).await?;
                // The app has it now, and nobody is in between.
                tokio::time::sleep(Duration::from_millis(slowness / 2)).await;
                caller.send(&request("GET", "/second", &[OURS.0], b"")).await?;
                caller.send(&request("GET", "/third", &[THEIRS.0], b"")).await?;
                for (method, target, by) in
                    [(method, "/first", "pod"), ("GET", "/second", "laptop"), ("GET", "/third", "pod")]
                {
                    let what = || format!("{method} {target}, slow by {slowness} ms");
                    let answer = tokio::time::timeout(SOON, caller.response(method)).await.with_context(what)?;
                    let answer = answer.with_context(what)?;
                    ensure!(answer.answered_by() == Some(by), "{}: by {:?}", what(), answer.answered_by());
                    ensure!(answer.header("x-target") == Some(target), "{}: another's answer", what());
                }
            }
        }
        scene.ensure_inserted(12).await
    })
    .await
}

/// Answers of an app that is alone, in one packet, and behind them one that fits: none of them is owed any more.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_one_that_fits_behind_pipelined_answers_of_every_framing() -> Result<()> {
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\nx-answered-by: pod\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    const SIZED: &str = "HTTP/1.1 200 OK\r\nx-answered-by: pod\r\ncontent-length: 2\r\n\r\nok";
    const EMPTY: &str = "HTTP/1.1 200 OK\r\nx-answered-by: pod\r\ncontent-length: 0\r\n\r\n";
    let framings = [
        ("sized", [SIZED, SIZED, SIZED]),
        ("chunked", [CHUNKED, CHUNKED, CHUNKED]),
        ("chunked last", [SIZED, EMPTY, CHUNKED]),
        ("chunked, then sized", [CHUNKED, SIZED, SIZED]),
        ("chunked, then empty", [CHUNKED, EMPTY, EMPTY]),
    ];
    let local = b"HTTP/1.1 200 OK\r\nx-answered-by: laptop\r\ncontent-length: 0\r\n\r\n";
    let mut wrong = Vec::new();
    for (number, (what, answers)) in framings.into_iter().enumerate() {
        let scene = Scene::set(&format!("f03_framing{number}"), &[SLOW]).await?;
        let script = Script::new().read_until(b"/third HTTP/1.1\r\nHost: app.test\r\nx-user: bertil\r\n\r\n");
        let _app = RawApp::start(&scene.stage.pod, any(SLOW), script.send(answers.concat().as_bytes()))?;
        let _local =
            RawApp::start(&scene.stage.laptop, any(SLOW), Script::new().read_until(b"\r\n\r\n").send(local).again())?;
        let mut caller = Http1Caller::connect(&scene.stage.caller, scene.stage.pod.at(SLOW)).await?;
        let three = ["/first", "/second", "/third"].map(|target| request("GET", target, &[THEIRS.0], b"")).concat();
        caller.send(&three).await?;
        for _ in 0..3 {
            ensure!(caller.response("GET").await?.answered_by() == Some("pod"));
        }
        caller.send(&request("GET", "/fourth", &[OURS.0], b"")).await?;
        match tokio::time::timeout(Duration::from_secs(2), caller.response("GET")).await {
            Ok(Ok(answer)) if answer.answered_by() == Some("laptop") => {}
            // The app here says nothing to a fourth one.
            other => {
                wrong.push(format!("{what}: {other:?}, {:?}, let go {:?}", scene.look().await?, scene.let_go().await?));
            }
        }
        scene.finish()?;
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// The same without pipelining, for bodies of many sizes in chunks: one request, all of its answer, and one that fits.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_one_that_fits_behind_a_chunked_answer() -> Result<()> {
    play(Scene::with("f03_chunked", &[], echo).await?, async |scene| {
        for size in [1, 3, 1_447, 1_449, 2_895, 10_001, 14_001, 20_001, 65_001, 65_537, 100_001, 150_001, 199_999] {
            let what = || format!("a chunked answer of {size} bytes");
            let mut caller = scene.connect().await?;
            let body = vec![b'b'; size];
            for (header, by) in [THEIRS, THEIRS, OURS, THEIRS, OURS] {
                caller.send(&request("POST", "/", &[header], &body)).await?;
                let answer = tokio::time::timeout(SOON, caller.response("POST")).await.with_context(what)?;
                let answer = answer.with_context(what)?;
                ensure!(answer.answered_by() == Some(by), "{}: by {:?} instead of {by}", what(), answer.answered_by());
                ensure!(answer.body == body, "{}: another body", what());
            }
        }
        scene.ensure_inserted(13).await
    })
    .await
}

/// An answer pauses behind a whole chunk, as events that a server sends do: the agent can join it there.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_one_that_fits_while_an_answer_pauses_between_its_chunks() -> Result<()> {
    const BEGIN: &str = "HTTP/1.1 200 OK\r\nx-answered-by: pod\r\ntransfer-encoding: chunked\r\n\r\n";
    // How much of the answer there is before it pauses: only its head, or chunks.
    let pauses = [vec![BEGIN], vec![BEGIN, "5\r\nfirst\r\n"], vec![BEGIN, "5\r\nfirst\r\n", "6\r\nsecond\r\n"]];
    play(Scene::set("f03_between", &[SLOW, SLOW + 1, SLOW + 2]).await?, async |scene| {
        let local = b"HTTP/1.1 200 OK\r\nx-answered-by: laptop\r\ncontent-length: 0\r\n\r\n";
        let answers = Script::new().read_until(b"\r\n\r\n").send(local).again();
        for ((number, port), pieces) in (1..).zip(SLOW..).zip(&pauses) {
            let _local = RawApp::start(&scene.stage.laptop, any(port), answers.clone())?;
            let script = pieces.iter().fold(Script::new().read_until(b"\r\n\r\n"), |script, piece| {
                // Each in a packet of its own.
                script.send(piece.as_bytes())
            });
            let script = script.hold().send(b"4\r\nlast\r\n0\r\n\r\n");
            let app = RawApp::start(&scene.stage.pod, any(port), script)?;
            let mut caller = Http1Caller::connect(&scene.stage.caller, scene.stage.pod.at(port)).await?;
            caller.send(&request("GET", "/events", &[THEIRS.0], b"")).await?;
            let begun = pieces.iter().map(|piece| piece.len()).sum::<usize>();
            eventually(SOON, "the answer pauses", || async {
                ensure!(app.progress(0).sent == begun, "{:?}", app.progress(0));
                Ok(())
            })
            .await?;
            caller.send(&request("GET", "/", &[OURS.0], b"")).await?;
            eventually(SOON, "the agent joins it", || async {
                ensure!(scene.insertions().await? == number, "behind {pieces:?}: {:?}", scene.let_go().await?);
                Ok(())
            })
            .await?;
            app.release();
            for by in ["pod", "laptop"] {
                let answer = tokio::time::timeout(SOON, caller.response("GET")).await;
                let answer = answer.with_context(|| format!("no answer of the {by} behind {pieces:?}"))??;
                ensure!(answer.answered_by() == Some(by), "by {:?} instead of {by}", answer.answered_by());
                ensure!(by == "laptop" || answer.body.ends_with(b"last"), "cut: {:?}", answer.body);
            }
            drop(caller);
            app.ended(0, SOON).await?;
        }
        scene.ensure_inserted(pauses.len() as u64).await
    })
    .await
}
