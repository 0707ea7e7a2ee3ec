//! Several developers on one workload: the cases b14 and b15 on the cluster.

use std::{fs::File, thread};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use sluice::{Config, Identity, LocalHost, PortForward, Ports, Tunnel, Ways};
use sluice_tests::{
    eventually,
    peers::http1::{Answer, Http1App},
};
use tokio_util::sync::CancellationToken;

use super::{
    laptop::Laptop,
    stage::{LIMIT, Stage},
};

/// Developers at once on one port.
const MANY: usize = 250;

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn b14_each_of_two_and_of_250_developers_answers_the_requests_that_are_theirs() -> Result<()> {
    let stage = Stage::new("b14").await?;
    stage.deploy("add", 1).await?;
    let (adam, bertil) = (stage.user("adam").await?, stage.user("bertil").await?);
    let (first, second) = (Laptop::start("adam").await?, Laptop::start("bertil").await?);
    let adams = ["adam", "--workload", "add", "--port", &first.port("http"), "--header", "x-user=adam"];
    let bertils = ["bertil", "--workload", "add", "--port", &second.port("http"), "--header", "x-user=bertil"];
    let (adams, bertils) = tokio::try_join!(adam.intercept(&adams), bertil.intercept(&bertils))?;
    let many = ["http://add/sum", "--count", "100", "--parallel", "10"];
    for (header, who) in [("x-user: adam", "adam"), ("x-user: bertil", "bertil"), ("x-user: caesar", "pod")] {
        stage.call(&[&many[..], &["--header", header]].concat()).await?.all_by(who, 100)?;
    }
    adams.stop().await?;
    stage.call(&[&many[..], &["--header", "x-user: adam"]].concat()).await?.all_by("pod", 100)?;
    stage.call(&[&many[..], &["--header", "x-user: bertil"]].concat()).await?.all_by("bertil", 100)?;
    let agent = stage.intercept("bertil").await?["status"]["pods"][0].clone();
    bertils.stop().await?;

    // 250 clients in one thread in the node's network, each with a key and a local server of its own.
    let address: sluice::AgentAddress = agent["tunnel"].as_str().context("no tunnel")?.parse()?;
    let agent_key = agent["keyHash"].as_str().context("no key")?.parse()?;
    let network = File::open(stage.cluster.network_namespace()?)?;
    let identities = (0..MANY).map(|_| Identity::generate()).collect::<Result<Vec<_>, _>>()?;
    let keys: Vec<_> = identities.iter().map(|identity| identity.hash().to_string()).collect();
    let items: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| {
            json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "Intercept", "metadata": { "name": format!("dev-{number}") },
        "spec": { "target": { "kind": "Deployment", "name": "add" }, "ports": [{ "port": 8080 }],
            "match": { "headers": [{ "name": "x-user", "value": format!("dev-{number}") }] },
            "client": { "keyHash": key } } })
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
    stage.namespace.kubectl(&["create", "-f", "-"]).input(&list).within(LIMIT).run().await?;
    let stop = CancellationToken::new();
    let (stopped, stop) = (stop.clone(), stop.drop_guard());
    let clients = thread::spawn(move || -> Result<()> {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut running = Vec::new();
            for (number, identity) in identities.into_iter().enumerate() {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                let local = listener.local_addr()?.port();
                let app = Http1App::over(listener, &format!("dev-{number}"), Answer::identity)?;
                let port: PortForward = format!("{local}:8080").parse()?;
                let config = Config {
                    agent: address.clone(),
                    agent_key,
                    identity,
                    ports: Ports::new(vec![port])?,
                    to: LocalHost::default(),
                    ways: Ways::default(),
                };
                running.push((app, Tunnel::start(config)?));
            }
            stopped.cancelled().await;
            Ok(())
        })
    });
    eventually(LIMIT, "all intercepts are ready", || async {
        let all = stage.namespace.get("intercepts").await?;
        let ready = all["items"].as_array().into_iter().flatten();
        let ready = ready.filter(|item| super::stage::condition(item, "Ready").as_deref() == Some("True")).count();
        ensure!(ready == MANY, "{ready} of {MANY}");
        Ok(())
    })
    .await?;
    let count = (MANY * 10).to_string();
    let each = ["--spread", "250", "--header", "x-user: dev-{n}", "--expect", "dev-{n}", "--parallel", "10"];
    let told = stage.call(&[&["http://add/sum", "--count", &count][..], &each].concat()).await?;
    ensure!(told.failed == 0 && told.answers.len() == MANY && told.answers.values().all(|&n| n == 10), "{told:?}");
    stage.call(&many).await?.all_by("pod", 100)?;
    drop(stop);
    clients.join().map_err(|_| anyhow::anyhow!("the clients' thread panicked"))??;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn b15_what_overlaps_is_refused_with_the_others_name_and_owner_and_the_rest_has_an_order() -> Result<()> {
    let stage = Stage::new("b15").await?;
    stage.deploy("add", 1).await?;
    let (ann, bob) = (stage.user("ann").await?, stage.user("bob").await?);
    let (first, second) = (Laptop::start("ann").await?, Laptop::start("bob").await?);
    let (anns, bobs) = (first.port("http"), second.port("http"));
    let ready = ann.intercept(&["anns", "--workload", "add", "--port", &anns, "--header", "x-user=ann"]).await?;
    let add = ["intercept", "add", "bobs", "--workload", "add", "--port", &bobs];
    for overlapping in [&["--header", "x-user=ann"][..], &["--header", "x-user=ann", "--path-prefix", "/v1"], &[]] {
        let refused = bob.fail(&[&add[..], overlapping].concat()).await?;
        ensure!(refused.contains("anns") && refused.contains(&ann.name), "{overlapping:?}: {refused}");
    }
    // What is disjoint may be, and of a request with both values the older one's owner gets it, every time.
    let disjoint = bob.intercept(&[&add[2..], &["--header", "x-user=bob"]].concat()).await?;
    let call = ["http://add/sum", "--count", "20"];
    for (headers, who) in [
        (&["--header", "x-user: ann"][..], "ann"),
        (&["--header", "x-user: bob"], "bob"),
        (&["--header", "x-user: bob", "--header", "x-user: ann"], "ann"),
        (&["--header", "x-user: ann", "--header", "x-user: bob"], "ann"),
        (&[], "pod"),
    ] {
        stage.call(&[&call[..], headers].concat()).await?.all_by(who, 20)?;
    }
    ready.stop().await?;
    // A global one conflicts with all that there are.
    let refused = ann.fail(&["intercept", "add", "all", "--workload", "add", "--port", &anns]).await?;
    ensure!(refused.contains("bobs") && refused.contains(&bob.name), "{refused}");
    disjoint.stop().await?;
    let everything = ann.intercept(&["all", "--workload", "add", "--port", &anns]).await?;
    stage.call(&call).await?.all_by("ann", 20)?;
    everything.stop().await?;
    stage.finish().await
}
