//! b05: requests that two readers could read in two ways. Whoever hides a request in one gets it nowhere: what is framed
//! beyond doubt goes to one side as it was sent, and everything else goes to the app, byte by byte and as a whole.
//!
//! Every text is sent twice, not fitting the rule and fitting it, and both sides' bytes are compared.

mod answers;
mod doubts;
mod framed;
mod heads;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    eventually,
    peers::{
        http1::{Http1App, Http1Caller, request},
        raw::{RawApp, RawCaller, Script, Seen},
    },
};

use super::stage::{LAPTOP, OTHER, POD, PORT, SECOND_PORT, SOON, Stage, on, on_stage, side};

/// What a smuggler wants somebody to take for a request. It fits the rule.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: app.test\r\nx-user: adam\r\n\r\n";

/// Where the mark of a side goes into a text: `x-user`, with the value that fits the rule or with the other one.
const MARK: &str = "{mark}";

/// What is sent on one connection, and what is to become of it.
struct Text {
    bytes: Vec<u8>,
    /// The laptop gets it, not the app.
    taken: bool,
    /// Why it is passed on as bytes, where it is.
    wire: Option<&'static str>,
}

/// Both apps: they write down what they get, and answer nothing.
struct Sides {
    pod: RawApp,
    laptop: RawApp,
}

// === impl Text ===

impl Text {
    /// A text with [`MARK`], for one side.
    fn new(text: &str, fits: bool) -> Self {
        let ((name, value), _) = side(fits);
        // Latin 1: a character is a byte.
        let text = text.replace(MARK, &format!("{name}: {value}"));
        let bytes = text.chars().map(|char| u8::try_from(char).unwrap_or(b'?')).collect();
        Self { bytes, taken: fits, wire: None }
    }

    /// It goes to the app, whichever side it is for.
    fn wire(self, why: &'static str) -> Self {
        Self { taken: false, wire: Some(why), ..self }
    }
}

// === impl Sides ===

impl Sides {
    fn start(stage: &Stage) -> Result<Self> {
        let [pod, laptop] = [&stage.pod, &stage.laptop].map(|host| RawApp::start(host, on(PORT), Script::new()));
        Ok(Self { pod: pod?, laptop: laptop? })
    }

    /// Sends a text and FIN, and compares what either side has got.
    async fn get(&self, stage: &Stage, text: &Text) -> Result<()> {
        let [pods, laptops] = [&self.pod, &self.laptop].map(|app| app.connections().len());
        let script = Script::new().send(&text.bytes).half_close();
        let caller = RawCaller::connect(&stage.caller, stage.app(), script).await?;
        let at_pod = self.pod.ended(pods, SOON).await.context("at the app")?;
        let at_laptop =
            if text.taken { Some(self.laptop.ended(laptops, SOON).await.context("at the laptop")?) } else { None };
        caller.ended(SOON).await.context("at the caller")?;
        let now = [&self.pod, &self.laptop].map(|app| app.connections().len());
        ensure!(now == [pods + 1, laptops + usize::from(text.taken)], "other connections: {now:?}");
        match at_laptop {
            Some(seen) => {
                ensure!(at_pod.bytes.is_empty(), "the app has got some of it: {at_pod}");
                same(&seen, &text.bytes)
            }
            None => same(&at_pod, &text.bytes),
        }
    }
}

fn same(seen: &Seen, sent: &[u8]) -> Result<()> {
    ensure!(seen.bytes == sent, "it came as {}", seen.bytes.escape_ascii());
    Ok(())
}

/// How many connections were passed on as bytes, by reason.
async fn wires(stage: &Stage) -> Result<BTreeMap<String, u64>> {
    let metrics = stage.agent.metrics().await?;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("sluice_agent_wires_total{reason=\""));
    lines
        .map(|line| {
            let (reason, count) = line.split_once("\"} ").context("a metric in another format")?;
            Ok((reason.to_owned(), count.parse()?))
        })
        .collect()
}

/// Sends all of them, and fails with everything that was not as it should be.
async fn send_all(stage: &Stage, texts: &[Text]) -> Result<()> {
    let sides = Sides::start(stage)?;
    let mut wrong = Vec::new();
    let mut expected = wires(stage).await?;
    for text in texts {
        if let Some(reason) = text.wire {
            *expected.entry(reason.to_owned()).or_default() += 1;
        }
        let mut got = sides.get(stage, text).await;
        if got.is_ok() {
            let now = wires(stage).await?;
            if now != expected {
                got = Err(anyhow::anyhow!("passed on as bytes: {now:?} instead of {expected:?}"));
                expected = now;
            }
        }
        if let Err(error) = got {
            wrong.push(format!(
                "{}\n  {:?}, {error:#}",
                text.bytes[..text.bytes.len().min(400)].escape_ascii(),
                text.wire
            ));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), texts.len(), wrong.join("\n"));
    Ok(())
}

/// Every text, fitting the rule and not.
fn both_sides<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Text> {
    texts.into_iter().flat_map(|text| [false, true].map(|fits| Text::new(text, fits))).collect()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_lengths_in_doubt_hide_nothing() -> Result<()> {
    on_stage("b05_lengths", async |stage| send_all(stage, &doubts::of_lengths()).await).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_heads_in_doubt_hide_nothing() -> Result<()> {
    on_stage("b05_heads", async |stage| send_all(stage, &doubts::of_heads()).await).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_chunks_in_doubt_hide_nothing() -> Result<()> {
    on_stage("b05_chunks", async |stage| send_all(stage, &doubts::of_chunks()).await).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_bodies_beyond_doubt_hide_nothing() -> Result<()> {
    on_stage("b05_bodies", async |stage| send_all(stage, &framed::texts()).await).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_nothing_behind_the_end_of_a_connection_is_a_request() -> Result<()> {
    on_stage("b05_behind", async |stage| send_all(stage, &framed::behind_the_end()).await).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_nothing_behind_an_answer_that_ends_the_connection_is_a_request() -> Result<()> {
    on_stage("b05_last_answer", async |stage| {
        // The caller asks again, on another connection: a laptop that served this as well would serve it twice.
        for (port, last) in [(PORT, "1.1 200 OK\r\nConnection: Close"), (SECOND_PORT, "1.0 200 OK")] {
            let answer = format!("HTTP/{last}\r\nContent-Length: 2\r\n\r\nok");
            let script = Script::new().read_until(b"\r\n\r\n").send(answer.as_bytes());
            let pod = RawApp::start(&stage.pod, on(port), script)?;
            let laptop = RawApp::start(&stage.laptop, on(port), Script::new())?;
            let both = Text::new(&format!("GET / HTTP/1.1\r\nHost: app.test\r\nx-user: eva\r\n\r\n{HIDDEN}"), false);
            let script = Script::new().send(&both.bytes).read(answer.len()).half_close();
            let caller = RawCaller::connect(&stage.caller, stage.pod.at(port), script).await?;
            let seen = caller.ended(SOON).await?;
            ensure!(seen.bytes == answer.as_bytes(), "the caller has got {seen}");
            same(&pod.ended(0, SOON).await?, &both.bytes)?;
            ensure!(laptop.connections().is_empty(), "the laptop has got something");
        }
        // One that does not end it is followed by another.
        ensure!(wires(stage).await?["closing"] == 2, "{:?}", wires(stage).await?);
        let free = async |host, name| {
            eventually(SOON, "the port is free", || async { Http1App::start(host, on(PORT), name) }).await
        };
        let _apps = (free(&stage.pod, POD).await?, free(&stage.laptop, LAPTOP).await?);
        let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
        caller.send(&[&request("GET", "/", &[OTHER], b""), HIDDEN.as_bytes()].concat()).await?;
        for by in [POD, LAPTOP] {
            ensure!(caller.response("GET").await?.answered_by() == Some(by), "not by {by}");
        }
        Ok(())
    })
    .await
}
