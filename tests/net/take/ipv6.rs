//! a11: taking and deciding where there is IPv6 only, and where there are both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, Host, eventually,
    peers::{
        grpc::{GrpcApp, GrpcCaller},
        http1::{Http1App, Http1Caller},
        raw::{RawApp, RawCaller, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{SOON, any, asked};

/// All TCP on this port.
const RAW: u16 = 7;
/// HTTP/1 and gRPC on these, by header; and HTTP/1 that nobody intercepts.
const HTTP: u16 = 8080;
const GRPC: u16 = 9090;
const OTHER_PORT: u16 = 8081;

const TO_POD: &[u8] = b"hello pod";

/// Apps of the same kind on all ports, on one host.
struct Apps {
    raw: RawApp,
    http: Http1App,
    _grpc: GrpcApp,
    _other: Http1App,
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a11_with_ipv6_only_everything_is_taken_and_decided_as_with_ipv4() -> Result<()> {
    let stage = Stage::v6_only("a11_v6")?;
    ensure!(stage.pod.v4_addresses().is_empty() && stage.laptop.v4_addresses().is_empty());
    for on in [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, stage.pod.v6_addresses()[0]] {
        Box::pin(basics(&stage, on.into(), Ipv6Addr::LOCALHOST.into(), &[stage.pod.at(0)]))
            .await
            .with_context(|| format!("the app listens on {on}"))?;
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a11_with_both_families_callers_of_each_are_taken_and_decided() -> Result<()> {
    let stage = Stage::new("a11_dual")?;
    let both = [stage.pod.at(0), stage.pod.at_v6(0)?];
    ensure!(both[0].is_ipv4() && both[1].is_ipv6());
    for (on, local) in [
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::LOCALHOST)),
        (Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    ] {
        Box::pin(basics(&stage, on, local, &both))
            .await
            .with_context(|| format!("the app listens on {on}, the local process on {local}"))?;
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a11_where_ipv6_is_switched_off_ipv4_works_alone() -> Result<()> {
    let stage = Stage::new("a11_v4")?;
    for host in [&stage.caller, &stage.pod, &stage.laptop] {
        host.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
    }
    let all = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Box::pin(basics(&stage, all, all, &[stage.pod.at(0)])).await?;
    stage.finish()
}

/// An agent from start to end: all that matches goes to the laptop, all that does not to the app, whichever of the pod's
/// addresses was called.
async fn basics(stage: &Stage, app_on: IpAddr, local_on: IpAddr, called: &[SocketAddr]) -> Result<()> {
    // Those of the round before have been dropped, and go as soon as the runtime gets round to it.
    let free =
        |host, on, name| eventually(SOON, "the ports are free", move || async move { Apps::start(host, on, name) });
    let apps = free(&stage.pod, app_on, "pod").await?;
    let locals = free(&stage.laptop, local_on, "laptop").await?;
    let rules = [stage.tcp("raw", &[RAW]), stage.header("decided", &[HTTP, GRPC])];
    let agent = Agent::start(&stage.pod, &Rule::file(&rules)).await?;
    let address = agent.address();
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["7", "8080", "9090"]).await?;
    let seen = agent.connected(&stage.key).await?.address.ip().to_canonical();
    ensure!(seen == stage.laptop.address(), "the client came from {seen} to {address}");

    for pod in called {
        let at = |port| SocketAddr::new(pod.ip(), port);
        Box::pin(decided(&stage.caller, at)).await.with_context(|| format!("called at {}", pod.ip()))?;
    }
    let taken = locals.raw.connections();
    ensure!(taken.len() == called.len() && taken.iter().all(|seen| seen.bytes == TO_POD), "{taken:?}");
    ensure!(apps.raw.connections().is_empty(), "the app has seen what was taken");
    let header = |app: &Http1App, value: &str| app.requests().iter().all(|seen| seen.header(OTHER.0) == Some(value));
    ensure!(header(&apps.http, OTHER.1) && header(&locals.http, MATCHING.1), "a request went to both");

    ensure!(client.terminate().await?.success() && agent.terminate().await?.success());
    stage.pod.nothing_left(SOON).await
}

async fn decided(caller: &Host, at: impl Fn(u16) -> SocketAddr) -> Result<()> {
    let raw = RawCaller::connect(caller, at(RAW), Script::new().send(TO_POD).half_close()).await?;
    let heard = raw.ended(SOON).await?;
    ensure!(heard.bytes == b"laptop", "all TCP: {heard}");

    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
        ensure!(asked(caller, at(HTTP), header).await? == by, "HTTP/1 with {header:?}");
    }
    ensure!(asked(caller, at(OTHER_PORT), MATCHING).await? == "pod", "a port that was not asked for");
    let mut kept = Http1Caller::connect(caller, at(HTTP)).await?;
    let calls = GrpcCaller::connect(caller, at(GRPC)).await?;
    for (header, by) in [(OTHER, "pod"), (MATCHING, "laptop"), (OTHER, "pod")] {
        let response = kept.get("/", &[header]).await?;
        ensure!(response.answered_by() == Some(by), "kept alive, with {header:?}: {response:?}");
        ensure!(calls.say("hello", &[header]).await?.by == by, "gRPC with {header:?}");
        let heard = calls.chat(&["one", "two"], &[header]).await?;
        ensure!(heard.iter().all(|words| words.by == by), "gRPC streaming with {header:?}: {heard:?}");
    }
    Ok(())
}

// === impl Apps ===

impl Apps {
    fn start(host: &Host, on: IpAddr, name: &str) -> Result<Self> {
        // The port that nobody intercepts is reached without the agent, so by every address.
        let other = if host.enter(|| std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok())? {
            any(OTHER_PORT)
        } else {
            (Ipv4Addr::UNSPECIFIED, OTHER_PORT).into()
        };
        Ok(Self {
            raw: RawApp::start(host, (on, RAW).into(), Script::new().send(name.as_bytes()).half_close())?,
            http: Http1App::start(host, (on, HTTP).into(), name)?,
            _grpc: GrpcApp::start(host, (on, GRPC).into(), name)?,
            _other: Http1App::start(host, other, name)?,
        })
    }
}
