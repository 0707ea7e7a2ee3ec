//! The command line as its user meets it, and the end of it all: the cases e03, e04 and d09.

use std::{collections::BTreeSet, net::TcpListener, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::eventually;

use super::{
    laptop::Laptop,
    stage::{LIMIT, SYSTEM, Stage, output, text},
    system,
};

/// Names of an object's fields.
fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect()
}

fn ensure_keys(object: &Value, expected: &[&str]) -> Result<()> {
    let expected = expected.iter().copied().collect();
    ensure!(keys(object) == expected, "fields {:?}, and not {expected:?}: {object}", keys(object));
    Ok(())
}

/// That an Intercept is printed with all its fields and no others.
fn ensure_whole(view: &Value) -> Result<()> {
    let fields = [
        "name",
        "namespace",
        "owner",
        "state",
        "message",
        "workload",
        "ports",
        "intercepts",
        "match",
        "mode",
        "includeProbes",
        "resetExisting",
        "steering",
        "onUnavailable",
        "podsReady",
        "podsTotal",
        "pods",
        "createdAt",
        "expiresAt",
    ];
    ensure_keys(view, &fields)?;
    ensure_keys(&view["workload"], &["kind", "name"])?;
    ensure_keys(&view["ports"][0], &["identifier", "containerPort", "destination"])?;
    ensure_keys(&view["match"], &["headers", "path", "method"])?;
    ensure_keys(&view["match"]["headers"][0], &["type", "name", "value"])?;
    ensure_keys(
        &view["pods"][0],
        &["name", "node", "programmed", "connected", "existingConnections", "ways", "counters"],
    )?;
    let counters = ["steered", "matched", "taken", "passedThrough", "rejected", "copied", "lost"];
    ensure_keys(&view["pods"][0]["counters"], &counters)
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn e03_what_others_intercept_is_shown_whole_with_owner_and_counters_and_always_in_the_same_shape() -> Result<()> {
    let stage = Stage::new("e03").await?;
    stage.deploy("add", 1).await?;
    let (ann, eve) = (stage.user("ann").await?, stage.user_with("eve", Some("view")).await?);
    let laptop = Laptop::start("laptop").await?;
    let list = ["intercept", "list", "-o", "json"];
    ensure!(serde_json::from_str::<Value>(&eve.succeed(&list).await?)? == json!([]), "something before anything");
    let port = laptop.port("http");
    let conditions = ["--header", "x-user=ann", "--path-prefix", "/sum", "--method", "POST", "--ttl", "1h"];
    let intercepting = ann.intercept(&[&["add", "--port", &port], &conditions[..]].concat()).await?;

    let shown = async || Ok::<Value, anyhow::Error>(serde_json::from_str(&eve.succeed(&list).await?)?);
    let all = shown().await?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 1), "{all}");
    let first = all[0].clone();
    ensure_whole(&first)?;
    let expected = json!({
        "name": "add", "namespace": stage.namespace.name(), "owner": ann.name, "state": "Ready", "message": "",
        "workload": { "kind": "Deployment", "name": "add" }, "onUnavailable": "PassThrough", "podsReady": 1, "podsTotal": 1,
        "match": { "headers": [{ "type": "Exact", "name": "x-user", "value": "ann" }],
            "path": { "type": "PathPrefix", "value": "/sum" }, "method": "POST" },
    });
    for (field, value) in expected.as_object().into_iter().flatten() {
        ensure!(first[field] == *value, "{field} is {} and not {value}", first[field]);
    }
    ensure!(first["ports"][0]["identifier"] == "http/TCP" && first["ports"][0]["containerPort"] == 8080, "{first}");
    ensure!(first["ports"][0]["destination"] == format!("127.0.0.1:{}", port.trim_end_matches(":http")), "{first}");

    // What is counted grows by what was taken, and by nothing else.
    let counter = |all: &Value, name: &str| all[0]["pods"][0]["counters"][name].as_u64();
    ensure!(counter(&all, "matched") == Some(0) && counter(&all, "taken") == Some(0), "{all}");
    let mine = ["http://add/sum", "--count", "20", "--header", "x-user: ann"];
    for taken in [20, 40] {
        stage.call(&mine).await?.all_by("laptop", 20)?;
        stage.call(&["http://add/sum", "--count", "10"]).await?.all_by("pod", 10)?;
        let counted = eventually(LIMIT, "all that were taken are counted", || async {
            let all = shown().await?;
            let seen = (counter(&all, "matched"), counter(&all, "taken"), counter(&all, "passedThrough"));
            ensure!(seen == (Some(taken), Some(taken), Some(0)), "{all}");
            let steered = counter(&all, "steered").unwrap_or_default();
            // Those of the others never meet the agent.
            ensure!(steered == taken, "{steered} connections");
            Ok::<_, anyhow::Error>(())
        });
        Box::pin(counted).await?;
    }
    // Nothing happens: nothing changes, from one call to the next and from one user to another.
    let seen_twice = eventually(LIMIT, "two users see the same twice", || async {
        let seen = [eve.succeed(&list).await?, ann.succeed(&list).await?, eve.succeed(&list).await?];
        ensure!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
        Ok::<Value, anyhow::Error>(serde_json::from_str(&seen[0])?)
    });
    let all = Box::pin(seen_twice).await?;
    ensure_whole(&all[0])?;

    // `status` is the same with the control plane, where one may see that.
    let status: Value = serde_json::from_str(&eve.succeed(&["status", "-o", "json"]).await?)?;
    ensure_keys(&status, &["intercepts"])?;
    ensure!(status["intercepts"] == all, "{status}");
    let mut command = eve.sluice(&["status", "add", "--namespace", stage.namespace.name(), "-o", "json"])?;
    command.env("KUBECONFIG", stage.cluster.kubeconfig());
    let admin = output(command).await?;
    ensure!(admin.status.success(), "{}", text(&admin));
    let admin: Value = serde_json::from_slice(&admin.stdout)?;
    ensure_keys(&admin, &["controlPlane", "intercepts"])?;
    ensure_keys(&admin["controlPlane"], &["image", "replicasReady", "replicas"])?;
    ensure!(admin["controlPlane"]["image"] == stage.images.webhook, "{admin}");
    ensure_whole(&admin["intercepts"][0])?;
    let words = eve.succeed(&["status"]).await?;
    ensure!(words.contains(&ann.name) && words.contains("40 matched, 40 taken"), "{words}");
    let refused = eve.fail(&["intercept", "list", "--all-namespaces"]).await?;
    ensure!(refused.contains("no right to list intercepts.sluice.dev for the whole cluster"), "{refused}");
    let refused = eve.fail(&["status", "nosuch"]).await?;
    ensure!(refused.contains("there is no Intercept nosuch") && refused.contains("add"), "{refused}");
    intercepting.stop().await?;
    ensure!(shown().await? == json!([]), "it is shown after its end");
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn e04_each_failure_says_what_to_do_and_leaves_no_intercept() -> Result<()> {
    let stage = Stage::new("e04").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let port = laptop.port("http");
    let says = async |arguments: &[&str], kubeconfig: Option<&str>, words: &[&str]| {
        let mut command = ann.sluice(&[&["intercept", "add", "add", "--port", &port], arguments].concat())?;
        if let Some(path) = kubeconfig {
            command.env("KUBECONFIG", path);
        }
        let said = text(&output(command).await?);
        let status = said.lines().next().unwrap_or_default();
        ensure!(status == "exit status: 1", "{arguments:?}: {said}");
        ensure!(words.iter().all(|word| said.contains(word)), "not all of {words:?}: {said}");
        Ok::<_, anyhow::Error>(())
    };
    // A cluster where nobody listens: the port was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "away",
        "clusters": [{ "name": "away", "cluster": { "server": format!("https://{closed}") } }],
        "users": [{ "name": "ann", "user": { "token": "none" } }],
        "contexts": [{ "name": "away", "context": { "cluster": "away", "user": "ann" } }] });
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("away"), config.to_string())?;
    let unreachable = ["cannot be reached", &closed.to_string(), "check that the cluster runs", "context away"];
    says(&[], Some(&path("away")), &unreachable).await?;
    says(&[], Some(&path("nosuch")), &["no kubeconfig", "set KUBECONFIG"]).await?;
    std::fs::write(path("broken"), "clusters: 7")?;
    says(&[], Some(&path("broken")), &["the kubeconfig cannot be used", "KUBECONFIG"]).await?;
    says(&["--context", "nosuch"], None, &["no context \"nosuch\"", "give --context; it has: test"]).await?;
    says(&["--workload", "nosuch"], None, &["named nosuch", "give --workload", "Deployments there: add"]).await?;
    says(&["--port", "1:nosuch"], None, &["no port nosuch", "80 or http (Service add)", "8080 or http (container)"])
        .await?;
    says(&["--service", "nosuch"], None, &["the Service nosuch", "give another --service", "add"]).await?;

    // Pods without agent: said is which, why, and what to type.
    let bare = Stage::labelled("e04-bare", &[]).await?;
    bare.deploy("add", 1).await?;
    let bob = bare.user("bob").await?;
    let refused = bob.fail(&["intercept", "add", "add", "--port", &port, "--timeout", "5s"]).await?;
    let label = format!("kubectl label namespace {} sluice.dev/inject=enabled", bare.namespace.name());
    let pods = bare.namespace.kubectl(&["get", "pods", "--selector=app=add", "-o", "name"]).run().await?;
    let pod = pods.trim().trim_start_matches("pod/");
    for word in [pod, "it has no agent", &label, "restart the workload"] {
        ensure!(refused.contains(word), "not {word:?}: {refused}");
    }
    for stage in [&stage, &bare] {
        let left: Value = stage.namespace.kubectl(&["get", "intercepts"]).json().await?;
        ensure!(left["items"] == json!([]), "left behind: {left}");
    }
    bare.finish().await?;

    // Nobody listens locally, which may come yet: a warning, and the app answers meanwhile. A port that is in use is what
    // this needs: sluice itself opens none.
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let said = folder.path().join("said");
    let mut command = ann.sluice(&["intercept", "add", "add", "--port", &format!("{}:http", free.port())])?;
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&said)?);
    let mut child = command.spawn()?;
    tokio::select! {
        ready = stage.becomes("add", "True", "1/1") => ready?,
        ended = child.wait() => anyhow::bail!("it ended: {ended:?}: {}", std::fs::read_to_string(&said)?),
    };
    let warned = std::fs::read_to_string(&said)?;
    ensure!(warned.contains(&format!("nobody listens on {free}")) && warned.contains("--on-unavailable"), "{warned}");
    stage.call(&["http://add/sum", "--count", "10"]).await?.all_by("pod", 10)?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().context("it has ended")?)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let status = tokio::time::timeout(LIMIT, child.wait()).await??;
    ensure!(status.success(), "{status}");
    let left: Value = stage.namespace.kubectl(&["get", "intercepts"]).json().await?;
    ensure!(left["items"] == json!([]), "left behind: {left}");
    stage.finish().await
}

/// Everything in the cluster that has our label or our name, but for test namespaces.
async fn ours(stage: &Stage) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let of_cluster = "customresourcedefinitions,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,\
                      validatingwebhookconfigurations,namespaces,apiservices,priorityclasses";
    let in_namespaces = "deployments,replicasets,pods,services,serviceaccounts,secrets,configmaps,roles,rolebindings,leases,\
                         networkpolicies,poddisruptionbudgets";
    for (kinds, options) in [(of_cluster, &[][..]), (in_namespaces, &["--all-namespaces"])] {
        let get = ["get", kinds, "--selector=app.kubernetes.io/part-of=sluice", "-o", "name"];
        let labelled = stage.cluster.kubectl(&get).arguments(options).run().await?;
        found.extend(labelled.lines().map(|line| format!("{line} (label)")));
        let all: Value = stage.cluster.kubectl(&["get", kinds]).arguments(options).json().await?;
        for object in all["items"].as_array().context("no list")? {
            let metadata = &object["metadata"];
            let name = metadata["name"].as_str().unwrap_or_default();
            if name.contains("sluice") || metadata["namespace"] == SYSTEM {
                found.push(format!("{} {name}", object["kind"]));
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d09_after_uninstall_pods_run_on_a_restart_removes_the_agents_and_nothing_else_remains() -> Result<()> {
    let stage = Stage::alone("d09").await?;
    stage.deploy("add", 2).await?;
    let before = ours(&stage).await?;
    let known = |what: &str| before.iter().any(|line| line.contains(what));
    // What is looked for below is found while it is there.
    for kind in ["customresourcedefinition", "clusterrole.", "clusterrolebinding", "mutatingwebhook", "namespace/"] {
        ensure!(known(kind), "{kind} is not among {before:?}");
    }
    ensure!(known("\"Deployment\" sluice-webhook") && known("\"Secret\" sluice-webhook-tls"), "{before:?}");
    let outcome = Box::pin(uninstalled(&stage)).await;
    let installed = Box::pin(system::reinstall(&stage.cluster, &stage.images)).await;
    outcome?;
    installed?;
    // As before, after one more restart.
    restart(&stage).await?;
    ensure!(containers(&stage).await?.iter().all(|names| names.contains("sluice-agent")), "not injected again");
    let (bob, laptop) = (stage.user("bob").await?, Laptop::start("laptop").await?);
    let intercepting = bob.intercept(&["add", "--port", &laptop.port("http")]).await?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
    intercepting.stop().await?;
    stage.finish().await
}

/// For each pod of `add`, the names of all its containers.
async fn containers(stage: &Stage) -> Result<Vec<String>> {
    let names = "jsonpath={range .items[*]}{.spec.initContainers[*].name} {.spec.containers[*].name}{\"\\n\"}{end}";
    let pods = stage.namespace.kubectl(&["get", "pods", "--selector=app=add", "-o", names]).run().await?;
    let pods: Vec<_> = pods.lines().map(|line| line.trim().to_owned()).collect();
    ensure!(pods.len() == 2, "{pods:?}");
    Ok(pods)
}

/// A restart, to its end: pods that end are still listed for a moment.
async fn restart(stage: &Stage) -> Result<()> {
    stage.namespace.kubectl(&["rollout", "restart", "deployment/add"]).run().await?;
    stage.rolled_out("deployment/add").await?;
    eventually(LIMIT, "the old pods are gone", || containers(stage)).await.map(drop)
}

async fn uninstalled(stage: &Stage) -> Result<()> {
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
    let mine = ["--header", "x-user: ann"];
    stage.call(&[&["http://add/sum", "--count", "10"], &mine[..]].concat()).await?.all_by("laptop", 10)?;
    let pods = ["get", "pods", "--selector=app=add", "-o", "jsonpath={.items[*].metadata.uid}"];
    let before = stage.namespace.kubectl(&pods).run().await?;

    // Two callers meanwhile: one that is intercepted, one that is not.
    let during = ["http://add/sum", "--during", "25", "--every", "20"];
    let during_mine = [&during[..], &mine].concat();
    let removing = async {
        eventually(LIMIT, "the callers are at it", || async {
            let found = stage.intercept("add").await?;
            let counters = found["status"]["pods"].as_array().into_iter().flatten();
            let taken: u64 = counters.filter_map(|pod| pod["counters"]["taken"].as_u64()).sum();
            ensure!(taken > 10, "{taken} taken");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        system::administer(&stage.cluster, &["uninstall"]).await
    };
    let (removed, told, others) = tokio::join!(removing, stage.call(&during_mine), stage.call(&during));
    let (removed, told, others) = (removed?, told?, others?);
    ensure!(removed.contains("Sluice is removed"), "{removed}");
    ensure!(others.failed == 0 && others.answers.keys().eq(["pod"]), "{others:?}");
    // What the laptop is answering when the intercept ends may end with it; that is one request of this caller at most.
    ensure!(told.failed <= 1 && told.answers.keys().eq(["laptop", "pod"]), "{told:?}");
    ensure!(told.changes.len() == 2, "it went to and fro: {told:?}");
    intercepting.ended().await?;
    stage.call(&[&["http://add/sum", "--count", "50"], &mine[..]].concat()).await?.all_by("pod", 50)?;
    ensure!(stage.namespace.kubectl(&pods).run().await? == before, "pods were restarted");
    ensure!(containers(stage).await?.iter().all(|names| names.contains("sluice-agent")), "agents went by themselves");

    // e04: what is said where there is no Sluice, to a user, whose right is gone with it, and to one who may do anything.
    let (port, namespace) = (laptop.port("http"), stage.namespace.name());
    let add = ["intercept", "add", "add", "--port", &port];
    for command in [&add[..], &["intercept", "list"], &["intercept", "remove", "add"], &["status"]] {
        let arguments = [command, &["--namespace", namespace]].concat();
        let mut as_admin = ann.sluice(&arguments)?;
        as_admin.env("KUBECONFIG", stage.cluster.kubeconfig());
        for said in [ann.fail(&arguments).await?, text(&output(as_admin).await?)] {
            let helps =
                said.contains("Sluice is not installed in this cluster") && said.contains("run `sluice install`");
            ensure!(helps && said.starts_with("exit status: 1"), "{command:?}: {said}");
        }
    }
    let left = ours(stage).await?;
    ensure!(left.is_empty(), "left: {left:?}");
    let resources = stage.cluster.kubectl(&["api-resources", "-o", "name"]).run().await?;
    ensure!(!resources.contains("sluice.dev"), "{resources}");

    restart(stage).await?;
    let names = containers(stage).await?;
    ensure!(names.iter().all(|names| names == "add"), "{names:?}");
    stage.call(&["http://add/sum", "--count", "50"]).await?.all_by("pod", 50)?;
    let again = system::administer(&stage.cluster, &["uninstall"]).await?;
    ensure!(again.contains("nothing of Sluice is left"), "{again}");
    Ok(())
}
