//! b16: a wiretap's client sees what matches, and everybody is answered by whom they would be answered by without it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use sluice_tests::{
    Agent, Client, ClientKey, Host, eventually,
    peers::{
        http1::{Answer, Http1App, Http1Caller, Then, request},
        http2::{Http2App, Http2Caller},
        raw::{RawApp, RawCaller, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};

use super::stage::{LAPTOP, POD, PORT, SECOND_PORT, SOON, on};

/// A port without HTTP rules.
const TCP_PORT: u16 = 7000;

/// Rounds of three requests beside a client that has died.
const ROUNDS: u32 = 20;

/// How long these may take on a busy machine. Waiting for that client would take 1 s for each stream to it.
const IN_ALL: Duration = Duration::from_secs(15);

/// A developer who only looks.
struct Onlooker {
    host: Host,
    key: ClientKey,
}

impl Onlooker {
    fn new(stage: &Stage, name: &str) -> Result<Self> {
        let (host, key) = (stage.lab.host(name).build()?, ClientKey::new(&stage.lab, name)?);
        stage.lab.connect(&host, &stage.pod)?;
        Ok(Self { host, key })
    }

    fn rule(&self, ports: &[u16], matches: Value) -> Rule {
        let rule = Rule::tcp(self.host.name(), ports, &self.key).with("mode", json!("Wiretap"));
        if matches.is_null() { rule } else { rule.with("match", matches) }
    }

    async fn connect(&self, agent: &Agent) -> Result<Client> {
        let ports = [PORT, SECOND_PORT, TCP_PORT].map(|port| port.to_string());
        Client::start(&self.host, agent, &self.key, &ports.each_ref().map(String::as_str)).await
    }
}

fn mine() -> Value {
    json!({"headers": [{"name": MATCHING.0, "value": MATCHING.1}]})
}

fn every() -> Value {
    json!({"path": {"value": "/"}})
}

/// Bytes of all requests, in the order in which they came.
fn requests(app: &Http1App) -> Vec<Vec<u8>> {
    app.requests().into_iter().map(|request| request.raw).collect()
}

async fn counted(agent: &Agent, expected: i64) -> Result<()> {
    let same = || async {
        let seen = (agent.counter("copied").await?, agent.counter("lost").await?);
        ensure!(seen == (expected, 0), "{seen:?}");
        Ok(())
    };
    eventually(SOON, &format!("{expected} copies are counted, and none is lost"), same).await
}

async fn copied(app: &Http1App, expected: &[Vec<u8>]) -> Result<()> {
    let same = || async {
        let seen = requests(app);
        ensure!(seen == expected, "{} of {} requests, or others", seen.len(), expected.len());
        Ok(())
    };
    eventually(SOON, "the copies are there", same).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_two_wiretaps_and_an_intercept_share_a_port() -> Result<()> {
    let stage = Stage::new("b16_http1")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let app = Http1App::start(pod, on(PORT), POD)?;
    let local = Http1App::start(laptop, on(PORT), LAPTOP)?;
    let (one, two) = (Onlooker::new(&stage, "one")?, Onlooker::new(&stage, "two")?);
    let ones = Http1App::start(&one.host, on(PORT), "one")?;
    let twos = Http1App::start(&two.host, on(PORT), "two")?;
    let rules = [stage.header("own", &[PORT]), one.rule(&[PORT], mine()), two.rule(&[PORT], every())];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let _clients = (
        Client::start(laptop, &agent, &stage.key, &["8080"]).await?,
        one.connect(&agent).await?,
        two.connect(&agent).await?,
    );

    let mut connection = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let chunked = |header: (&str, &str)| {
        let head = format!(
            "PUT /chunks HTTP/1.1\r\nHost: a\r\n{}: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
            header.0, header.1
        );
        [head.as_bytes(), b"5;x=y\r\nhello\r\n0\r\nTrailer: a\r\n\r\n"].concat()
    };
    let large = vec![b'x'; 300_000];
    let (mut matching, mut all) = (Vec::new(), Vec::new());
    for (header, by) in [(MATCHING, LAPTOP), (OTHER, POD)].repeat(3) {
        for (method, bytes) in [
            ("GET", request("GET", "/get?a", &[header], b"")),
            ("POST", request("POST", "/small", &[header], b"content")),
            ("POST", request("POST", "/large", &[header], &large)),
            ("PUT", chunked(header)),
        ] {
            connection.send(&bytes).await?;
            let answer = connection.response(method).await?;
            ensure!(answer.answered_by() == Some(by) && answer.request_seen() == bytes, "{method} with {header:?}");
            if header == MATCHING {
                matching.push(bytes.clone());
            }
            all.push(bytes);
        }
    }
    ensure!(requests(&local) == matching && requests(&app).len() == all.len() - matching.len());
    copied(&ones, &matching).await?;
    copied(&twos, &all).await?;
    let expected = i64::try_from(matching.len() + all.len())?;
    counted(&agent, expected).await?;

    // A connection that ends with its only request: the copy arrives all the same.
    for _ in 0..5 {
        let bytes = request("GET", "/once", &[OTHER, ("connection", "close")], b"");
        let mut once = Http1Caller::connect(caller, pod.at(PORT)).await?;
        once.send(&bytes).await?;
        ensure!(once.response("GET").await?.answered_by() == Some(POD));
        drop(once);
        all.push(bytes);
        copied(&twos, &all).await?;
    }
    copied(&ones, &matching).await?;

    // Without the intercept's client the app answers, and each copy is still one.
    agent.set_rules(&Rule::file(&[one.rule(&[PORT], mine()), stage.header("own", &[PORT]).reject()])).await?;
    let mut nobody = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let bytes = request("POST", "/after", &[MATCHING], b"content");
    nobody.send(&bytes).await?;
    ensure!(nobody.response("POST").await?.answered_by() == Some(LAPTOP));
    matching.push(bytes);
    copied(&ones, &matching).await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_what_its_intercept_cannot_take_is_copied_once() -> Result<()> {
    let stage = Stage::new("b16_away")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, on(PORT), POD)?;
    // Takes each request and closes instead of an answer, or nobody listens at all.
    let one = Onlooker::new(&stage, "one")?;
    let ones = Http1App::start(&one.host, on(PORT), "one")?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("own", &[PORT]), one.rule(&[PORT], mine())])).await?;
    let _client = one.connect(&agent).await?;
    let (mut connection, mut sent) = (Http1Caller::connect(caller, pod.at(PORT)).await?, Vec::new());
    for number in 0..3 {
        let bytes = request("POST", "/away", &[MATCHING], format!("content {number}").as_bytes());
        connection.send(&bytes).await?;
        ensure!(connection.response("POST").await?.answered_by() == Some(POD));
        sent.push(bytes);
    }
    copied(&ones, &sent).await?;
    // The client is there, and dies with the request.
    let own = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let held = RawApp::start(&stage.laptop, on(PORT), Script::new().hold())?;
    let bytes = request("POST", "/dies", &[MATCHING], b"content");
    connection.send(&bytes).await?;
    eventually(SOON, "the local process has the request", || async { held.connections().len() == 1 }).await?;
    sent.push(bytes);
    copied(&ones, &sent).await?;
    own.kill();
    let answer = tokio::time::timeout(Duration::from_secs(10), connection.response("POST")).await??;
    ensure!(answer.answered_by() == Some(POD), "after its client has died");
    ensure!(connection.get("/", &[OTHER]).await?.answered_by() == Some(POD));
    copied(&ones, &sent).await?;
    ensure!(agent.counter("lost").await? == 0);
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_http2_requests_are_copied() -> Result<()> {
    let stage = Stage::new("b16_http2")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let _app = Http2App::start(pod, on(SECOND_PORT), POD)?;
    let _local = Http2App::start(laptop, on(SECOND_PORT), LAPTOP)?;
    let (one, two) = (Onlooker::new(&stage, "one")?, Onlooker::new(&stage, "two")?);
    let ones = Http2App::start(&one.host, on(SECOND_PORT), "one")?;
    let twos = Http2App::start(&two.host, on(SECOND_PORT), "two")?;
    let ports = [SECOND_PORT];
    let rules = [stage.header("own", &ports), one.rule(&ports, mine()), two.rule(&ports, every())];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let _clients = (
        Client::start(laptop, &agent, &stage.key, &["9090"]).await?,
        one.connect(&agent).await?,
        two.connect(&agent).await?,
    );
    let connection = Http2Caller::connect(caller, pod.at(SECOND_PORT)).await?;
    let body = |size: usize| Bytes::from(vec![b'y'; size]);
    for (header, by) in [(MATCHING, LAPTOP), (OTHER, POD)].repeat(3) {
        for (path, size) in [("/none", 0), ("/small", 10), ("/large", 400_000)] {
            let answer = connection.call("POST", path, &[header], body(size)).await?;
            ensure!(answer.answered_by() == Some(by) && answer.content_seen() == body(size), "{path} with {header:?}");
        }
        ensure!(connection.get("/get", &[header]).await?.answered_by() == Some(by));
    }
    for (app, expected) in [(&ones, 12), (&twos, 24)] {
        eventually(SOON, "the copies are there", || async {
            let seen = app.requests().len();
            ensure!(seen == expected, "{seen} of {expected}");
            Ok(())
        })
        .await?;
    }
    ensure!(
        ones.requests().iter().all(|request| request.headers.get(MATCHING.0).is_some_and(|user| user == MATCHING.1))
    );
    for app in [&ones, &twos] {
        for request in app.requests() {
            let expected = match request.uri.path() {
                "/large" => 400_000,
                "/small" => 10,
                _ => 0,
            };
            ensure!(request.body == body(expected), "{}", request.uri);
        }
    }
    counted(&agent, 36).await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_all_that_callers_send_over_tcp_is_copied() -> Result<()> {
    let stage = Stage::new("b16_tcp")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let everything = Script::new().read_to_end();
    let answering = |name: &str| Script::new().send(name.as_bytes()).read_to_end().half_close();
    let _apps = [TCP_PORT, PORT].map(|port| RawApp::start(pod, on(port), answering(POD)));
    let _apps = _apps.into_iter().collect::<Result<Vec<_>>>()?;
    let local = RawApp::start(laptop, on(PORT), answering(LAPTOP))?;
    let one = Onlooker::new(&stage, "one")?;
    let copies =
        [RawApp::start(&one.host, on(TCP_PORT), answering("one"))?, RawApp::start(&one.host, on(PORT), everything)?];
    // One port with the wiretap alone, one where somebody takes everything.
    let agent =
        Agent::start(pod, &Rule::file(&[stage.tcp("own", &[PORT]), one.rule(&[TCP_PORT, PORT], Value::Null)])).await?;
    let _clients = (Client::start(laptop, &agent, &stage.key, &["8080"]).await?, one.connect(&agent).await?);
    for (number, size) in [1, 100, 200_000].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size).map(|at: usize| u8::try_from(at % 251)).collect::<Result<_, _>>()?;
        for (port, by, copies) in [(TCP_PORT, POD, &copies[0]), (PORT, LAPTOP, &copies[1])] {
            let script = Script::new().send(&bytes).half_close().read_to_end();
            let seen = RawCaller::connect(caller, pod.at(port), script).await?.ended(SOON).await?;
            ensure!(seen.bytes == by.as_bytes(), "port {port}: {:?}", seen.bytes.escape_ascii().to_string());
            ensure!(copies.ended(number, SOON).await?.bytes == bytes, "the copy of port {port}");
        }
    }
    ensure!(local.connections().len() == 3);
    counted(&agent, 6).await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_a_slow_or_dead_onlooker_loses_copies_and_delays_nobody() -> Result<()> {
    let stage = Stage::new("b16_slow")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    // Answers without the request in the answer, and does not read slowly.
    let brief = |name: &str, _: &sluice_tests::peers::http1::Request| {
        let head =
            format!("HTTP/1.1 200 OK\r\n{}: {name}\r\ncontent-length: 0\r\n\r\n", sluice_tests::peers::ANSWERED_BY);
        Answer { raw: head.into_bytes(), then: Then::KeepAlive }
    };
    let _app = Http1App::with(pod, on(PORT), POD, brief)?;
    let _second = Http2App::start(pod, on(SECOND_PORT), POD)?;
    let (slow, good) = (Onlooker::new(&stage, "slow")?, Onlooker::new(&stage, "good")?);
    let _slows = [PORT, SECOND_PORT].map(|port| RawApp::start(&slow.host, on(port), Script::new().hold()));
    let goods = Http1App::with(&good.host, on(PORT), "good", brief)?;
    let rules = [slow.rule(&[PORT, SECOND_PORT], every()), good.rule(&[PORT], mine())];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let slow_client = slow.connect(&agent).await?;
    let _good_client = good.connect(&agent).await?;

    let body = vec![b'z'; 1 << 20];
    let mut connection = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let http2 = Http2Caller::connect(caller, pod.at(SECOND_PORT)).await?;
    let mut sent = Vec::new();
    for number in 0..24 {
        let bytes = request("POST", "/", &[MATCHING, ("x-number", &number.to_string())], &body);
        connection.send(&bytes).await?;
        let answer = tokio::time::timeout(SOON, connection.response("POST")).await;
        ensure!(answer.with_context(|| format!("request {number} waits"))??.answered_by() == Some(POD));
        sent.push(bytes);
        // The good one keeps up, whatever the slow one does.
        copied(&goods, &sent).await.with_context(|| format!("request {number}"))?;
    }
    for number in 0..20 {
        let call = http2.call("POST", "/", &[], Bytes::from(body[..200_000].to_vec()));
        let answer = tokio::time::timeout(SOON, call).await.with_context(|| format!("request {number} waits"))??;
        ensure!(answer.answered_by() == Some(POD));
    }
    eventually(SOON, "lost copies are counted", || async {
        let lost = agent.counter("lost").await?;
        ensure!(lost >= 20, "{lost}");
        Ok(())
    })
    .await?;
    let metrics = agent.metrics().await?;
    ensure!(metrics.contains("copies_total{outcome=\"lost\"}"), "{metrics}");

    // Dead: at first the agent does not know.
    slow_client.kill();
    let lost = agent.counter("lost").await?;
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        ensure!(connection.get("/", &[OTHER]).await?.answered_by() == Some(POD));
        let mut new = Http1Caller::connect(caller, pod.at(PORT)).await?;
        ensure!(new.get("/", &[OTHER]).await?.answered_by() == Some(POD));
        ensure!(http2.get("/", &[]).await?.answered_by() == Some(POD));
    }
    ensure!(begin.elapsed() < IN_ALL, "{ROUNDS} rounds took {:?}", begin.elapsed());
    // Those that went into a connection that nobody knows to be dead are not known to be lost either.
    eventually(Duration::from_secs(15), "all that had to be accepted are lost", || async {
        let more = agent.counter("lost").await? - lost;
        ensure!(more >= 40, "{more}");
        Ok(())
    })
    .await?;
    copied(&goods, &sent).await?;
    stage.finish()
}
