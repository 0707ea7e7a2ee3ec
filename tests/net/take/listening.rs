//! a07: wherever the app listens, what is passed on arrives, and what matches goes to the laptop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, Host, eventually,
    peers::http1::{Answer, Http1App, Http1Caller, Request},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use socket2::SockRef;

use crate::{SOON, any, asked};

const LOCALHOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// How an app listens, and by which of the pod's addresses it can then be reached with an intercept on its port. One
/// that listens on loopback only cannot be reached at all without.
struct Case {
    on: IpAddr,
    v4: bool,
    v6: bool,
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a07_what_passes_on_arrives_wherever_the_app_listens() -> Result<()> {
    let stage = Stage::new("a07")?;
    let pod = &stage.pod;
    let cases = [
        Case { on: pod.at(0).ip(), v4: true, v6: false },
        Case { on: pod.at_v6(0)?.ip(), v4: false, v6: true },
        Case { on: LOCALHOST_V4, v4: true, v6: true },
        Case { on: LOCALHOST_V6, v4: true, v6: true },
        Case { on: ANY_V4, v4: true, v6: true },
        Case { on: ANY_V6, v4: true, v6: true },
    ];
    let ports: Vec<u16> = (8000..).take(cases.len()).collect();
    let mut apps = Vec::new();
    let mut locals = Vec::new();
    for (case, &port) in cases.iter().zip(&ports) {
        apps.push(Http1App::start(pod, (case.on, port).into(), &case.on.to_string())?);
        locals.push(Http1App::start(&stage.laptop, any(port), "laptop")?);
    }
    let named: Vec<_> = ports.iter().map(u16::to_string).collect();
    let named: Vec<_> = named.iter().map(String::as_str).collect();
    let agent = Agent::start(pod, &Rule::file(&[stage.header("a07", &ports)])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &named).await?;

    // Twice: where the app answers is remembered.
    for round in 0..2 {
        for (case, &port) in cases.iter().zip(&ports) {
            for (reached, to) in [(case.v4, pod.at(port)), (case.v6, pod.at_v6(port)?)] {
                if reached {
                    let on = case.on;
                    each_goes_where_it_belongs(&stage.caller, to, &on.to_string()).await.map_err(|error| {
                        error.context(format!("round {round}, the app listens on {on}, called at {to}"))
                    })?;
                } else {
                    let refused =
                        stage.caller.connect(to).await.is_err() || asked(&stage.caller, to, OTHER).await.is_err();
                    ensure!(refused, "the app on {} has answered at {to}", case.on);
                }
            }
        }
    }
    for (app, local) in apps.iter().zip(&locals) {
        let values = |requests: Vec<Request>| {
            requests.iter().filter_map(|request| request.header(MATCHING.0).map(str::to_owned)).collect::<Vec<_>>()
        };
        ensure!(values(app.requests()).iter().all(|value| value == OTHER.1), "the app has got matching requests");
        ensure!(values(local.requests()).iter().all(|value| value == MATCHING.1), "the laptop has got others");
    }
    ensure!(agent.terminate().await?.success());
    pod.nothing_left(SOON).await?;
    stage.finish()
}

/// An app for IPv6 only (`IPV6_V6ONLY`), which no IPv4 address of the pod reaches without an intercept either.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a07_an_app_for_ipv6_only_is_reached_over_ipv6() -> Result<()> {
    let stage = Stage::new("a07_v6only")?;
    let socket = stage.pod.tcp_socket(any(8080))?;
    SockRef::from(&socket).set_only_v6(true)?;
    socket.bind(any(8080))?;
    let _app = Http1App::over(socket.listen(64)?, "pod", Answer::identity)?;
    let _local = Http1App::start(&stage.laptop, any(8080), "laptop")?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("a07", &[8080])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    each_goes_where_it_belongs(&stage.caller, stage.pod.at_v6(8080)?, "pod").await?;
    ensure!(agent.terminate().await?.success());
    // Its route to itself has gone with it.
    stage.pod.nothing_left(SOON).await?;
    stage.finish()
}

/// The sockets of steered connections seem to be bound to the app's port. That must not keep the app from binding to it,
/// neither while they are open nor when they are in TIME_WAIT.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a07_an_app_can_be_started_again_while_its_port_is_intercepted() -> Result<()> {
    let stage = Stage::new("a07_again")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _local = Http1App::start(&stage.laptop, any(8080), "laptop")?;
    let mut app = Http1App::start(pod, any(8080), "first")?;
    let agent = Agent::builder(pod).argument("--drain").argument("0");
    let agent = agent.start(&Rule::file(&[stage.header("a07", &[8080])])).await?;
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let mut open = Vec::new();
    for (name, on) in [("second", any(8080)), ("third", pod.at(8080)), ("fourth", pod.at_v6(8080)?)] {
        let at = if name == "fourth" { vec![pod.at(8080)] } else { vec![pod.at(8080), pod.at_v6(8080)?] };
        for to in at {
            let mut taken = Http1Caller::connect(caller, to).await?;
            let response = taken.get("/", &[MATCHING]).await.with_context(|| format!("before the {name} app"))?;
            ensure!(response.answered_by() == Some("laptop"), "{response:?}");
            open.push(taken);
        }
        drop(app);
        app = eventually(SOON, "the app has started again", || async { Http1App::start(pod, on, name) }).await?;
        let to = if on.ip() == pod.at_v6(8080)?.ip() { on } else { pod.at(8080) };
        each_goes_where_it_belongs(caller, to, name).await.with_context(|| format!("the {name} app"))?;
    }
    // The agent closes first.
    ensure!(client.terminate().await?.success() && agent.terminate().await?.success());
    drop(app);
    eventually(SOON, "the app has started again, and no agent is there", || async {
        Http1App::start(pod, any(8080), "fifth")
    })
    .await?;
    drop(open);
    stage.finish()
}

/// Matching and other requests in turn, over one connection and over connections of their own.
async fn each_goes_where_it_belongs(caller: &Host, to: SocketAddr, app: &str) -> Result<()> {
    for (header, by) in [(OTHER, app), (MATCHING, "laptop"), (OTHER, app)] {
        let answered = asked(caller, to, header).await?;
        ensure!(answered == by, "{header:?} was answered by {answered} instead of {by}");
    }
    let mut connection = Http1Caller::connect(caller, to).await?;
    for (header, by) in [(MATCHING, "laptop"), (OTHER, app), (MATCHING, "laptop"), (OTHER, app)] {
        let response = connection.get("/", &[header]).await?;
        ensure!(response.answered_by() == Some(by), "{header:?} over one connection: {response:?} instead of {by}");
    }
    Ok(())
}
