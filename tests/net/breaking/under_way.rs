//! c01, c02: what is under way at the moment when the client goes, of every kind and under both policies.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use sluice_tests::{
    Agent, Client, eventually,
    peers::{
        grpc::{GrpcApp, GrpcCaller, breakpoint_of},
        http1::{Http1App, Http1Caller},
        raw::{End, RawApp, RawCaller, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{PORT, SOON, any, asked};

/// Ports whose requests are passed on when the client is gone, and ports whose are refused.
const PASSES: [u16; 2] = [1, 2];
const REJECTS: [u16; 2] = [3, 4];
/// All TCP.
const TCP: u16 = 5;
/// Nobody on the laptop answers here.
const DEBUGGED: u16 = 6;

const PROMISED: Duration = Duration::from_secs(6);

/// What a call that was under way came to.
#[derive(Debug)]
struct Outcome {
    what: &'static str,
    by: String,
    at: Instant,
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_what_is_under_way_when_the_client_is_killed_is_answered_as_the_intercept_says() -> Result<()> {
    Box::pin(goes_in_the_middle("under_kill", |_, client| {
        client.kill();
        Ok(())
    }))
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_what_is_under_way_when_the_cable_is_cut_is_answered_as_the_intercept_says() -> Result<()> {
    Box::pin(goes_in_the_middle("under_cut", |stage, _| stage.to_laptop.cut())).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_what_is_under_way_when_the_laptop_falls_asleep_is_answered_as_the_intercept_says() -> Result<()> {
    Box::pin(goes_in_the_middle("under_sleep", |_, client| client.process().signal(Signal::SIGSTOP))).await
}

async fn goes_in_the_middle(name: &str, go: impl Fn(&Stage, &Client) -> Result<()>) -> Result<()> {
    let stage = Stage::new(name)?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let [http, grpc] = PASSES;
    let [http_rejects, grpc_rejects] = REJECTS;
    let _web = [Http1App::start(pod, any(http), "pod")?, Http1App::start(pod, any(http_rejects), "pod")?];
    let _calls = [GrpcApp::start(pod, any(grpc), "pod")?, GrpcApp::start(pod, any(grpc_rejects), "pod")?];
    let app = RawApp::start(pod, any(TCP), Script::echo())?;
    let local_web = RawApp::start(laptop, any(DEBUGGED), Script::new().read(1).hold())?;
    let local_calls = GrpcApp::start(laptop, any(grpc), "laptop")?;
    let local_tcp = RawApp::start(laptop, any(TCP), Script::echo())?;
    let rules = [stage.header("passes", &PASSES), stage.header("rejects", &REJECTS).reject(), stage.tcp("tcp", &[TCP])];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let client = Client::start(laptop, &agent, &stage.key, &["6:1", "2", "6:3", "2:4", "5"]).await?;

    let body = vec![b'b'; 40_000];
    let web = async |what, port, method, body: &[u8]| {
        let mut connection = Http1Caller::connect(caller, pod.at(port)).await?;
        // The app has answered over this connection before.
        ensure!(connection.get("/", &[OTHER]).await?.answered_by() == Some("pod"));
        let answer = connection.call(method, "/", &[MATCHING], body).await?;
        let by = answer.answered_by().map_or_else(|| answer.status.to_string(), str::to_owned);
        ensure!(by != "503" || answer.header("retry-after") == Some("1"), "{answer:?}");
        ensure!(by != "pod" || answer.request_seen().ends_with(body), "the app has not got all of the request");
        // And it goes on.
        ensure!(connection.get("/", &[OTHER]).await?.answered_by() == Some("pod"), "behind {what}");
        Ok(Outcome { what, by, at: Instant::now() })
    };
    let call = async |what, port| {
        let connection = GrpcCaller::connect(caller, pod.at(port)).await?;
        ensure!(connection.say("before", &[OTHER]).await?.by == "pod");
        let said = connection.say(&breakpoint_of("laptop"), &[MATCHING]).await;
        let at = Instant::now();
        let by = match said {
            Ok(words) => words.by,
            Err(error) => error.downcast_ref::<tonic::Status>().context("no status")?.code().to_string(),
        };
        ensure!(connection.say("behind", &[OTHER]).await?.by == "pod", "behind {what}");
        Ok(Outcome { what, by, at })
    };
    let tcp = async {
        let what = "a connection";
        let script = Script::new().send(b"hello").read(5).hold();
        let connection = RawCaller::connect(caller, pod.at(TCP), script).await?;
        eventually(SOON, "the laptop has echoed", || async { connection.progress().received == 5 }).await?;
        connection.release();
        let seen = connection.ended(PROMISED * 2).await?;
        ensure!(seen.bytes == b"hello" && app.connections().is_empty(), "{seen}");
        let by = if seen.end == Some(End::Reset) { "reset".to_owned() } else { seen.to_string() };
        anyhow::Ok(Outcome { what, by, at: Instant::now() })
    };
    let story = async {
        eventually(SOON, "all of them are at their breakpoint", || async {
            local_web.connections().len() == 3 && local_calls.calls().len() == 2 && local_tcp.progress(0).received == 5
        })
        .await?;
        let gone = Instant::now();
        go(&stage, &client)?;
        anyhow::Ok(gone)
    };
    let (get, post, rejected, passed_call, rejected_call, connection, gone) = Box::pin(async {
        tokio::try_join!(
            web("GET", http, "GET", b""),
            web("POST", http, "POST", &body),
            web("GET, refused", http_rejects, "GET", b""),
            call("gRPC", grpc),
            call("gRPC, refused", grpc_rejects),
            tcp,
            story,
        )
    })
    .await?;
    let unavailable = tonic::Code::Unavailable.to_string();
    for (outcome, expected) in [
        (get, "pod"),
        (post, "pod"),
        (rejected, "503"),
        (passed_call, "pod"),
        (rejected_call, unavailable.as_str()),
        (connection, "reset"),
    ] {
        let Outcome { what, by, at } = outcome;
        let took = at.duration_since(gone);
        ensure!(by == expected, "{what}: {by} instead of {expected}");
        if took > PROMISED {
            bail!("{what}: {took:?}");
        }
        eprintln!("{name}: {what} was answered ({by}) after {took:?}");
    }
    agent.disconnected(&stage.key, PROMISED).await?;
    if client.process().is_running() {
        // Stopped or cut off: it must be able to end.
        client.process().signal(Signal::SIGCONT)?;
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c02_a_short_outage_breaks_nothing() -> Result<()> {
    const OUTAGE: Duration = Duration::from_secs(2);
    let stage = Stage::new("c02_short")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let local = RawApp::start(
        &stage.laptop,
        any(PORT),
        Script::new()
            .read_until(b"\r\n\r\n")
            .hold()
            .send(b"HTTP/1.1 200 OK\r\nx-answered-by: laptop\r\ncontent-length: 0\r\n\r\n"),
    )?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("c02", &[PORT])])).await?;
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;

    let to = pod.at(PORT);
    let story = async {
        eventually(SOON, "the request is at its breakpoint", || async { !local.connections().is_empty() }).await?;
        stage.to_laptop.cut()?;
        let begin = Instant::now();
        // Requests that come meanwhile: answered by the app, each after a second at most.
        while begin.elapsed() < OUTAGE {
            ensure!(asked(caller, to, OTHER).await? == "pod");
            ensure!(asked(caller, to, MATCHING).await? == "pod", "through a cable that is cut");
        }
        stage.to_laptop.heal()?;
        local.release();
        anyhow::Ok(())
    };
    let (by, ()) = tokio::try_join!(asked(caller, to, MATCHING), story)?;
    ensure!(by == "laptop", "the request that was under way was answered by {by}");
    eventually(SOON, "the laptop answers again", || async {
        asked(caller, to, MATCHING).await.is_ok_and(|by| by == "laptop")
    })
    .await?;
    let connections = client.process().output().matches("connected to").count();
    ensure!(connections == 1, "the connection has not survived: {}", client.process().output());
    stage.finish()
}
