//! What caller and app do to each other, and the places where they do it: directly, and on each way through the agent.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use sluice_tests::{
    Agent, Client, ClientKey, Host,
    peers::raw::{End, RawApp, RawCaller, Script, Seen},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::time::timeout;

use crate::{SOON, any};

/// What is held back comes through a tunnel that was built without optimisation, while other tests use the processor.
const LONG: Duration = Duration::from_secs(60);

/// How a connection gets through the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// A rule for all TCP whose client is not there.
    TcpPassed,
    /// A rule for all TCP.
    TcpTaken,
    /// A header rule that the request does not fit.
    HttpPassed,
    /// A header rule that it fits.
    HttpTaken,
    /// A header rule, and the bytes are no HTTP.
    NoHttp,
}

/// What the two ends do.
#[derive(Clone)]
pub(super) struct Scene {
    name: &'static str,
    caller: Script,
    app: Script,
    /// Neither end gets rid of all its bytes before it is released.
    stalls: bool,
    /// The app is to be reached, whatever the rules say.
    not_decided: bool,
    /// Not played where single requests are taken.
    of_app_only: bool,
}

/// The stage, with an agent on it that has a port for each way and scene.
pub(super) struct Theatre {
    stage: Stage,
    _agent: Agent,
    _client: Client,
}

/// What an end has seen.
#[derive(PartialEq, Eq)]
struct View {
    bytes: Vec<u8>,
    end: End,
}

const WAYS: [Way; 5] = [Way::TcpPassed, Way::TcpTaken, Way::HttpPassed, Way::HttpTaken, Way::NoHttp];

// === impl Way ===

impl Way {
    /// The port of a scene on this way; the agent leaves those of the same scene played directly alone.
    fn port(self, scene: usize) -> Result<u16> {
        let way = WAYS.iter().position(|way| *way == self).unwrap_or_default();
        Ok(u16::try_from(1000 + 100 * way + scene)?)
    }

    fn is_taken(self) -> bool {
        matches!(self, Self::TcpTaken | Self::HttpTaken)
    }
}

// === impl Scene ===

impl Scene {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, caller: Script::new(), app: Script::new(), stalls: false, not_decided: false, of_app_only: false }
    }

    pub(super) fn caller(self, caller: Script) -> Self {
        Self { caller, ..self }
    }

    pub(super) fn app(self, app: Script) -> Self {
        Self { app, ..self }
    }

    /// One end waits without reading, for so long that the other one cannot send any more.
    pub(super) fn stalls(self) -> Self {
        Self { stalls: true, ..self }
    }

    /// There is no request by which a header rule could decide.
    pub(super) fn not_decided(self) -> Self {
        Self { not_decided: true, ..self }
    }

    /// It is about a connection that lies idle. Where a request was taken, that is still the app's, and what becomes of
    /// the laptop's is nothing to its caller.
    pub(super) fn of_app_only(self) -> Self {
        Self { of_app_only: true, ..self }
    }

    async fn play(self, from: &Host, to: SocketAddr, at: &Host) -> Result<[View; 2]> {
        let app = RawApp::start(at, any(to.port()), self.app)?;
        let caller = RawCaller::connect(from, to, self.caller).await?;
        if self.stalls {
            let sent = quiet(&caller, &app).await?;
            let all = caller.progress().over || app.progress(0).over;
            ensure!(!all, "{sent} bytes were sent without anybody reading them, and that was all");
        } else {
            quiet(&caller, &app).await?;
        }
        caller.release();
        app.release();
        let seen = caller.ended(LONG).await.context("the caller's end")?;
        let seen_by_app = app.ended(0, LONG).await.context("the app's end")?;
        ensure!(app.connections().len() == 1, "the app has seen {} connections", app.connections().len());
        Ok([View::try_from(seen)?, View::try_from(seen_by_app)?])
    }
}

/// Waits until nothing moves any more, and returns how much was sent until then.
async fn quiet(caller: &RawCaller, app: &RawApp) -> Result<usize> {
    /// Nothing has moved for so many looks.
    const LOOKS: usize = 15;
    let wait = async {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let (mut before, mut same) = ((caller.progress(), app.progress(0)), 0);
        loop {
            looks.tick().await;
            let now = (caller.progress(), app.progress(0));
            same = if now == before { same + 1 } else { 0 };
            before = now;
            let (of_caller, of_app) = now;
            if (of_caller.over && of_app.over) || same >= LOOKS {
                return of_caller.sent + of_app.sent;
            }
        }
    };
    timeout(LONG, wait).await.context("bytes move all the time")
}

// === impl Theatre ===

impl Theatre {
    pub(super) async fn new(name: &str, scenes: usize) -> Result<Self> {
        let stage = Stage::new(name)?;
        let ports = |ways: &[Way]| -> Result<Vec<u16>> {
            ways.iter().flat_map(|way| (0..scenes).map(|scene| way.port(scene))).collect()
        };
        let nobody = ClientKey::new(&stage.lab, "nobody")?;
        let rules = [
            Rule::tcp("passed", &ports(&[Way::TcpPassed])?, &nobody),
            stage.tcp("taken", &ports(&[Way::TcpTaken])?),
            stage.header("header", &ports(&[Way::HttpPassed, Way::HttpTaken, Way::NoHttp])?),
        ];
        let agent = Agent::start(&stage.pod, &Rule::file(&rules)).await?;
        let named: Vec<_> = ports(&WAYS)?.iter().map(u16::to_string).collect();
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        let client = Client::start(&stage.laptop, &agent, &stage.key, &named).await?;
        Ok(Self { stage, _agent: agent, _client: client })
    }

    /// Plays all scenes on all ways, and fails with all differences together.
    pub(super) async fn play(self, scenes: &[fn(Way) -> Scene]) -> Result<()> {
        let on_way = async |way| {
            let mut differences = Vec::new();
            for (number, scene) in scenes.iter().enumerate() {
                let scene = scene(way);
                let name = scene.name;
                if scene.of_app_only && way == Way::HttpTaken {
                    continue;
                }
                if let Err(difference) = self.compare(way, number, scene).await {
                    differences.push(format!("{way:?}, {name}: {difference:#}"));
                }
            }
            differences
        };
        let differences = join_all(WAYS.map(on_way)).await.concat();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        self.stage.finish()
    }

    async fn compare(&self, way: Way, number: usize, scene: Scene) -> Result<()> {
        const DIRECT: u16 = 1000;
        let Stage { caller, pod, laptop, .. } = &self.stage;
        let port = way.port(number)?;
        let to_app = scene.not_decided && way == Way::HttpTaken;
        let [direct, direct_app] = scene.clone().play(caller, pod.at(port + DIRECT), pod).await.context("directly")?;
        let (begin, stalls) = (Instant::now(), scene.stalls);
        let [through, through_app] = if way.is_taken() && !to_app {
            let app = RawApp::start(pod, any(port), Script::new())?;
            let seen = scene.play(caller, pod.at(port), laptop).await?;
            ensure!(app.connections().iter().all(|seen| seen.bytes.is_empty()), "the app has got bytes as well");
            seen
        } else {
            let local = RawApp::start(laptop, any(port), Script::new())?;
            let seen = scene.play(caller, pod.at(port), pod).await?;
            ensure!(local.connections().is_empty(), "the laptop has got a connection");
            seen
        };
        let took = begin.elapsed();
        ensure!(through == direct, "the caller has seen {through} instead of {direct}");
        ensure!(through_app == direct_app, "the app has seen {through_app} instead of {direct_app}");
        ensure!(stalls || took < SOON, "it took {took:?}");
        Ok(())
    }
}

// === impl View ===

impl TryFrom<Seen> for View {
    type Error = anyhow::Error;

    fn try_from(seen: Seen) -> Result<Self> {
        // Which of the two a writer gets depends on who comes first, its next write or the reset.
        let end = match seen.end.context("not ended")? {
            End::Broken(std::io::ErrorKind::BrokenPipe) => End::Reset,
            end => end,
        };
        Ok(Self { bytes: seen.bytes, end })
    }
}

impl std::fmt::Display for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let begin = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(60)]);
        write!(f, "{:?} behind {} bytes {begin:?}", self.end, self.bytes.len())
    }
}

/// The head of a request with a body of this length, as it is decided on this way.
pub(super) fn head(way: Way, length: usize) -> Vec<u8> {
    let (name, value) = if way == Way::HttpTaken { MATCHING } else { OTHER };
    let noise = if way == Way::NoHttp { "\u{16}\u{3}" } else { "" };
    format!("{noise}POST / HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\nContent-Length: {length}\r\n\r\n").into()
}

/// A whole request.
pub(super) fn request(way: Way, length: usize) -> Vec<u8> {
    [head(way, length), vec![b'r'; length]].concat()
}

/// An answer whose length is said.
pub(super) fn answer(length: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'a'; length]].concat()
}

/// An answer behind which the connection stays open.
pub(super) fn kept_alive(length: usize) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &vec![b'a'; length]].concat()
}

/// An answer that goes on until the app closes.
pub(super) fn answer_to_end(length: usize) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\n\r\n", &vec![b'a'; length][..]].concat()
}

/// An answer of which more is announced.
pub(super) fn begun_answer() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\naaa".to_vec()
}
