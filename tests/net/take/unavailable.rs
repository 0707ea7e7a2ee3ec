//! a08: nobody listens on the laptop. Each request is answered as the intercept says, at once, and the intercept goes
//! on: it works as soon as somebody listens.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sluice_tests::{
    Agent, Client, Host, eventually,
    peers::{
        grpc::{GrpcApp, GrpcCaller},
        http1::{Http1App, Http1Caller, Response},
        raw::{End, RawApp, RawCaller, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{SOON, any, asked, get};

/// Requests over connections of their own, and over connections kept alive.
const FRESH: usize = 500;
const KEPT: usize = 10;
const PER_KEPT: usize = 50;
/// How many connections are used at once.
const AT_ONCE: usize = 20;

/// No answer may wait for anything but a refused connection on the laptop.
const AT_ONCE_ANSWERED: Duration = Duration::from_millis(900);

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a08_passes_a_thousand_requests_on_while_nobody_listens() -> Result<()> {
    nobody_listens(
        "a08_pass",
        |rule| rule,
        |response| {
            ensure!(response.answered_by() == Some("pod"), "{response:?}");
            Ok(())
        },
    )
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a08_rejects_a_thousand_requests_while_nobody_listens() -> Result<()> {
    nobody_listens("a08_reject", Rule::reject, |response| {
        ensure!(response.status == 503 && response.header("retry-after") == Some("1"), "{response:?}");
        ensure!(response.answered_by().is_none(), "an app has answered: {response:?}");
        Ok(())
    })
    .await
}

async fn nobody_listens(
    name: &str,
    policy: impl Fn(Rule) -> Rule,
    check: impl Fn(&Response) -> Result<()> + Copy,
) -> Result<()> {
    let stage = Stage::new(name)?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let app = Http1App::start(pod, any(8080), "pod")?;
    let agent = Agent::start(pod, &Rule::file(&[policy(stage.header("a08", &[8080]))])).await?;
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;

    let to = pod.at(8080);
    stream::iter(0..FRESH)
        .map(|number| async move {
            let begin = Instant::now();
            check(&get(caller, to, MATCHING).await?).with_context(|| format!("connection {number}"))?;
            ensure!(begin.elapsed() < AT_ONCE_ANSWERED, "connection {number} took {:?}", begin.elapsed());
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    stream::iter(0..KEPT)
        .map(|_| async move {
            let mut connection = Http1Caller::connect(caller, to).await?;
            for number in 0..PER_KEPT {
                let begin = Instant::now();
                check(&connection.get("/", &[MATCHING]).await?).with_context(|| format!("kept alive, {number}"))?;
                ensure!(begin.elapsed() < AT_ONCE_ANSWERED, "request {number} took {:?}", begin.elapsed());
                let other = connection.get("/", &[OTHER]).await?;
                ensure!(other.answered_by() == Some("pod"), "a request that does not match: {other:?}");
            }
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let requests = i64::try_from(FRESH + KEPT * PER_KEPT)?;
    let counted = agent.counter("unavailablePassed").await? + agent.counter("rejected").await?;
    ensure!(counted == requests, "{counted} of {requests} counted");
    let told = client.process().output().matches("nobody listens").count();
    ensure!(told == 1, "the developer was told {told} times instead of once: {}", client.process().output());

    // The intercept has survived: somebody listens, goes away and comes again.
    for _ in 0..2 {
        let local = Http1App::start(&stage.laptop, any(8080), "laptop")?;
        let mut connection = Http1Caller::connect(caller, to).await?;
        for _ in 0..10 {
            ensure!(asked(caller, to, MATCHING).await? == "laptop");
            ensure!(asked(caller, to, OTHER).await? == "pod");
            ensure!(connection.get("/", &[MATCHING]).await?.answered_by() == Some("laptop"));
        }
        drop(local);
        let gone = || async { anyhow::Ok(check(&get(caller, to, MATCHING).await?)?) };
        eventually(SOON, "the local process is gone", gone).await?;
        // Its connection to the laptop was idle when the local process went away.
        check(&connection.get("/", &[MATCHING]).await?).context("a connection that had been answered by the laptop")?;
    }
    ensure!(app.requests().iter().all(|request| request.header(MATCHING.0).is_some()));
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a08_all_tcp_is_passed_on_or_reset_while_nobody_listens() -> Result<()> {
    const CONNECTIONS: usize = 100;
    let stage = Stage::new("a08_tcp")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let hello = |name: &str| Script::new().send(name.as_bytes()).half_close();
    let passes = RawApp::start(pod, any(1), hello("pod"))?;
    let rejects = RawApp::start(pod, any(2), hello("pod"))?;
    let rules = [stage.tcp("passes", &[1]), stage.tcp("rejects", &[2]).reject()];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["1", "2"]).await?;

    for _ in 0..CONNECTIONS {
        ensure!(heard(caller, pod.at(1)).await? == (b"pod".to_vec(), End::Closed));
        ensure!(heard(caller, pod.at(2)).await? == (Vec::new(), End::Reset), "neither reset nor at once");
    }
    ensure!(passes.connections().len() == CONNECTIONS && rejects.connections().is_empty());

    let _locals = [
        RawApp::start(&stage.laptop, any(1), hello("laptop"))?,
        RawApp::start(&stage.laptop, any(2), hello("laptop"))?,
    ];
    for port in [1, 2] {
        ensure!(heard(caller, pod.at(port)).await? == (b"laptop".to_vec(), End::Closed), "port {port}");
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a08_grpc_calls_are_answered_as_the_intercept_says_while_nobody_listens() -> Result<()> {
    const CALLS: usize = 100;
    let stage = Stage::new("a08_grpc")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _apps = [GrpcApp::start(pod, any(1), "pod")?, GrpcApp::start(pod, any(2), "pod")?];
    let rules = [stage.header("passes", &[1]), stage.header("rejects", &[2]).reject()];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["1", "2"]).await?;
    let passes = GrpcCaller::connect(caller, pod.at(1)).await?;
    let rejects = GrpcCaller::connect(caller, pod.at(2)).await?;

    for _ in 0..CALLS {
        for (calls, header) in [(&passes, MATCHING), (&passes, OTHER), (&rejects, OTHER)] {
            ensure!(calls.say("hello", &[header]).await?.by == "pod", "{header:?}");
        }
        let error = rejects.say("hello", &[MATCHING]).await.err().context("neither rejected nor passed on")?;
        let status = error.downcast_ref::<tonic::Status>().context("not a gRPC status")?;
        ensure!(status.code() == tonic::Code::Unavailable, "{status:?}");
        ensure!(status.metadata().get("retry-after").is_some_and(|value| value == "1"), "{status:?}");
    }

    let _locals = [GrpcApp::start(&stage.laptop, any(1), "laptop")?, GrpcApp::start(&stage.laptop, any(2), "laptop")?];
    for calls in [&passes, &rejects] {
        ensure!(calls.say("hello", &[MATCHING]).await?.by == "laptop", "over the connection that there was before");
        ensure!(calls.say("hello", &[OTHER]).await?.by == "pod");
    }
    stage.finish()
}

/// What a caller hears that says nothing, and how it ends. A reset may come before it even knows that it is connected.
async fn heard(caller: &Host, to: SocketAddr) -> Result<(Vec<u8>, End)> {
    let connected = match RawCaller::connect(caller, to, Script::new()).await {
        Err(error) if kind(&error) == Some(io::ErrorKind::ConnectionReset) => return Ok((Vec::new(), End::Reset)),
        connected => connected?,
    };
    let seen = connected.ended(SOON).await?;
    Ok((seen.bytes, seen.end.context("not ended")?))
}

fn kind(error: &anyhow::Error) -> Option<io::ErrorKind> {
    Some(error.downcast_ref::<io::Error>()?.kind())
}
