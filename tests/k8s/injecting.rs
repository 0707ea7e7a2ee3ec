//! Which pods get the agent, and what becomes of them: the cases d01 to d04 and d06. d05 is in `reviewing.rs`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    laptop::Laptop,
    stage::{LIMIT, Stage, service},
};

/// The agent's container and its volume, and the label of pods that have it.
const AGENT: &str = "sluice-agent";
const VOLUME: &str = "sluice-agent-token";
const LABEL: &str = "sluice.dev/agent";

/// A pod of `add`, with metadata of its own beside the name.
fn pod(stage: &Stage, name: &str, metadata: &Value) -> Value {
    let mut pod = stage.template(&json!({ "app": name }));
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(name);
    for (place, entries) in metadata.as_object().into_iter().flatten() {
        for (key, value) in entries.as_object().into_iter().flatten() {
            pod["metadata"][place][key] = value.clone();
        }
    }
    pod
}

/// A pod that does nothing and so can run anywhere.
fn idle(stage: &Stage, name: &str) -> Value {
    let mut pod = pod(stage, name, &json!({}));
    let container = &mut pod["spec"]["containers"][0];
    container["command"] = json!(["/call", "--idle"]);
    for field in ["ports", "readinessProbe"] {
        container[field] = json!(null);
    }
    pod
}

/// Creates a pod and gives it as it was created: later ones are changed by others too.
async fn create(stage: &Stage, pod: &Value) -> Result<Value> {
    stage.namespace.kubectl(&["create", "-f", "-"]).input(&pod.to_string()).json().await
}

fn entries<'v>(pod: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> {
    pod["spec"][list].as_array().into_iter().flatten()
}

fn agents(pod: &Value) -> usize {
    entries(pod, "containers").chain(entries(pod, "initContainers")).filter(|found| found["name"] == AGENT).count()
}

fn ensure_injected(pod: &Value) -> Result<()> {
    let native =
        entries(pod, "initContainers").any(|found| found["name"] == AGENT && found["restartPolicy"] == "Always");
    let volumes = entries(pod, "volumes").filter(|volume| volume["name"] == VOLUME).count();
    let label = &pod["metadata"]["labels"][LABEL];
    ensure!(native && agents(pod) == 1 && volumes == 1 && *label == "injected", "not injected as it should be: {pod}");
    Ok(())
}

/// That nothing of ours is anywhere in the pod.
fn ensure_untouched(pod: &Value) -> Result<()> {
    let ours = entries(pod, "volumes").any(|volume| volume["name"] == VOLUME);
    let metadata = &pod["metadata"];
    let marked = !metadata["labels"][LABEL].is_null() || !metadata["annotations"]["sluice.dev/agent-config"].is_null();
    ensure!(agents(pod) == 0 && !ours && !marked, "it was changed: {pod}");
    Ok(())
}

/// A list of a pod without what is ours, and without what the API server adds under a name of its own making.
fn without_ours(pod: &Value, list: &str) -> Vec<Value> {
    entries(pod, list).filter(|found| found["name"] != AGENT && found["name"] != VOLUME).cloned().collect()
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d01_labels_decide_and_a_pod_that_has_the_agent_is_not_changed_again() -> Result<()> {
    let stage = Stage::new("d01").await?;
    let plain = create(&stage, &pod(&stage, "plain", &json!({}))).await?;
    ensure_injected(&plain)?;
    // A pod's own word goes before its namespace's, as a label or as an annotation.
    for (name, place) in [("out-label", "labels"), ("out-annotation", "annotations")] {
        let opted_out = pod(&stage, name, &json!({ place: { "sluice.dev/inject": "disabled" } }));
        ensure_untouched(&create(&stage, &opted_out).await?)?;
    }
    let unlabelled = Stage::labelled("d01-un", &[]).await?;
    ensure_untouched(&create(&unlabelled, &pod(&unlabelled, "plain", &json!({}))).await?)?;
    let asks = pod(&unlabelled, "asks", &json!({ "labels": { "sluice.dev/inject": "enabled" } }));
    ensure_injected(&create(&unlabelled, &asks).await?)?;

    // The webhook is called with its own output: nothing changes but what makes it another pod.
    let mut again = plain.clone();
    again["metadata"] = json!({ "name": "again", "labels": plain["metadata"]["labels"],
        "annotations": plain["metadata"]["annotations"] });
    again["status"] = json!(null);
    let again = create(&stage, &again).await?;
    ensure_injected(&again)?;
    for list in ["initContainers", "containers", "volumes"] {
        ensure!(again["spec"][list] == plain["spec"][list], "{list}: {} and then {}", plain["spec"], again["spec"]);
    }
    ensure!(again["metadata"]["labels"] == plain["metadata"]["labels"], "{again}");
    ensure!(again["metadata"]["annotations"] == plain["metadata"]["annotations"], "{again}");
    // Both work, and so do those that are left alone.
    for name in ["plain", "again", "out-label", "out-annotation"] {
        stage.namespace.wait(&format!("pod/{name}"), "condition=Ready", LIMIT).await?;
    }
    for name in ["plain", "asks"] {
        unlabelled.namespace.wait(&format!("pod/{name}"), "condition=Ready", LIMIT).await?;
    }
    unlabelled.finish().await?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d02_limits_quotas_locked_down_pods_variables_and_other_sidecars_go_together_with_the_agent() -> Result<()> {
    let stage = Stage::new("d02").await?;
    let limits = json!({ "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "limits" }, "spec": { "limits": [{
        "type": "Container", "min": { "cpu": "15m", "memory": "20Mi" }, "max": { "cpu": "800m", "memory": "300Mi" },
        "default": { "cpu": "200m", "memory": "100Mi" }, "defaultRequest": { "cpu": "20m", "memory": "30Mi" } }] } });
    // Whatever has no limit is refused there.
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "quota" }, "spec": { "hard": {
        "requests.cpu": "1", "requests.memory": "1Gi", "limits.cpu": "6", "limits.memory": "3Gi",
        "requests.ephemeral-storage": "2Gi", "limits.ephemeral-storage": "4Gi", "pods": "9" } } });
    stage.namespace.apply(&limits).await?;
    stage.namespace.apply(&quota).await?;
    let image = &stage.images.demo;
    let storage = json!({ "requests": { "ephemeral-storage": "10Mi" }, "limits": { "ephemeral-storage": "50Mi" } });
    let locked = json!({ "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false });
    let other = |name: &str, command: &[&str]| {
        json!({ "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
            "resources": storage, "securityContext": locked })
    };
    let labels = json!({ "app": "add" });
    let mut template = stage.template(&labels);
    let spec = &mut template["spec"];
    spec["automountServiceAccountToken"] = json!(false);
    spec["securityContext"] = json!({ "runAsNonRoot": true, "runAsUser": 65532 });
    let mut sidecar = other("sidecar", &["/add", "--http", "[::]:8081", "--grpc", "[::]:9091"]);
    sidecar["restartPolicy"] = json!("Always");
    spec["initContainers"] = json!([other("before", &["/call", "--help"]), sidecar]);
    let container = &mut spec["containers"][0];
    container["resources"] = storage.clone();
    container["securityContext"] = locked.clone();
    // Without them resolved, and in this order, the app would not listen where its probe and its callers look.
    container["env"] = json!([{ "name": "PORT", "value": "8080" }, { "name": "PLACE", "value": "[::]:$(PORT)" }]);
    container["command"] = json!(["/add", "--http", "$(PLACE)", "--grpc", "[::]:9090"]);

    // Its twin without agent shows what the API server makes of the same.
    let mut twin = template.clone();
    twin["apiVersion"] = json!("v1");
    twin["kind"] = json!("Pod");
    twin["metadata"] = json!({ "name": "twin", "labels": { "sluice.dev/inject": "disabled" } });
    let twin = create(&stage, &twin).await?;
    ensure_untouched(&twin)?;
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "add" }, "spec": {
        "selector": { "matchLabels": labels }, "template": template } });
    stage.namespace.apply(&deployment).await?;
    stage.namespace.apply(&service("add", &labels)).await?;
    stage.rolled_out("deployment/add").await?;
    stage.namespace.wait("pod/twin", "condition=Ready", LIMIT).await?;
    stage.namespace.wait("pod/caller", "condition=Ready", LIMIT).await?;
    let pods: Value = stage.namespace.kubectl(&["get", "pods", "--selector=app=add"]).json().await?;
    let injected = &pods["items"][0];
    ensure_injected(injected)?;
    for list in ["initContainers", "containers", "volumes"] {
        let (ours, theirs) = (without_ours(injected, list), without_ours(&twin, list));
        ensure!(ours == theirs, "{list} differ: {ours:?} and {theirs:?}");
    }
    // No token of the app's account came into the app with the agent.
    ensure!(!injected["spec"]["containers"].to_string().contains("serviceaccount"), "{injected}");
    let names: Vec<_> = entries(injected, "initContainers").filter_map(|found| found["name"].as_str()).collect();
    ensure!(names.starts_with(&["before", "sidecar"]), "others come later: {names:?}");

    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let (to, mine) = ("http://add/sum", ["--header", "x-user: ann"]);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
    let reported = stage.becomes("add", "True", "1/1").await?;
    ensure!(reported["status"]["pods"][0]["name"] == injected["metadata"]["name"], "{}", reported["status"]);
    stage.call(&[&[to, "--count", "20"], &mine[..]].concat()).await?.all_by("laptop", 20)?;
    stage.call(&[to, "--count", "20"]).await?.all_by("pod", 20)?;
    intercepting.stop().await?;
    stage.call(&[&[to, "--count", "20"], &mine[..]].concat()).await?.all_by("pod", 20)?;
    let restarts = stage.namespace.kubectl(&["get", "pods", "--selector=app=add"]).json::<Value>().await?;
    let statuses = |list: &str| restarts["items"][0]["status"][list].as_array().cloned().unwrap_or_default();
    let all = [statuses("containerStatuses"), statuses("initContainerStatuses")].concat();
    ensure!(all.len() == 4 && all.iter().all(|status| status["restartCount"] == 0), "restarted: {all:?}");
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d03_where_pod_security_forbids_the_agent_the_pod_starts_without_it_and_a_warning_says_why() -> Result<()> {
    let stage = Stage::new("d03").await?;
    for level in ["baseline", "restricted"] {
        let labels = [("sluice.dev/inject", "enabled"), ("pod-security.kubernetes.io/enforce", level)];
        let namespace = stage.cluster.labelled_namespace(&format!("d03-{level}"), &labels).await?;
        let mut pod = pod(&stage, "plain", &json!({}));
        pod["spec"]["securityContext"] =
            json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
        pod["spec"]["containers"][0]["securityContext"] =
            json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        // With the warning taken for a failure kubectl shows what its user reads; the pod is created all the same.
        let create = ["create", "--warnings-as-errors", "-f", "-"];
        let warned = namespace.kubectl(&create).input(&pod.to_string()).run().await;
        let warned = format!("{:#}", warned.err().context("no warning")?);
        let words = ["Warning: ", "starts without Sluice's agent", namespace.name(), level, "NET_ADMIN"];
        ensure!(words.iter().all(|word| warned.contains(word)), "{warned}");
        ensure!(warned.contains("pod-security.kubernetes.io/enforce=privileged"), "nothing to do is said: {warned}");
        namespace.wait("pod/plain", "condition=Ready", LIMIT).await?;
        ensure_untouched(&namespace.get("pod/plain").await?)?;
        namespace.finish().await?;
    }
    // The same pod where the agent is allowed: no warning.
    let create = ["create", "--warnings-as-errors", "-f", "-", "-o", "json"];
    let pod = pod(&stage, "plain", &json!({})).to_string();
    let created = stage.namespace.kubectl(&create).input(&pod).run().await?;
    ensure_injected(&serde_json::from_str(&created)?)?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d04_pods_of_the_nodes_network_mirrors_windows_and_the_system_are_left_alone() -> Result<()> {
    let stage = Stage::new("d04").await?;
    ensure_injected(&create(&stage, &idle(&stage, "ordinary")).await?)?;
    let mut host = idle(&stage, "host");
    host["spec"]["hostNetwork"] = json!(true);
    ensure_untouched(&create(&stage, &host).await?)?;
    stage.namespace.wait("pod/host", "condition=Ready", LIMIT).await?;
    ensure_untouched(&stage.namespace.get("pod/host").await?)?;

    let mut windows = idle(&stage, "windows");
    windows["spec"]["os"] = json!({ "name": "windows" });
    windows["spec"]["nodeSelector"] = json!({ "kubernetes.io/os": "windows" });
    let windows = create(&stage, &windows).await?;
    ensure_untouched(&windows)?;
    ensure!(windows["status"]["phase"] == "Pending", "{windows}");

    // What a kubelet does for a static pod. This one has none of that name and removes it.
    let nodes: Value = stage.cluster.kubectl(&["get", "nodes"]).json().await?;
    let mut mirror = idle(&stage, "mirror");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "0123456789abcdef" });
    mirror["spec"]["nodeName"] = nodes["items"][0]["metadata"]["name"].clone();
    ensure_untouched(&create(&stage, &mirror).await?)?;

    // Not even where the pod itself asks for it.
    let name = format!("test-{}", stage.namespace.name());
    let mut system = idle(&stage, &name);
    system["metadata"]["labels"]["sluice.dev/inject"] = json!("enabled");
    let kubectl = |arguments: &[&str]| stage.cluster.kubectl(&["--namespace", "kube-system"]).arguments(arguments);
    let created = kubectl(&["create", "-f", "-"]).input(&system.to_string()).json::<Value>().await;
    let pod = format!("pod/{name}");
    let ready = kubectl(&["wait", &pod, "--for=condition=Ready", "--timeout=60s"]).within(LIMIT).run().await;
    kubectl(&["delete", &pod, "--ignore-not-found", "--now"]).within(LIMIT).run().await?;
    ensure_untouched(&created?)?;
    ready?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d06_twenty_five_workloads_at_once_are_all_injected_and_one_is_intercepted() -> Result<()> {
    /// On two processors 25 pods with two containers each take their time.
    const ROLLED_OUT: Duration = Duration::from_secs(400);
    let stage = Stage::new("d06").await?;
    let name = |number: u32| format!("add-{number}");
    let mut items = Vec::new();
    for number in 1..=25 {
        let labels = json!({ "app": name(number) });
        let mut template = stage.template(&labels);
        // One deadline for all of them is the test's; a probe a second from each would be load of its own.
        template["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] = json!(5);
        let metadata = json!({ "name": name(number), "labels": { "many": "yes" } });
        items.push(json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
            "progressDeadlineSeconds": ROLLED_OUT.as_secs(), "selector": { "matchLabels": labels }, "template": template } }));
    }
    for number in [7, 8] {
        items.push(service(&name(number), &json!({ "app": name(number) })));
    }
    stage.namespace.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items })).await?;
    for number in 1..=25 {
        stage.namespace.rolled_out(&format!("deployment/{}", name(number)), ROLLED_OUT).await?;
    }
    let pods: Value = stage.namespace.kubectl(&["get", "pods", "--selector=app"]).json().await?;
    let pods = pods["items"].as_array().context("no pods")?;
    ensure!(pods.len() == 25, "{} pods", pods.len());
    pods.iter().try_for_each(ensure_injected)?;
    stage.namespace.wait("pod/caller", "condition=Ready", LIMIT).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add-7", "--port", &laptop.port("http")]).await?;
    stage.call(&["http://add-7/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
    stage.call(&["http://add-8/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    intercepting.stop().await?;
    stage.call(&["http://add-7/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    stage.finish().await
}
