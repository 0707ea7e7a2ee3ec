//! What can be said of a request, on the command line and in the resource, is what is done in the pods: each word once.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::eventually;

use super::{
    breaking::agent_process,
    laptop::Laptop,
    stage::{LIMIT, Stage},
};

const TO: &str = "http://add/sum";

/// A way of saying which requests.
struct Wording {
    /// On the command line.
    said: &'static [&'static str],
    /// In the resource.
    written: Value,
    /// A header of a request that fits.
    fits: &'static str,
    /// One of a request that does not.
    other: &'static str,
}

fn wordings() -> Vec<Wording> {
    let always = "x-user: adam";
    let wording = |said, written, fits, other| Wording { said, written, fits, other };
    vec![
        wording(
            &["--header", "X-User~=a.*m"],
            json!({ "headers": [{ "type": "RegularExpression", "name": "x-user", "value": "a.*m" }] }),
            always,
            "x-user: adam2",
        ),
        // The case b18.
        wording(
            &["--baggage", "sluice=adam"],
            json!({ "baggage": [{ "name": "sluice", "value": "adam" }] }),
            "baggage: a=1,sluice=adam;p=q",
            "baggage: a=1;sluice=adam,sluice2=adam",
        ),
        wording(
            &["--path", "/sum", "--method", "POST", "--header", "x-user=adam"],
            json!({ "headers": [{ "name": "x-user", "value": "adam" }], "method": "POST",
                "path": { "type": "Exact", "value": "/sum" } }),
            always,
            "x-user: bertil",
        ),
        wording(
            &["--path-prefix", "/su", "--header", "x-user=adam"],
            json!({ "headers": [{ "name": "x-user", "value": "adam" }], "path": { "type": "PathPrefix", "value": "/su" } }),
            // By whole elements: nothing fits.
            "",
            always,
        ),
        wording(
            &["--path-regex", "/s.m"],
            json!({ "path": { "type": "RegularExpression", "value": "/s.m" } }),
            always,
            "",
        ),
    ]
}

/// What of a rule stands in the resource, without what nobody has said.
fn stated(found: &Value) -> Value {
    let mut stated = found.clone();
    let defaults = |condition: &mut Value| {
        if condition["type"] == "Exact"
            && condition.get("name").is_some()
            && let Some(fields) = condition.as_object_mut()
        {
            fields.remove("type");
        }
    };
    for list in ["headers", "baggage"] {
        stated[list].as_array_mut().into_iter().flatten().for_each(defaults);
        if stated[list].is_null()
            && let Some(fields) = stated.as_object_mut()
        {
            fields.remove(list);
        }
    }
    stated
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn b18_every_condition_is_understood_by_command_resource_and_agent() -> Result<()> {
    let stage = Stage::new("b18").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let port = laptop.port("http");
    for Wording { said, written, fits, other } in wordings() {
        let intercepting = ann.intercept(&[&["add", "--port", &port][..], said].concat()).await?;
        let found = stage.intercept("add").await?;
        ensure!(stated(&found["spec"]["match"]) == written, "{said:?}: {}", found["spec"]["match"]);
        for (header, by) in [(fits, "laptop"), (other, "pod")].into_iter().filter(|(header, _)| !header.is_empty()) {
            let told = stage.call(&[TO, "--count", "5", "--header", header]).await?;
            told.all_by(by, 5).with_context(|| format!("{said:?}, {header}"))?;
        }
        intercepting.stop().await?;
    }
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn b16_wiretaps_see_what_the_app_answers_beside_an_intercept() -> Result<()> {
    let stage = Stage::new("b16").await?;
    stage.deploy("add", 2).await?;
    let (ann, bob, cid) = (stage.user("ann").await?, stage.user("bob").await?, stage.user("cid").await?);
    let (tap, other_tap) = (Laptop::start("tap").await?, Laptop::start("other-tap").await?);
    let laptop = Laptop::start("laptop").await?;
    let wiretap = ["--mode", "wiretap", "--header", "x-user=ann"];
    let mut all = Vec::new();
    for (user, name, at, options) in [
        (&ann, "one", &tap, &wiretap[..]),
        (&bob, "two", &other_tap, &wiretap[..]),
        (&cid, "own", &laptop, &["--header", "x-user=ann", "--header", "x-take=yes"][..]),
    ] {
        let port = at.port("http");
        all.push(user.intercept(&[&[name, "--workload", "add", "--port", &port][..], options].concat()).await?);
    }
    let mine = [TO, "--count", "20", "--header", "x-user: ann"];
    stage.call(&mine).await?.all_by("pod", 20)?;
    stage.call(&[&mine[..], &["--header", "x-take: yes"]].concat()).await?.all_by("laptop", 20)?;
    stage.call(&[TO, "--count", "20", "--header", "x-user: bob"]).await?.all_by("pod", 20)?;
    for tap in [&tap, &other_tap] {
        eventually(LIMIT, "the laptop has a copy of each request that fits, and of no other", || async {
            ensure!(tap.requests()? == 40, "{} copies", tap.requests()?);
            Ok(())
        })
        .await?;
    }
    ensure!(laptop.requests()? == 20);
    for intercepting in all {
        intercepting.stop().await?;
    }
    stage.finish().await
}

/// How many connections the app in the one pod of `add` has on its port for HTTP.
async fn connections(stage: &Stage) -> Result<usize> {
    /// Port 8080 and the state `ESTABLISHED`, as the kernel writes them.
    const HTTP: &str = ":1F90";
    const ESTABLISHED: &str = "01";
    let pods: Value = stage.namespace.kubectl(&["get", "pods", "--selector=app=add"]).json().await?;
    let uid = pods["items"][0]["metadata"]["uid"].as_str().context("no pod")?;
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp6", agent_process(uid)?))?;
    let words = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(words.filter(|words| words.len() > 3 && words[1].ends_with(HTTP) && words[3] == ESTABLISHED).count())
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a12_connections_from_before_are_told_and_end_only_where_it_is_asked_for() -> Result<()> {
    let stage = Stage::new("a12").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let port = laptop.port("http");
    for (options, breaks) in [(&[][..], false), (&["--reset-existing"][..], true)] {
        let kept = [TO, "--keep-alive", "--during", "25", "--every", "50"];
        let (kept, told) = tokio::join!(stage.call(&kept), async {
            eventually(LIMIT, "the connection is there", || async {
                ensure!(connections(&stage).await? == 1);
                Ok(())
            })
            .await?;
            let intercepting = ann.intercept(&[&["add", "--port", &port][..], options].concat()).await?;
            // Whoever comes now is taken.
            stage.call(&[TO, "--count", "5"]).await?.all_by("laptop", 5)?;
            let shown: Value = serde_json::from_str(&ann.succeed(&["status", "-o", "json"]).await?)?;
            let summary = intercepting.summary.clone();
            intercepting.stop().await?;
            Ok::<_, anyhow::Error>((shown, summary))
        });
        let (kept, (shown, summary)) = (kept?, told?);
        let existing = &shown["intercepts"][0]["pods"][0]["existingConnections"];
        if breaks {
            // The one from before, and the one that was taken instead, when the intercept ends.
            ensure!((1..=2).contains(&kept.failed), "the connection from before is to break: {kept:?}");
            ensure!(kept.answers.contains_key("laptop"), "the next one is taken: {kept:?}");
            ensure!(existing == 0, "{shown}");
        } else {
            ensure!(kept.failed == 0 && kept.answers.keys().all(|who| who == "pod"), "{kept:?}");
            ensure!(existing == 1, "{shown}");
            ensure!(summary.contains("1 connections from before; --reset-existing ends them"), "{summary}");
        }
    }
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c11_probes_are_left_out_of_rules_for_requests_unless_they_are_asked_for() -> Result<()> {
    let stage = Stage::new("c11-words").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let port = laptop.port("http");
    for (options, by) in [(&[][..], "pod"), (&["--include-probes"][..], "laptop")] {
        let all = [&["add", "--port", &port, "--path-prefix", "/"][..], options].concat();
        let intercepting = ann.intercept(&all).await?;
        stage.call(&[TO, "--count", "5"]).await?.all_by("laptop", 5)?;
        stage.call(&[TO, "--count", "5", "--header", "user-agent: kube-probe/1.37"]).await?.all_by(by, 5)?;
        intercepting.stop().await?;
    }
    stage.finish().await
}
