//! What connections cost the agent that do nothing, and those whose ends do not read.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use nix::sys::resource::{Resource, getrlimit};
use sluice_tests::{
    Agent, Client, Host, eventually,
    peers::http1::{Http1Caller, request},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{HTTP, Ruled, any};

const PORT: u16 = 8085;

/// What the issue asks for: so many connections in so much memory.
const CONNECTIONS: usize = 10_000;
const MOST_KIB: u64 = 128 << 10;

/// Files that the agent has open besides connections, at most.
const OTHER_FILES: usize = 64;

/// Connections are made in groups: what waits to be accepted is limited.
const GROUP: usize = 100;

/// For all of them together.
const LONG: Duration = Duration::from_secs(60);

/// A server in a process of its own: this one has not the files for both ends.
const SERVER: &str = r#"
import asyncio, sys

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nX-Answered-By: pod\r\nContent-Length: 0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "::", int(sys.argv[1]), backlog=4096)
    print("listening", flush=True)
    await server.serve_forever()

asyncio.run(main())
"#;

/// How many connections the agent may have, by the files that processes may open here: two for each.
fn possible() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = usize::try_from(hard).unwrap_or(usize::MAX);
    Ok(CONNECTIONS.min((files - OTHER_FILES) / 2))
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn ten_thousand_idle_connections_take_little_memory() -> Result<()> {
    let stage = Stage::new("idle")?;
    let mut command = Command::new("python3");
    command.args(["-c", SERVER, &PORT.to_string()]);
    let app = stage.pod.spawn(command)?;
    app.printed("listening", LONG).await?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("idle", &[PORT])])).await?;
    let before = agent.process().rss_kib()?;
    let count = possible()?;
    let mut callers = Vec::with_capacity(count);
    for group in 0..count.div_ceil(GROUP) {
        // A half of them has asked before, and some have begun to.
        let mut group: Vec<_> = connect(&stage.caller, stage.pod.at(PORT), GROUP.min(count - group * GROUP)).await?;
        for (number, caller) in group.iter_mut().enumerate() {
            match number % 4 {
                0 | 1 => ensure!(caller.get("/", &[OTHER]).await?.status == 200),
                2 => caller.send(b"GET / HTTP/1.1\r\nHost:").await?,
                _ => {}
            }
        }
        callers.append(&mut group);
    }
    let open = i64::try_from(count)?;
    eventually(LONG, "the agent has all connections", || async {
        let now = agent.counter("open").await.map_err(|error| format!("{error:#}"))?;
        if now == open { Ok(()) } else { Err(format!("{now} of {open}")) }
    })
    .await?;
    let rss = agent.process().rss_kib()?;
    let most = MOST_KIB * u64::try_from(count)? / u64::try_from(CONNECTIONS)?;
    eprintln!("{count} idle connections: {rss} KiB, {before} KiB before");
    ensure!(rss < most, "{rss} KiB for {count} idle connections, {before} KiB before: more than {most} KiB");

    // They are not forgotten.
    for (number, caller) in callers.iter_mut().enumerate().step_by(count / 50) {
        if number % GROUP % 4 == 2 {
            caller.send(b" app.test\r\n\r\n").await?;
        } else {
            caller.send(&request("GET", "/", &[OTHER], b"")).await?;
        }
        ensure!(caller.response("GET").await?.answered_by() == Some("pod"), "connection {number}");
    }
    drop(callers);
    eventually(LONG, "all connections are closed", || async {
        agent.counter("open").await.is_ok_and(|open| open == 0)
    })
    .await?;
    stage.finish()
}

async fn connect(from: &Host, to: std::net::SocketAddr, count: usize) -> Result<Vec<Http1Caller>> {
    let mut callers = Vec::with_capacity(count);
    for _ in 0..count {
        callers.push(Http1Caller::connect(from, to).await?);
    }
    Ok(callers)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn ends_that_do_not_read_take_little_memory() -> Result<()> {
    /// So many of each kind.
    const EACH: usize = 50;
    /// What the agent may hold for each, of four kinds: 64 KiB that it reads at once, twice that as buffers grow by
    /// doubling, and for an answer out of the tunnel its stream's window of 512 KiB. A quarter of it for what allocators
    /// waste.
    const MOST_EACH_KIB: u64 = (4 * 2 * 64 + 512) / 4 * 5 / 4;
    let stage = Stage::new("stalled")?;
    for host in [&stage.caller, &stage.pod, &stage.laptop] {
        // Sockets that fill quickly.
        host.enter(|| {
            fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 65536 65536")?;
            fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 65536 65536")
        })??;
    }
    let [pod, laptop] = [&stage.pod, &stage.laptop].map(|host| host.listen(any(PORT)));
    let (pod, laptop) = (pod?, laptop?);
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("stalled", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &[&PORT.to_string()]).await?;
    let before = agent.process().rss_kib()?;
    let (mut senders, mut silent) = (Vec::new(), Vec::new());
    for number in 0..4 * EACH {
        let (header, upwards) = ([OTHER, MATCHING][number % 2], number % 4 < 2);
        let mut caller = stage.caller.connect(stage.pod.at(PORT)).await?;
        let ask = request("POST", "/", &[header, ("Content-Length", "900000000")], b"");
        caller.write_all(&ask).await?;
        let (mut app, _) = timeout(LONG, pod.accept()).await??;
        if header == MATCHING {
            app = timeout(LONG, laptop.accept()).await??.0;
        }
        let mut seen = vec![0; ask.len()];
        app.read_exact(&mut seen).await?;
        ensure!(seen == ask, "another request");
        if upwards {
            senders.push(caller);
            silent.push(app);
        } else {
            app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n").await?;
            senders.push(app);
            silent.push(caller);
        }
    }
    try_join_all(senders.iter_mut().map(fill)).await?;
    let rss = agent.process().rss_kib()?;
    let count = u64::try_from(senders.len())?;
    let most = before + MOST_EACH_KIB * count;
    eprintln!("{count} stalled connections: {rss} KiB, {before} KiB before");
    ensure!(rss < most, "{rss} KiB for {count} stalled connections, {before} KiB before: more than {most} KiB");
    drop((senders, silent));
    eventually(LONG, "all connections are closed", || async {
        agent.counter("open").await.is_ok_and(|open| open == 0)
    })
    .await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn heads_that_do_not_end_take_little_memory() -> Result<()> {
    const COUNT: u64 = 100;
    /// The largest head that is decided, twice that as buffers grow by doubling, and a quarter for what allocators waste.
    const MOST_EACH_KIB: u64 = 2 * 128 * 5 / 4;
    let ruled = Ruled::set("slow_heads", &[]).await?;
    let before = ruled.agent.process().rss_kib()?;
    let (mut callers, to) = (Vec::new(), ruled.stage.pod.at(HTTP));
    let mut other = Http1Caller::connect(&ruled.stage.caller, to).await?;
    for number in 0..COUNT {
        let header = [OTHER, MATCHING][usize::from(number % 2 == 1)];
        let filler = "f".repeat(1000);
        let mut headers = vec![("X-Filler", &filler[..]); 122];
        headers.push(header);
        let ask = request("GET", "/", &headers, b"");
        ensure!((120 << 10..128 << 10).contains(&ask.len()), "a head of {} bytes", ask.len());
        let mut caller = Http1Caller::connect(&ruled.stage.caller, to).await?;
        caller.send(&ask[..ask.len() - 1]).await?;
        callers.push((caller, header, ask));
        // The agent keeps up: where it is too busy to hear a client in time, the app answers.
        ensure!(other.get("/", &[OTHER]).await?.answered_by() == Some("pod"));
    }
    ruled.works().await?;
    let rss = ruled.agent.process().rss_kib()?;
    eprintln!("{COUNT} heads that do not end: {rss} KiB, {before} KiB before");
    ensure!(rss < before + COUNT * MOST_EACH_KIB, "{rss} KiB for {COUNT} heads, {before} KiB before");
    for (caller, header, ask) in &mut callers {
        caller.send(&ask[ask.len() - 1..]).await?;
        let (answer, by) = (caller.response("GET").await?, if *header == MATCHING { "laptop" } else { "pod" });
        ensure!(answer.answered_by() == Some(by) && answer.request_seen() == ask, "by {:?}", answer.answered_by());
    }
    ruled.finish()
}

/// Writes until nothing is taken any more.
async fn fill(to: &mut TcpStream) -> Result<()> {
    /// So long nothing is taken, on a machine on which all others fill theirs at the same time.
    const QUIET: Duration = Duration::from_secs(2);
    static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];
    let mut sent = 0_u64;
    while let Ok(taken) = timeout(QUIET, to.write(&PIECE)).await {
        sent += u64::try_from(taken?)?;
        ensure!(sent < 100 << 20, "all is taken, and nobody reads");
    }
    (sent > 0).then_some(()).context("nothing was taken")
}
