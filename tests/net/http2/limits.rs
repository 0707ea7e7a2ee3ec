//! What a greedy or hostile HTTP/2 caller gets: an answer or an end, and never other callers' time or the agent's memory.

use std::{io::ErrorKind, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use sluice_tests::{
    Agent, Client, Host,
    peers::http2::{Http2App, Http2Caller},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::{PORT, SOON, any};

/// What a flood may add to the agent's memory.
const ROOM_KIB: u64 = 24 << 10;

/// Most bytes of one flood.
const FLOOD: usize = 24 << 20;

/// Frame types and flags (RFC 9113 §6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET http://app/` in HPACK (RFC 7541): three entries of the static table, and `:authority`.
const REQUEST: &[u8] = b"\x82\x86\x84\x41\x03app";

/// How a caller that floods was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stopped {
    /// The agent has closed the connection.
    Closed,
    /// It does not read any more until its own answers are read.
    HeldBack,
    /// Not at all.
    Never,
}

/// Apps, agent and client, and a caller whose requests must go on whatever others do.
struct Scene {
    stage: Stage,
    agent: Agent,
    caller: Http2Caller,
    _apps: [Http2App; 2],
    _client: Client,
}

// === impl Scene ===

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let stage = Stage::new(name)?;
        let apps =
            [Http2App::start(&stage.pod, any(PORT), "pod")?, Http2App::start(&stage.laptop, any(PORT), "laptop")?];
        let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("limits", &[PORT])])).await?;
        let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
        let caller = Http2Caller::connect(&stage.caller, stage.pod.at(PORT)).await?;
        let scene = Self { stage, agent, caller, _apps: apps, _client: client };
        scene.serves_others().await?;
        Ok(scene)
    }

    /// One request of each kind, answered as if nothing else was going on.
    async fn serves_others(&self) -> Result<()> {
        for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
            let answer = tokio::time::timeout(SOON, self.caller.get("/", &[header])).await.context("no answer")??;
            ensure!(answer.answered_by() == Some(by), "{answer:?} instead of {by}");
        }
        Ok(())
    }

    /// Floods the agent with `unit`s, each made for the next stream, while somebody else's requests are answered.
    async fn flood(&self, reads: bool, unit: impl Fn(u32) -> Vec<u8>) -> Result<Stopped> {
        let before = self.agent.process().rss_kib()?;
        let stream = opened(&self.stage.caller, &self.stage).await?;
        let (stopped, served) = tokio::join!(pour(stream, reads, unit), async {
            for _ in 0..20 {
                self.serves_others().await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        served?;
        self.serves_others().await?;
        let after = self.agent.process().rss_kib()?;
        ensure!(after < before + ROOM_KIB, "the agent has grown from {before} to {after} KiB");
        stopped
    }
}

/// A connection that has sent its preface and empty settings.
async fn opened(from: &Host, stage: &Stage) -> Result<TcpStream> {
    let mut stream = from.connect(stage.pod.at(PORT)).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).await?;
    Ok(stream)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    // Far less than the three bytes can say.
    let length = payload.len().to_be_bytes();
    [&length[length.len() - 3..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends units until the agent puts an end to it.
async fn pour(stream: TcpStream, reads: bool, unit: impl Fn(u32) -> Vec<u8>) -> Result<Stopped> {
    let (mut from, mut to) = stream.into_split();
    let mut reading = JoinSet::new();
    if reads {
        reading.spawn(async move { while matches!(from.read(&mut [0; 4096]).await, Ok(1..)) {} });
    } else {
        reading.spawn(async move {
            let _kept = from;
            std::future::pending::<()>().await;
        });
    }
    let (mut sent, mut number) = (0, 1);
    while sent < FLOOD {
        let mut batch = Vec::new();
        while batch.len() < 16 << 10 {
            batch.extend(unit(number));
            number += 2;
        }
        match tokio::time::timeout(Duration::from_secs(2), to.write_all(&batch)).await {
            Ok(Ok(())) => sent += batch.len(),
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(Stopped::Closed);
            }
            Ok(Err(error)) => bail!(error),
            Err(_) => return Ok(Stopped::HeldBack),
        }
    }
    Ok(Stopped::Never)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_head_that_never_ends_ends_the_connection() -> Result<()> {
    let scene = Box::pin(Scene::new("h2_continuation")).await?;
    // Published as CVE-2024-27316 and others: a head in more and more pieces that is never said to be complete.
    let piece = |number| match number {
        1 => frame(HEADERS, END_STREAM, 1, REQUEST),
        _ => frame(CONTINUATION, 0, 1, b"\x40\x01a\x7f\x00"),
    };
    ensure!(scene.flood(true, piece).await? == Stopped::Closed, "it goes on for ever");
    // The same with pieces that say nothing.
    let empty = |number| match number {
        1 => frame(HEADERS, END_STREAM, 1, REQUEST),
        _ => frame(CONTINUATION, 0, 1, b""),
    };
    ensure!(scene.flood(true, empty).await? == Stopped::Closed, "it goes on for ever");
    scene.stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn requests_that_are_reset_as_fast_as_they_come_take_nothing_from_others() -> Result<()> {
    let scene = Box::pin(Scene::new("h2_reset")).await?;
    // Published as CVE-2023-44487.
    let reset = |number| {
        let request = frame(HEADERS, END_STREAM | END_HEADERS, number, REQUEST);
        [request, frame(RST_STREAM, 0, number, &8_u32.to_be_bytes())].concat()
    };
    scene.flood(true, reset).await?;
    scene.stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn callers_that_want_answers_and_do_not_read_them_are_held_back() -> Result<()> {
    let scene = Box::pin(Scene::new("h2_ping")).await?;
    for unit in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, b"")] {
        let stopped = scene.flood(false, |_| unit.clone()).await?;
        ensure!(stopped != Stopped::Never, "{FLOOD} bytes were taken");
        // One who reads is served for as long as it likes.
        scene.flood(true, |_| unit.clone()).await?;
    }
    scene.stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn heads_up_to_the_limit_pass_and_larger_ones_are_refused_one_by_one() -> Result<()> {
    let scene = Box::pin(Scene::new("h2_heads")).await?;
    let value = |length: usize| "v".repeat(length);
    // A real library on both sides: each has a limit of its own, which here is above the agent's.
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(1 << 20);
    let stream = scene.stage.caller.connect(scene.stage.pod.at(PORT)).await?;
    let caller = Http2Caller::with(stream, &builder).await?;
    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
        let fits = [header, ("x-large", &value(12 << 10))];
        let answer = caller.get("/", &fits).await?;
        ensure!(answer.answered_by() == Some(by), "{} by {:?}", answer.status, answer.answered_by());
        let large: Vec<_> = (0..16).map(|_| value(12 << 10)).collect();
        let large: Vec<_> = large.iter().map(|value| ("x-large", value.as_str())).chain([header]).collect();
        let refused = caller.get("/", &large).await?;
        ensure!(refused.status == 431 && refused.answered_by().is_none(), "{}", refused.status);
        let again = caller.get("/", &[header]).await?;
        ensure!(again.answered_by() == Some(by), "the connection is the worse for it");
    }
    scene.stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn more_requests_than_the_app_takes_at_once_wait_and_are_all_served() -> Result<()> {
    /// What the app announces; more at once it refuses.
    const AT_ONCE: u32 = 8;
    let stage = Stage::new("h2_streams")?;
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(AT_ONCE);
    let _apps = [
        Http2App::with(&stage.pod, any(PORT), "pod", settings.clone())?,
        Http2App::with(&stage.laptop, any(PORT), "laptop", settings)?,
    ];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("limits", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let caller = Http2Caller::connect(&stage.caller, stage.pod.at(PORT)).await?;
    // What the local server takes is known with its first answer, and until then what it refuses is refused.
    ensure!(caller.get("/", &[MATCHING]).await?.answered_by() == Some("laptop"));
    let mut requests = JoinSet::new();
    let began = Instant::now();
    for number in 0..600 {
        let caller = caller.clone();
        let (header, by) = if number % 2 == 0 { (MATCHING, "laptop") } else { (OTHER, "pod") };
        requests.spawn(async move {
            let answer = caller.call("POST", "/", &[header], vec![b'x'; 1000].into()).await?;
            ensure!(answer.answered_by() == Some(by) && answer.content_seen().len() == 1000, "{answer:?}");
            Ok(())
        });
    }
    while let Some(request) = requests.join_next().await {
        request?.with_context(|| format!("after {:?}", began.elapsed()))?;
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_agent_that_stops_says_goodbye_and_finishes_what_it_has() -> Result<()> {
    let scene = Box::pin(Scene::new("h2_goodbye")).await?;
    let mut open = Vec::new();
    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
        let request = http::Request::post("http://app.test/").header(header.0, header.1).body(())?;
        open.push((scene.caller.open(request, false).await?, by));
    }
    // Its answers begin when it is complete.
    scene.serves_others().await?;
    let (ended, finished) = tokio::join!(scene.agent.terminate(), async {
        // Said as soon as it stops: no further request begins on this connection.
        let goodbye = async {
            while scene.caller.get("/", &[OTHER]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, goodbye).await.context("new requests are taken for ever")?;
        for ((answer, mut body), by) in open {
            body.send_data("late".into(), true)?;
            let answer = tokio::time::timeout(SOON, answer).await.context("no answer")??;
            ensure!(answer.headers().get("x-answered-by").is_some_and(|who| who == by), "{answer:?}");
            let (content, trailers) = sluice_tests::peers::http2::read_all(&mut answer.into_body()).await?;
            ensure!(content.ends_with(b"late") && trailers.is_some(), "{content:?}");
        }
        Ok::<_, anyhow::Error>(())
    });
    finished?;
    ensure!(ended?.success());
    scene.stage.finish()
}
