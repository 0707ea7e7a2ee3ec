//! Streams that are much longer than what may be held on the way, in front of readers that do not read for a while.

use std::{
    cell::Cell,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, Host, Process,
    peers::pattern::{self, Pattern},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{interval, timeout},
};

use super::MIB;
use crate::{SOON, any};

/// Long enough to show whether memory grows with it. The case's length is a gibibyte, which takes minutes through a
/// tunnel whose encryption was built without optimisation, and ten seconds otherwise (`cargo test --release`).
const TAKEN: u64 = if cfg!(debug_assertions) { 32 * MIB } else { 1024 * MIB };

/// The same for what is passed on.
const PASSED: u64 = 1024 * MIB;

/// How much memory of its own a program may need for a stream, whatever its length.
const OWN_KIB: u64 = 8 << 10;

/// The most that a socket of these hosts buffers in a direction.
const SOCKET: u64 = 2 * MIB;

/// How much may wait in the sockets of a host. A connection that is passed on has four directions in the pod; the kernel
/// counts its own overhead as well, which is up to the size of the data.
const IN_SOCKETS: u64 = 2 * 4 * SOCKET;

/// A connection from its two ends, with the bytes that bring it on its way.
struct Line {
    caller: TcpStream,
    app: TcpStream,
}

/// What programs and sockets use while a stream runs.
struct Gauges<'s> {
    agent: &'s Process,
    client: &'s Process,
    hosts: [&'s Host; 2],
    before: [u64; 2],
    most: Cell<[u64; 3]>,
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a09_a_long_taken_stream_with_a_slow_reader_takes_little_memory() -> Result<()> {
    let stage = stage("a09_taken")?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.tcp("tcp", &[1]), stage.header("header", &[2])])).await?;
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["1", "2"]).await?;
    for (port, header) in [(1, OTHER), (2, MATCHING)] {
        let app = stage.pod.listen(any(port))?;
        let local = stage.laptop.listen(any(port))?;
        each_way(&stage, &agent, &client, local, header, TAKEN).await.with_context(|| format!("port {port}"))?;
        drop(app);
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a09_a_long_passed_stream_with_a_slow_reader_takes_little_memory() -> Result<()> {
    let stage = stage("a09_passed")?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.tcp("tcp", &[1]), stage.header("header", &[2])])).await?;
    // It serves neither port: what fits the rules is passed on as well.
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["3"]).await?;
    for (port, length) in [(1, PASSED / 4), (2, PASSED)] {
        let app = stage.pod.listen(any(port))?;
        each_way(&stage, &agent, &client, app, OTHER, length).await.with_context(|| format!("port {port}"))?;
    }
    stage.finish()
}

/// A stage whose sockets do not grow far, as Linux would otherwise let them (32 MiB each).
fn stage(name: &str) -> Result<Stage> {
    let stage = Stage::new(name)?;
    for host in [&stage.caller, &stage.pod, &stage.laptop] {
        host.enter(|| {
            fs::write("/proc/sys/net/ipv4/tcp_rmem", format!("4096 131072 {SOCKET}"))?;
            fs::write("/proc/sys/net/ipv4/tcp_wmem", format!("4096 16384 {SOCKET}"))
        })??;
    }
    Ok(stage)
}

/// A request with a body of the length, and then an answer with one, over one connection to whoever listens.
async fn each_way(
    stage: &Stage,
    agent: &Agent,
    client: &Client,
    listener: TcpListener,
    header: (&str, &str),
    length: u64,
) -> Result<()> {
    let (name, value) = header;
    let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{name}: {value}\r\nContent-Length: {length}\r\n\r\n");
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let mut caller = stage.caller.connect(stage.pod.at(listener.local_addr()?.port())).await?;
    caller.write_all(request.as_bytes()).await?;
    let (mut app, _) = timeout(SOON, listener.accept()).await.context("nobody called")??;
    let mut seen = vec![0; request.len()];
    app.read_exact(&mut seen).await?;
    ensure!(seen == request.as_bytes(), "another request: {}", String::from_utf8_lossy(&seen));

    let mut line = Line { caller, app };
    let gauges = Gauges::new(stage, agent, client)?;
    let begin = Instant::now();
    gauges.watch(slowly(&mut line.caller, &mut line.app, length)).await.context("towards the app")?;
    line.app.write_all(answer.as_bytes()).await?;
    let mut seen = vec![0; answer.len()];
    line.caller.read_exact(&mut seen).await?;
    ensure!(seen == answer.as_bytes(), "another answer: {}", String::from_utf8_lossy(&seen));
    let half = begin.elapsed();
    gauges.watch(slowly(&mut line.app, &mut line.caller, length)).await.context("towards the caller")?;
    let [of_agent, of_client, in_sockets] = gauges.most.get();
    eprintln!(
        "{} MiB each way in {half:?} and {:?}: agent + {of_agent} KiB, client + {of_client} KiB, sockets {in_sockets} B",
        length / MIB,
        begin.elapsed() - half
    );
    Ok(())
}

/// Sends the pattern. Nobody reads until nothing moves any more; then everything is read, and must be the pattern.
async fn slowly(from: &mut TcpStream, to: &mut TcpStream, length: u64) -> Result<()> {
    let sent = Cell::new(0);
    let (_, mut from) = from.split();
    let send = async {
        let pattern = Pattern::new(1);
        while sent.get() < length {
            let piece = pattern.piece(sent.get(), length - sent.get());
            from.write_all(piece).await?;
            sent.set(sent.get() + u64::try_from(piece.len())?);
        }
        anyhow::Ok(())
    };
    let read = async {
        let held = stalled(&sent).await?;
        ensure!(held < length, "all {length} bytes were taken, and nobody has read");
        pattern::check(to, 1, length).await
    };
    tokio::try_join!(send, read)?;
    Ok(())
}

/// Waits until no more can be sent; returns how much there is under way.
async fn stalled(sent: &Cell<u64>) -> Result<u64> {
    const LOOKS: usize = 25;
    let wait = async {
        let mut looks = interval(Duration::from_millis(20));
        let (mut before, mut same) = (0, 0);
        while same < LOOKS {
            looks.tick().await;
            let now = sent.get();
            same = if now == before && now > 0 { same + 1 } else { 0 };
            before = now;
        }
        before
    };
    timeout(SOON, wait).await.context("the sender is not held back")
}

// === impl Gauges ===

impl<'s> Gauges<'s> {
    fn new(stage: &'s Stage, agent: &'s Agent, client: &'s Client) -> Result<Self> {
        let (agent, client) = (agent.process(), client.process());
        let before = [agent.rss_kib()?, client.rss_kib()?];
        Ok(Self { agent, client, hosts: [&stage.pod, &stage.laptop], before, most: Cell::default() })
    }

    /// Looks at all of them until `work` is done.
    async fn watch<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut looks = interval(Duration::from_millis(250));
        let watch = async {
            loop {
                looks.tick().await;
                self.look()?;
            }
        };
        tokio::select! {
            result = work => result,
            error = watch => error,
        }
    }

    fn look(&self) -> Result<()> {
        let [agent, client] = self.before;
        let mut now = [self.agent.rss_kib()?.saturating_sub(agent), self.client.rss_kib()?.saturating_sub(client), 0];
        for host in self.hosts {
            now[2] = now[2].max(in_sockets(&host.tool("ss", &["-tanmH"])?));
        }
        let [of_agent, of_client, in_sockets] = now;
        ensure!(of_agent < OWN_KIB, "the agent has taken {of_agent} KiB for one stream");
        ensure!(of_client < OWN_KIB, "the client has taken {of_client} KiB for one stream");
        ensure!(in_sockets < IN_SOCKETS, "{in_sockets} bytes wait in the sockets of a host");
        let most = self.most.get();
        self.most.set(std::array::from_fn(|gauge| most[gauge].max(now[gauge])));
        Ok(())
    }
}

/// Memory of all TCP sockets that `ss` has listed: received and not read, sent and not acknowledged.
fn in_sockets(listed: &str) -> u64 {
    let fields =
        listed.split("skmem:(").skip(1).flat_map(|shown| shown.split(')').next().unwrap_or_default().split(','));
    let size = |field: &str| {
        let digits = field.strip_prefix('r').or_else(|| field.strip_prefix('w'))?;
        digits.parse::<u64>().ok()
    };
    fields.filter_map(size).sum()
}
