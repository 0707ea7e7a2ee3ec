//! Taking requests of a workload, as its user does it: the cases a02 to a06 on the cluster.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::eventually;

use super::{
    laptop::Laptop,
    stage::{LIMIT, Stage, condition, service},
};

/// `add`'s pods, as `pod/NAME`; at least one.
async fn pods(stage: &Stage) -> Result<Vec<String>> {
    let pods = stage.namespace.kubectl(&["get", "pods", "--selector=app=add", "-o", "name"]).run().await?;
    ensure!(!pods.is_empty(), "no pods");
    Ok(pods.lines().map(str::to_owned).collect())
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a02_ports_are_named_by_the_service_or_by_number_and_several_are_taken_by_one_intercept() -> Result<()> {
    let stage = Stage::new("a02").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    for port in ["http", "80", "8080"] {
        let intercepting = ann.intercept(&["add", "--port", &laptop.port(port)]).await?;
        stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
        intercepting.stop().await?;
        stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    }
    let second = Laptop::start("second").await?;
    let (first_port, second_port) = (laptop.port("http"), second.port("grpc"));
    let both = ["both", "--workload", "add", "--port", &first_port, "--port", &second_port];
    let intercepting = ann.intercept(&both).await?;
    stage.call(&["http://add/sum"]).await?.all_by("laptop", 1)?;
    stage.call(&["http://add:9090/sum"]).await?.all_by("second", 1)?;
    ensure!(intercepting.summary.contains("http") && intercepting.summary.contains("grpc"), "{}", intercepting.summary);
    intercepting.stop().await?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a03_every_kind_of_workload_is_intercepted_with_a_service_without_one_and_with_a_headless_one() -> Result<()> {
    let stage = Stage::new("a03").await?;
    stage.deploy("deployed", 1).await?;
    let labels = |name: &str| json!({ "app": name });
    for (kind, name) in [("StatefulSet", "stateful"), ("DaemonSet", "daemon"), ("ReplicaSet", "replicated")] {
        let mut spec =
            json!({ "selector": { "matchLabels": labels(name) }, "template": stage.template(&labels(name)) });
        if kind == "StatefulSet" {
            spec["serviceName"] = json!(name);
        }
        let workload = json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name }, "spec": spec });
        stage.namespace.apply(&workload).await?;
    }
    let mut pod = stage.template(&labels("lonely"));
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("lonely");
    stage.namespace.apply(&pod).await?;
    // Headless: callers get the pods' addresses, and the port is the pod's.
    let mut headless = service("stateful", &labels("stateful"));
    headless["spec"]["clusterIP"] = json!("None");
    stage.namespace.apply(&headless).await?;
    stage.namespace.apply(&service("daemon", &labels("daemon"))).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    for (workload, ready, callee) in [
        ("Deployment/deployed", "deployment/deployed", Some("deployed:80")),
        ("StatefulSet/stateful", "statefulset/stateful", Some("stateful:8080")),
        ("DaemonSet/daemon", "daemonset/daemon", Some("daemon:80")),
        ("ReplicaSet/replicated", "", None),
        ("Pod/lonely", "", None),
    ] {
        if !ready.is_empty() {
            stage.rolled_out(ready).await?;
        }
        let name = workload.split('/').nth(1).unwrap_or_default();
        let intercepting = ann.intercept(&[name, "--workload", workload, "--port", &laptop.port("http")]).await?;
        let callee = match callee {
            Some(callee) => callee.to_owned(),
            // No Service: a caller has nothing but the pod's address.
            None => {
                let found = stage.intercept(name).await?;
                let pod = found["status"]["pods"][0]["tunnel"].as_str().unwrap_or_default().to_owned();
                format!("{}:8080", pod.split(':').next().unwrap_or_default())
            }
        };
        let to = format!("http://{callee}/sum");
        stage.call(&[&to, "--count", "10"]).await?.all_by("laptop", 10)?;
        intercepting.stop().await?;
        stage.call(&[&to, "--count", "10"]).await?.all_by("pod", 10)?;
    }
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a04_a_numeric_target_port_undeclared_ports_and_a_port_that_is_not_there() -> Result<()> {
    let stage = Stage::new("a04").await?;
    let labels = json!({ "app": "bare" });
    let mut template = stage.template(&labels);
    template["spec"]["containers"][0]["ports"] = json!([]);
    template["spec"]["containers"][0]["readinessProbe"]["tcpSocket"]["port"] = json!(8080);
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "bare" }, "spec": {
        "selector": { "matchLabels": labels }, "template": template } });
    stage.namespace.apply(&deployment).await?;
    for name in ["bare", "twin"] {
        let numeric = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": {
            "selector": labels, "ports": [{ "name": "web", "port": 80, "targetPort": 8080 }] } });
        stage.namespace.apply(&numeric).await?;
    }
    stage.deploy("add", 1).await?;
    stage.rolled_out("deployment/bare").await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["bare", "--service", "twin", "--port", &laptop.port("web")]).await?;
    // Two Services on one port of the container: both are taken.
    for to in ["http://bare/sum", "http://twin/sum"] {
        stage.call(&[to, "--count", "10"]).await?.all_by("laptop", 10)?;
    }
    intercepting.stop().await?;
    stage.call(&["http://bare/sum", "--count", "10"]).await?.all_by("pod", 10)?;
    let refused = ann.fail(&["intercept", "add", "add", "--port", &laptop.port("nosuch")]).await?;
    ensure!(["nosuch", "http", "grpc"].iter().all(|word| refused.contains(word)), "{refused}");
    let left = ann.succeed(&["intercept", "list", "-o", "json"]).await?;
    ensure!(!left.contains("\"add\""), "{left}");
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a05_four_replicas_answer_a_hundred_requests_at_once_and_all_that_fit_are_taken() -> Result<()> {
    let stage = Stage::new("a05").await?;
    stage.deploy("add", 4).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
    let many = ["http://add/sum", "--count", "400", "--parallel", "100"];
    let mine = [&many[..], &["--header", "x-user: ann"]].concat();
    let (ours, others) = tokio::join!(stage.call(&mine), stage.call(&many));
    ours?.all_by("laptop", 400)?;
    others?.all_by("pod", 400)?;

    // A pod goes and one comes. The app stays for as long as Services may still send to it, as is good practice.
    let patient = json!({ "spec": { "template": { "spec": { "terminationGracePeriodSeconds": 10, "containers": [
        { "name": "add", "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } } }] } } } });
    stage.namespace.kubectl(&["patch", "deployment/add", "--patch", &patient.to_string()]).run().await?;
    stage.rolled_out("deployment/add").await?;
    let state = stage.becomes("add", "True", "4/4").await?;
    let first = format!("pod/{}", state["status"]["pods"][0]["name"].as_str().unwrap_or_default());
    let to = "http://add/sum";
    let change = async {
        stage.namespace.kubectl(&["delete", &first]).within(LIMIT).run().await?;
        stage.namespace.kubectl(&["scale", "deployment/add", "--replicas=5"]).run().await?;
        stage.rolled_out("deployment/add").await?;
        stage.becomes("add", "True", "5/5").await.map(drop)
    };
    let steady = [to, "--during", "20", "--every", "10", "--parallel", "8"];
    let mine = [&steady[..], &["--header", "x-user: ann"]].concat();
    let (ours, others, changed) = tokio::join!(stage.call(&mine), stage.call(&steady), change);
    changed?;
    for (told, who) in [(ours?, "laptop"), (others?, "pod")] {
        let count = told.answers.get(who).copied().unwrap_or_default();
        ensure!(count > 200, "too few: {told:?}");
        told.all_by(who, count)?;
    }
    intercepting.stop().await?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a06_the_state_follows_the_pods_and_new_ones_serve_the_intercept() -> Result<()> {
    let stage = Stage::new("a06").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http")]).await?;
    let scale = async |replicas: u32| {
        let replicas = format!("--replicas={replicas}");
        stage.namespace.kubectl(&["scale", "deployment/add", &replicas]).run().await
    };
    scale(0).await?;
    let none = stage.becomes("add", "False", "0/0").await?;
    ensure!(condition(&none, "AgentsReady").as_deref() == Some("False"), "{}", none["status"]);
    scale(1).await?;
    stage.becomes("add", "True", "1/1").await?;
    stage.served("http://add/sum").await?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
    eventually(LIMIT, "the workload's events tell of it", || async {
        let about = "involvedObject.kind=Deployment,involvedObject.name=add";
        let reasons = "jsonpath={.items[*].reason}";
        let told = stage.namespace.kubectl(&["get", "events", "--field-selector", about, "-o", reasons]).run().await?;
        let has = |reason| told.split_whitespace().any(|told| told == reason);
        ensure!(has("Intercepted") && has("InterceptNotReady"), "{told}");
        Ok(())
    })
    .await?;
    scale(4).await?;
    stage.becomes("add", "True", "4/4").await?;
    stage.rolled_out("deployment/add").await?;
    stage.call(&["http://add/sum", "--count", "100", "--parallel", "10"]).await?.all_by("laptop", 100)?;
    let pods = pods(&stage).await?;
    stage.namespace.kubectl(&["delete", &pods[0]]).run().await?;
    stage.becomes("add", "True", "4/4").await?;
    stage.namespace.kubectl(&["rollout", "restart", "deployment/add"]).run().await?;
    stage.rolled_out("deployment/add").await?;
    let restarted = stage.becomes("add", "True", "4/4").await?;
    let listed = restarted["status"]["pods"].to_string();
    ensure!(pods.iter().all(|pod| !listed.contains(pod.trim_start_matches("pod/"))), "old pods are listed: {listed}");
    stage.call(&["http://add/sum", "--count", "100", "--parallel", "10"]).await?.all_by("laptop", 100)?;
    intercepting.stop().await?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    stage.finish().await
}
