//! One connection whose requests go here and there: each to its own side, in order, over one connection to the app.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    eventually,
    peers::{
        http1::{Answer, Http1App, Http1Caller, request},
        raw::{End, RawApp, Script},
    },
    random::Random,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::stage::{LAPTOP, MINE, OTHER, POD, PORT, SOON, Stage, on, on_stage, side};

const CALLERS: usize = 4;
const TURNS: usize = 60;

/// A request, its method and whether it is to be taken.
type Turn = (Vec<u8>, &'static str, bool);

/// Requests of all sizes, with and without body. Neighbours go to the same side or to the other one.
fn turns(seed: usize) -> Vec<Turn> {
    const SIZES: [usize; 7] = [0, 1, 90, 5_000, 16_384, 70_000, 200_000];
    let mut random = Random::new(u64::try_from(seed).unwrap_or_default());
    let turn = |number| {
        let taken = random.once_in(2);
        let (mark, _) = side(taken);
        let target = format!("/{seed}/{number}");
        let size = random.pick(&SIZES);
        let body = random.bytes(size);
        if body.is_empty() {
            (request("GET", &target, &[mark], b""), "GET", taken)
        } else if random.once_in(2) {
            (request("POST", &target, &[mark], &body), "POST", taken)
        } else {
            let head = request("PUT", &target, &[mark, ("Transfer-Encoding", "chunked")], b"");
            let chunks =
                body.chunks(10_000).flat_map(|c| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat());
            (head.into_iter().chain(chunks).chain(*b"0\r\n\r\n").collect(), "PUT", taken)
        }
    };
    (0..TURNS).map(turn).collect()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b03_each_request_of_a_connection_goes_where_it_belongs() -> Result<()> {
    on_stage("b03_turns", async |stage| {
        let app = Http1App::start(&stage.pod, on(PORT), POD)?;
        let local = Http1App::start(&stage.laptop, on(PORT), LAPTOP)?;
        try_join_all((0..CALLERS).map(async |seed| {
            let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
            for (number, (bytes, method, taken)) in turns(seed).into_iter().enumerate() {
                caller.send(&bytes).await?;
                let answer = caller.response(method).await.with_context(|| format!("request {number}"))?;
                let (_, expected) = side(taken);
                ensure!(answer.answered_by() == Some(expected), "request {number}: by {:?}", answer.answered_by());
                ensure!(answer.request_seen() == bytes, "request {number} did not come as it was sent");
            }
            anyhow::Ok(())
        }))
        .await?;

        for (app, mine) in [(&app, false), (&local, true)] {
            let requests = app.requests();
            let mut connections = BTreeSet::new();
            for seed in 0..CALLERS {
                let sent: Vec<_> = turns(seed).into_iter().filter(|turn| turn.2 == mine).map(|turn| turn.0).collect();
                let target = format!("/{seed}/");
                let got = || requests.iter().filter(|request| request.target.starts_with(&target));
                ensure!(sent.len() > TURNS / 4 && got().map(|request| &request.raw).eq(&sent), "not in order");
                let over: BTreeSet<_> = got().map(|request| request.connection).collect();
                ensure!(over.len() == 1, "the requests of one caller came over {over:?}");
                connections.extend(over);
            }
            ensure!(connections.len() == CALLERS && app.connections().len() == CALLERS, "{:?}", app.connections());
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b03_an_app_may_give_up_a_connection_whose_requests_go_elsewhere() -> Result<()> {
    on_stage("b03_idle", async |stage| {
        // After its first answer it closes the idle connection, as servers do after some time.
        let answer = b"HTTP/1.1 200 OK\r\nX-Answered-By: pod\r\nContent-Length: 0\r\n\r\n";
        let app = RawApp::start(
            &stage.pod,
            on(PORT),
            Script::new().read_until(b"\r\n\r\n").send(answer).hold().half_close(),
        )?;
        let _local = Http1App::start(&stage.laptop, on(PORT), LAPTOP)?;
        let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
        ensure!(caller.get("/1", &[OTHER]).await?.answered_by() == Some(POD));
        ensure!(caller.get("/2", &[MINE]).await?.answered_by() == Some(LAPTOP));
        app.release();
        eventually(SOON, "the app's connection is closed", || async { app.connections().first()?.end }).await?;
        ensure!(caller.get("/3", &[MINE]).await?.answered_by() == Some(LAPTOP));
        ensure!(caller.get("/4", &[OTHER]).await?.answered_by() == Some(POD));
        let seen = app.connections();
        ensure!(seen.len() == 2 && seen[0].end == Some(End::Closed));
        ensure!(seen[0].bytes == request("GET", "/1", &[OTHER], b""));
        ensure!(seen[1].bytes == request("GET", "/4", &[OTHER], b""));
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b04_pipelined_requests_are_answered_in_their_order() -> Result<()> {
    on_stage("pipelined", async |stage| {
        let _app = Http1App::start(&stage.pod, on(PORT), POD)?;
        let _local = Http1App::start(&stage.laptop, on(PORT), LAPTOP)?;
        pipeline(stage, turns(77)).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b04_pipelined_requests_wait_for_nothing_but_their_answers() -> Result<()> {
    on_stage("pipelined_bursts", async |stage| {
        // As many as the agent has under way at once, and all their answers in one piece: what was held back has to go
        // on without anything else happening.
        const BURST: usize = 64;
        let held = Mutex::new((0, Vec::new()));
        let _app = Http1App::with(&stage.pod, on(PORT), POD, move |name, request| {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            held.0 += 1;
            held.1.extend(Answer::identity(name, request).raw);
            Answer::new(if held.0 % BURST == 0 { std::mem::take(&mut held.1) } else { Vec::new() })
        })?;
        let _local = Http1App::start(&stage.laptop, on(PORT), LAPTOP)?;
        let run = |taken| move |number| (request("GET", &format!("/{number}"), &[side(taken).0], b""), "GET", taken);
        let turns = (0..BURST * 3).map(run(false)).chain((0..BURST).map(run(true))).chain((0..BURST).map(run(false)));
        pipeline(stage, turns.collect()).await
    })
    .await
}

/// Sends all requests without waiting for any answer.
async fn pipeline(stage: &Stage, turns: Vec<Turn>) -> Result<()> {
    let stream = stage.caller.connect(stage.app()).await?.into_std()?;
    let mut to = TcpStream::from_std(stream.try_clone()?)?;
    let mut caller = Http1Caller::over(TcpStream::from_std(stream)?)?;
    let all: Vec<u8> = turns.iter().flat_map(|turn| turn.0.iter().copied()).collect();
    let sending = tokio::spawn(async move { to.write_all(&all).await });
    for (number, (bytes, method, taken)) in turns.iter().enumerate() {
        let answer = caller.response(method).await.with_context(|| format!("request {number}"))?;
        ensure!(answer.answered_by() == Some(side(*taken).1), "request {number}: by {:?}", answer.answered_by());
        ensure!(answer.request_seen() == bytes, "request {number} did not come as it was sent");
    }
    Ok(sending.await??)
}
