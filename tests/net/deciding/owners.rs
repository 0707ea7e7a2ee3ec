//! b14, b15: many developers on one port. Each request is answered by its owner, and of several by always the same one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use serde_json::json;
use sluice::{Config, Identity, LocalHost, PortForward, Ports, State, Tunnel, Ways};
use sluice_tests::{
    Agent, Client, ClientKey, Lab, eventually,
    peers::http1::{Http1App, Http1Caller},
    stage::Rule,
};
use tokio::sync::oneshot;

use super::stage::{LAPTOP, POD, PORT, on};

/// Intercepts on one port.
const OWNERS: u16 = 250;

/// Parallel requests for each of them.
const PARALLEL: usize = 10;

/// Owners that connect, or whose requests are under way, at a time.
const AT_ONCE: usize = 5;

/// Attempts after a refusal.
const ATTEMPTS: usize = 20;

/// Where the local process of the first one listens.
const FIRST_PORT: u16 = 20_000;

/// For this many handshakes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b14_two_developers_share_a_port() -> Result<()> {
    let lab = Lab::new("b14_two")?;
    let (caller, pod) = (lab.host("caller").build()?, lab.host(POD).build()?);
    lab.connect(&caller, &pod)?;
    let _app = Http1App::start(&pod, on(PORT), POD)?;
    let (mut hosts, mut rules) = (Vec::new(), Vec::new());
    // Not in the order of their age.
    for (name, created) in [("bertil", "2026-01-02T00:00:00Z"), ("adam", "2026-01-01T00:00:00Z")] {
        let (host, key) = (lab.host(name).build()?, ClientKey::new(&lab, name)?);
        lab.connect(&host, &pod)?;
        let matches = json!({"headers": [{"name": "x-user", "value": name}]});
        rules.push(Rule::tcp(name, &[PORT], &key).with("match", matches).with("created", json!(created)));
        hosts.push((Http1App::start(&host, on(PORT), name)?, host, key));
    }
    let agent = Agent::start(&pod, &Rule::file(&rules)).await?;
    let mut clients = Vec::new();
    for (_, host, key) in &hosts {
        clients.push(Client::start(host, &agent, key, &["8080"]).await?);
    }
    let mut connection = Http1Caller::connect(&caller, pod.at(PORT)).await?;
    for _ in 0..10 {
        for (headers, owner) in [
            (&[("x-user", "adam")][..], "adam"),
            (&[("x-user", "bertil")], "bertil"),
            (&[("x-user", "eva")], POD),
            (&[], POD),
            // As much the one's as the other's: the older one has it.
            (&[("x-user", "bertil"), ("x-user", "adam")], "adam"),
        ] {
            let answer = connection.get("/", headers).await?;
            ensure!(answer.answered_by() == Some(owner), "{headers:?}: {:?}", answer.answered_by());
        }
    }
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b15_rules_go_by_conditions_then_age_then_the_file() -> Result<()> {
    const OLD: &str = "2026-01-01T00:00:00Z";
    const YOUNG: &str = "2026-01-02T00:00:00Z";
    let lab = Lab::new("b15_order")?;
    let (caller, pod) = (lab.host("caller").build()?, lab.host(POD).build()?);
    lab.connect(&caller, &pod)?;
    let _app = Http1App::start(&pod, on(PORT), POD)?;
    let (mut hosts, mut rules) = (Vec::new(), Vec::new());
    for (name, created, path) in [("a", OLD, None), ("b", YOUNG, Some("/v1")), ("c", OLD, None), ("d", YOUNG, None)] {
        let (host, key) = (lab.host(name).build()?, ClientKey::new(&lab, name)?);
        lab.connect(&host, &pod)?;
        let mut matches = json!({"headers": [{"name": format!("x-{name}"), "value": "1"}]});
        path.into_iter().for_each(|path| matches["path"] = json!({"value": path}));
        rules.push(Rule::tcp(name, &[PORT], &key).with("match", matches).with("created", json!(created)));
        hosts.push((Http1App::start(&host, on(PORT), name)?, host, key));
    }
    let agent = Agent::start(&pod, &Rule::file(&rules)).await?;
    let mut clients = Vec::new();
    for (_, host, key) in &hosts {
        clients.push(Client::start(host, &agent, key, &["8080"]).await?);
    }
    let every = [("x-a", "1"), ("x-b", "1"), ("x-c", "1"), ("x-d", "1")];
    // Each order of the file has another one first, and another one of the equally old first.
    for (turn, first) in ["a", "c", "c", "a"].into_iter().enumerate() {
        if turn > 0 {
            rules.rotate_left(1);
            agent.set_rules(&Rule::file(&rules)).await?;
        }
        let mut connection = Http1Caller::connect(&caller, pod.at(PORT)).await?;
        for (path, headers, owner) in [
            ("/v1", &every[..], "b"),
            ("/", &every, first),
            ("/", &every[1..3], "c"),
            ("/", &[every[0], every[3]], "a"),
            ("/", &every[3..], "d"),
            ("/", &every[1..2], POD),
        ] {
            let answer = connection.get(path, headers).await?;
            ensure!(answer.answered_by() == Some(owner), "{turn}: {path} {headers:?}: {:?}", answer.answered_by());
        }
    }
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b14_250_intercepts_on_one_port_each_answered_by_its_owner() -> Result<()> {
    let lab = Lab::new("b14_many")?;
    let host = |name| lab.host(name).build();
    let (caller, pod, laptop) = (host("caller")?, host(POD)?, host(LAPTOP)?);
    lab.connect(&caller, &pod)?;
    lab.connect(&laptop, &pod)?;
    let _app = Http1App::start(&pod, on(PORT), POD)?;
    let name = |number: u16| format!("developer-{number}");
    let (mut locals, mut clients, mut rules) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..OWNERS {
        let (local, identity) = (FIRST_PORT + number, Identity::generate()?);
        locals.push(Http1App::start(&laptop, on(local), &name(number))?);
        rules.push(json!({
            "name": name(number),
            "ports": [{"port": PORT}],
            "match": {"headers": [{"name": "x-user", "value": name(number)}]},
            // Told apart from the app's answer: a client that a busy machine did not let accept within its second.
            "onUnavailable": "Reject",
            "client": {"keyHash": identity.hash()},
        }));
        clients.push((identity, local));
    }
    let agent = Agent::start(&pod, &json!({ "intercepts": rules }).to_string()).await?;

    // Their clients: each with its own key and connection, all in one process.
    let (address, key) = (agent.address(), agent.key().parse()?);
    let (connected_tx, connected_rx) = oneshot::channel();
    let (stop_tx, stop_rx) = oneshot::channel::<()>();
    let running = laptop.run(move || async move {
        let tunnel = |(identity, local): (_, u16)| async move {
            let forward = PortForward { local: local.try_into()?, remote: PORT.try_into()? };
            let tunnel = Tunnel::start(Config {
                agent: address.into(),
                agent_key: key,
                identity,
                ports: Ports::new([forward])?,
                to: LocalHost::default(),
                ways: Ways::default(),
            })?;
            tunnel.state().wait_for(|state| matches!(state, State::Connected { .. })).await?;
            anyhow::Ok(tunnel)
        };
        // Not all at once: so many handshakes take a busy machine longer than one may.
        let tunnels: Vec<_> = stream::iter(clients).map(tunnel).buffer_unordered(AT_ONCE).try_collect().await?;
        let _ = connected_tx.send(());
        let _ = stop_rx.await;
        try_join_all(tunnels.into_iter().map(Tunnel::stop)).await?;
        anyhow::Ok(())
    })?;
    tokio::time::timeout(LIMIT, connected_rx).await.context("not all clients have connected")??;

    let connected = || async {
        let clients = agent.status().await?.clients.len();
        ensure!(clients == usize::from(OWNERS), "{clients}");
        Ok(())
    };
    eventually(LIMIT, "all clients are connected", connected).await?;

    let ask = |user: String, expected: String| {
        let (caller, to) = (&caller, pod.at(PORT));
        async move {
            let mut answer = Http1Caller::connect(caller, to).await?.get("/", &[("x-user", &user)]).await?;
            for _ in 0..ATTEMPTS {
                if answer.status != 503 {
                    break;
                }
                answer = Http1Caller::connect(caller, to).await?.get("/", &[("x-user", &user)]).await?;
            }
            ensure!(answer.answered_by() == Some(&expected), "{user} is answered by {:?}", answer.answered_by());
            Ok(())
        }
    };
    let owners = stream::iter(0..OWNERS).map(|number| {
        let own = (0..PARALLEL).map(|_| ask(name(number), name(number))).collect::<Vec<_>>();
        let other = ask(format!("{}0", name(number + OWNERS)), POD.to_owned());
        async move { tokio::try_join!(try_join_all(own), other) }
    });
    let all = owners.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>();
    tokio::time::timeout(LIMIT, all).await.context("not through in time")??;
    for (number, local) in locals.iter().enumerate() {
        ensure!(local.requests().len() == PARALLEL, "{number} has answered {}", local.requests().len());
    }
    ensure!(agent.counter("diverted").await? == i64::from(OWNERS) * i64::try_from(PARALLEL)?);
    ensure!(agent.counter("passed").await? == i64::from(OWNERS));
    let _ = stop_tx.send(());
    running.await??;
    lab.finish()
}
