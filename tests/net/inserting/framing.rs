//! f03: requests in every shape, of either side, on connections that the app has served alone until then.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::peers::http1::{Answer, Http1Caller, Request, Then, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{OURS, SOON, Scene, THEIRS, ask, play};

/// Between the pieces of a request: packets of their own.
const PAUSE: Duration = Duration::from_millis(2);

const SIDES: [((&str, &str), &str); 2] = [THEIRS, OURS];

/// Sends a request in pieces, and sees that the right side got it whole and answers. `expects`: 100 comes in between the
/// first and the second.
async fn exchange(caller: &mut Http1Caller, pieces: &[&[u8]], method: &str, by: &str, expects: bool) -> Result<()> {
    for (number, piece) in pieces.iter().enumerate() {
        if number == 1 && expects {
            let interim = caller.response(method).await.context("100")?;
            ensure!(interim.status == 100, "{interim:?} instead of 100");
        } else if number > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        caller.send(piece).await?;
    }
    let answer = tokio::time::timeout(SOON, caller.response(method)).await.context("no answer")??;
    ensure!(answer.answered_by() == Some(by), "by {:?} instead of {by}", answer.answered_by());
    let whole = pieces.concat();
    let seen = answer.request_seen();
    ensure!(method == "HEAD" || seen == whole, "it came as {} bytes of {}", seen.len(), whole.len());
    Ok(())
}

fn head(method: &str, (name, value): (&str, &str), more: &str) -> Vec<u8> {
    format!("{method} / HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_heads_in_two_packets() -> Result<()> {
    play(Scene::set("f03_two", &[]).await?, async |scene| {
        let mut connections = 0;
        for (header, by) in SIDES {
            let whole = head("GET", header, "");
            for at in 1..whole.len() {
                connections += 1;
                let mut caller = scene.connect().await?;
                // Every other time it is the connection's first request.
                if at % 2 == 0 {
                    ask(&mut caller, THEIRS).await?;
                }
                let (a, b) = whole.split_at(at);
                exchange(&mut caller, &[a, b], "GET", by, false)
                    .await
                    .with_context(|| format!("{by}, split at {at}"))?;
                ask(&mut caller, THEIRS).await.with_context(|| format!("{by}, behind a split at {at}"))?;
                ask(&mut caller, OURS).await.with_context(|| format!("{by}, behind a split at {at}"))?;
            }
        }
        scene.ensure_inserted(connections).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_heads_byte_by_byte() -> Result<()> {
    play(Scene::set("f03_bytes", &[]).await?, async |scene| {
        for (header, by) in SIDES {
            let whole = head("GET", header, "");
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            for native in [0, 1, 3] {
                let mut caller = scene.connect().await?;
                for _ in 0..native {
                    ask(&mut caller, THEIRS).await?;
                }
                let what = || format!("{by}, behind {native} native requests");
                exchange(&mut caller, &bytes, "GET", by, false).await.with_context(what)?;
                exchange(&mut caller, &bytes, "GET", by, false).await.with_context(what)?;
                ask(&mut caller, THEIRS).await.with_context(what)?;
            }
        }
        scene.ensure_inserted(6).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_heads_of_8_and_64_kib() -> Result<()> {
    play(Scene::set("f03_large", &[]).await?, async |scene| {
        for lines in [8, 63] {
            let filler: String = (0..lines).map(|n| format!("X-Filler-{n:02}: {}\r\n", "f".repeat(1010))).collect();
            for ((name, value), by) in SIDES {
                let behind = format!("GET / HTTP/1.1\r\nHost: app.test\r\n{filler}{name}: {value}\r\n\r\n");
                let before = format!("GET / HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\n{filler}\r\n");
                for (place, whole) in [("last", behind), ("first", before)] {
                    for native in [0, 2] {
                        let mut caller = scene.connect().await?;
                        for _ in 0..native {
                            ask(&mut caller, THEIRS).await?;
                        }
                        let what = || format!("{by}, {lines} KiB, the header {place}, behind {native}");
                        exchange(&mut caller, &[whole.as_bytes()], "GET", by, false).await.with_context(what)?;
                        let (a, b) = whole.as_bytes().split_at(whole.len() / 3);
                        exchange(&mut caller, &[a, b], "GET", by, false).await.with_context(what)?;
                        ask(&mut caller, THEIRS).await.with_context(what)?;
                    }
                }
            }
        }
        scene.ensure_inserted(8).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_lengths_chunks_expect_and_head() -> Result<()> {
    play(Scene::set("f03_shapes", &[]).await?, async |scene| {
        let shapes = |header| {
            let chunks = &b"5\r\nhello\r\n3;x=y\r\n wo\r\n"[..];
            let last = &b"3\r\nrld\r\n0\r\nX-Sum: 11\r\n\r\n"[..];
            let chunked = head("POST", header, "Transfer-Encoding: chunked\r\n");
            let sized = head("PUT", header, "Content-Length: 11\r\n");
            let expecting = head("PUT", header, "Expect: 100-continue\r\nContent-Length: 11\r\n");
            let large = request("POST", "/", &[header], &vec![b'x'; 100_000]);
            let (large_head, large_body) = large.split_at(90);
            let owned = |pieces: &[&[u8]]| pieces.iter().map(|piece| piece.to_vec()).collect::<Vec<_>>();
            [
                ("chunked at once", "POST", owned(&[&[&chunked[..], chunks, last].concat()]), false),
                ("chunked in pieces", "POST", owned(&[&chunked, chunks, last]), false),
                ("a body at once", "PUT", owned(&[&[&sized[..], b"hello world"].concat()]), false),
                ("a body in pieces", "PUT", owned(&[&sized, b"hello", b" world"]), false),
                ("Expect", "PUT", owned(&[&expecting, b"hello world"]), true),
                ("HEAD", "HEAD", owned(&[&head("HEAD", header, "")]), false),
                ("100 000 bytes", "POST", owned(&[&large]), false),
                ("100 000 bytes in pieces", "POST", owned(&[large_head, large_body]), false),
            ]
        };
        // Each on a connection of its own, between requests that are the app's.
        for (header, by) in SIDES {
            for (what, method, pieces, expects) in shapes(header) {
                let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
                let mut caller = scene.connect().await?;
                for turn in 0..3 {
                    let what = || format!("{what}, {by}, turn {turn}");
                    ask(&mut caller, THEIRS).await.with_context(what)?;
                    exchange(&mut caller, &pieces, method, by, expects).await.with_context(what)?;
                    // Time to leave, or none.
                    tokio::time::sleep(Duration::from_millis(if turn == 1 { 20 } else { 0 })).await;
                    ask(&mut caller, THEIRS).await.with_context(what)?;
                }
                ask(&mut caller, OURS).await.context(what)?;
            }
        }
        // All of them over one.
        let mut caller = scene.connect().await?;
        for (first, second) in [(THEIRS, OURS), (OURS, THEIRS), (THEIRS, THEIRS), (OURS, OURS)] {
            for (a, b) in shapes(first.0).into_iter().zip(shapes(second.0)) {
                for ((what, method, pieces, expects), by) in [(a, first.1), (b, second.1)] {
                    let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
                    let what = || format!("{what}, {by}, among all");
                    exchange(&mut caller, &pieces, method, by, expects).await.with_context(what)?;
                }
            }
        }
        scene.ensure_inserted(17).await
    })
    .await
}

/// Answers an upgrade with 101, and sends everything back from then on.
fn agrees(name: &str, request: &Request) -> Answer {
    if request.header("upgrade").is_none() {
        return Answer::identity(name, request);
    }
    let head = format!("HTTP/1.1 101 Go on\r\nConnection: Upgrade\r\nUpgrade: echo\r\nx-answered-by: {name}\r\n\r\n");
    Answer { raw: head.into_bytes(), then: Then::Echo }
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_upgrades() -> Result<()> {
    play(Scene::with("f03_upgrade", &[], agrees).await?, async |scene| {
        for (header, by) in SIDES {
            for native in [0, 1, 5] {
                for early in [false, true] {
                    let what = || format!("{by}, behind {native}, early {early}");
                    let mut caller = scene.connect().await?;
                    for _ in 0..native {
                        ask(&mut caller, THEIRS).await.with_context(what)?;
                    }
                    let other = if header == OURS.0 { THEIRS.0 } else { OURS.0 };
                    // What would be a request of the other side, anywhere else.
                    let hidden = request("GET", "/hidden", &[other], b"");
                    let mut all = head("GET", header, "Connection: Upgrade\r\nUpgrade: echo\r\n");
                    if early {
                        all.extend(&hidden);
                    }
                    caller.send(&all).await?;
                    let answer = caller.response("GET").await.with_context(what)?;
                    ensure!(answer.status == 101 && answer.answered_by() == Some(by), "{}: {answer:?}", what());
                    let (mut stream, mut got) = caller.into_parts();
                    let mut sent = if early { hidden.clone() } else { Vec::new() };
                    for piece in [&hidden[..], &[0; 50_000], &hidden] {
                        stream.write_all(piece).await?;
                        sent.extend(piece);
                        let mut back = vec![0; sent.len() - got.len()];
                        tokio::time::timeout(SOON, stream.read_exact(&mut back)).await.with_context(what)??;
                        got.extend(back);
                        ensure!(got == sent, "{}: other bytes came back", what());
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    stream.shutdown().await?;
                    let mut rest = Vec::new();
                    tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.with_context(what)??;
                    ensure!(rest.is_empty(), "{}: more", what());
                }
            }
        }
        ensure!(scene.app.requests().iter().all(|request| request.header("x-user") != Some(OURS.0.1)), "at the app");
        scene.ensure_inserted(12).await
    })
    .await
}
