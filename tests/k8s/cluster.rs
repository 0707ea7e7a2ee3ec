//! The cluster itself: pods run, names resolve, Services are reached, and nothing is left of it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sluice_tests::{
    binaries,
    cluster::{self, Cluster, Folder, Namespace},
    eventually,
    peers::http1::Http1Caller,
    product::{Images, deploy_demo, workload},
};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A namespace with the demo's services; gives their image too.
async fn demo(cluster: &Cluster, name: &str) -> Result<(Namespace, String)> {
    let namespace = cluster.namespace(name).await?;
    let image = Images::load_demo(cluster).await?;
    deploy_demo(&namespace, &image).await?;
    Ok((namespace, image))
}

async fn cluster_address(namespace: &Namespace, service: &str) -> Result<SocketAddr> {
    let service = namespace.get(&format!("service/{service}")).await?;
    let address = service["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    Ok(SocketAddr::new(address.parse()?, 8080))
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn two_pods_of_a_local_image_roll_out_on_the_ready_node() -> Result<()> {
    let cluster = Cluster::get().await?;
    cluster.kubectl(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=60s"]).run().await?;
    let (namespace, _) = demo(&cluster, "rollout").await?;
    let pods: Value = namespace.kubectl(&["get", "pods", "--selector=app=add"]).json().await?;
    let pods = pods["items"].as_array().context("no pods")?;
    let addresses: Vec<_> = pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
    ensure!(addresses.len() == 2 && addresses[0] != addresses[1], "addresses {addresses:?}");
    // What a person would do: the log is there, and a command runs in the container.
    let log = namespace.kubectl(&["logs", "deployment/tictac"]).run().await?;
    ensure!(log.contains("tictac is ready"), "{log:?}");
    let help = namespace.exec("deployment/add", &["/add", "--help"]).await?;
    ensure!(help.contains("--signed"), "{help:?}");
    namespace.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a_service_is_reached_by_its_address_and_from_a_pod_by_its_name() -> Result<()> {
    let cluster = Cluster::get().await?;
    let (namespace, image) = demo(&cluster, "service").await?;
    let address = cluster_address(&namespace, "tictac").await?;
    eventually(LIMIT, "the node knows the way to add's pods, which takes a moment longer than the pods", || async {
        let mut caller = Http1Caller::over(cluster.connect(address).await?)?;
        let response = caller.call("POST", "/tic", &[], b"").await?;
        ensure!(response.status == 200, "status {}: {}", response.status, String::from_utf8_lossy(&response.body));
        Ok(())
    })
    .await?;
    for count in 2..=20 {
        let mut caller = Http1Caller::over(cluster.connect(address).await?)?;
        let response = caller.call("POST", "/tic", &[], b"").await?;
        let body = String::from_utf8_lossy(&response.body);
        // Only `add` signs, and `tictac` knows it by nothing but its name.
        ensure!(response.status == 200 && response.answered_by() == Some("pod"), "{}: {body}", response.status);
        ensure!(serde_json::from_slice::<Value>(&response.body)? == json!({ "value": count }), "{body}");
    }
    // A name that does not exist is an answer too, not a timeout: DNS says so.
    let elsewhere = ["/tictac", "--http", "0.0.0.0:8080", "--add", "http://nobody.default.svc.cluster.local:9090"];
    namespace.apply(&workload("lonely", 1, &image, &elsewhere)).await?;
    namespace.rolled_out("deployment/lonely", LIMIT).await?;
    let lonely = cluster_address(&namespace, "lonely").await?;
    let stream = eventually(LIMIT, "the node knows the way to its pod", || cluster.connect(lonely)).await?;
    let response = Http1Caller::over(stream)?.call("POST", "/tic", &[], b"").await?;
    ensure!(response.status == 502, "status {}", response.status);
    namespace.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn a_namespace_is_gone_with_all_that_was_in_it() -> Result<()> {
    let cluster = Cluster::get().await?;
    let (namespace, _) = demo(&cluster, "gone").await?;
    let (name, pods) = (namespace.name().to_owned(), ["get", "pods", "--all-namespaces", "--no-headers"]);
    namespace.finish().await?;
    let left = cluster.kubectl(&["get", "namespace", &name, "--ignore-not-found"]).run().await?;
    ensure!(left.trim().is_empty(), "{left}");
    let left = cluster.kubectl(&pods).run().await?;
    ensure!(!left.contains(&name), "{left}");
    Ok(())
}

#[test]
fn with_a_kubeconfig_nothing_is_started_and_nothing_taken_down() -> Result<()> {
    for action in ["up", "down"] {
        let mut command = std::process::Command::new(binaries::find("sluice-cluster")?);
        let output = command.arg(action).env("KUBECONFIG", "/nowhere/config").output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && text.contains("the cluster of /nowhere/config is used"), "{action}: {text}");
    }
    Ok(())
}

/// A cluster beside the others, on the same machine.
async fn own_cluster(name: &str) -> Result<(Folder, Cluster)> {
    let folder = Folder::named(name)?;
    // Of a run that was killed.
    cluster::down(&folder)?;
    ensure!(cluster::up(&folder).await?, "it was up");
    let cluster = Cluster::at(&folder)?;
    Ok((folder, cluster))
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn down_leaves_nothing_even_after_everything_was_killed() -> Result<()> {
    let (folder, cluster) = own_cluster("run-down").await?;
    let devices = || Ok::<_, std::io::Error>(std::fs::read_dir("/sys/class/net")?.count());
    let before = devices()?;
    ensure!(!cluster::up(&folder).await?, "a second one was started");
    // With containers, their mounts and their cgroups.
    let (namespace, _) = demo(&cluster, "down").await?;
    let containers = container_processes(&folder)?;
    ensure!(containers.len() >= 3, "processes in containers: {containers:?}");
    drop(namespace);

    let components = cluster.components();
    for component in &components {
        let pid = component.pid.with_context(|| format!("{} does not run", component.name))?;
        // One of them may take others with it.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for line in cluster::traces(&folder)?.iter().filter(|trace| trace.starts_with("process ")) {
        let pid = line.split(' ').nth(1).context("no process id")?.parse()?;
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    eventually(LIMIT, "no process in a container is left, with nobody taking it down", || async {
        let alive = container_processes(&folder).map_err(|error| format!("{error:#}"))?;
        if alive.is_empty() { Ok(()) } else { Err(format!("{alive:?}")) }
    })
    .await?;

    let found = cluster::down(&folder)?;
    ensure!(found.iter().any(|trace| trace.starts_with("cgroup ")), "{found:?}");
    ensure!(cluster::traces(&folder)?.is_empty());
    ensure!(devices()? == before, "network devices");
    ensure!(cluster::down(&folder)?.is_empty(), "down of nothing finds something");
    Ok(())
}

/// Everything that runs in the cluster's cgroups.
fn container_processes(folder: &Folder) -> Result<Vec<String>> {
    fn collect(folder: &std::path::Path, found: &mut Vec<String>) -> std::io::Result<()> {
        let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().map(str::to_owned));
        for entry in std::fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
            collect(&entry.path(), found)?;
        }
        Ok(())
    }
    let mut found = Vec::new();
    for trace in cluster::traces(folder)? {
        if let Some(path) = trace.strip_prefix("cgroup ") {
            // One of several hierarchies may be gone between the two looks.
            let _ = collect(path.as_ref(), &mut found);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn an_api_server_that_was_killed_comes_back_with_all_it_knew() -> Result<()> {
    let (folder, cluster) = own_cluster("run-again").await?;
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=answer=42"]).run().await?;
    cluster.signal("kube-apiserver", Signal::SIGKILL)?;
    eventually(LIMIT, "what was stored is there", || async {
        let kept: Value = cluster.kubectl(&["get", "configmap", "kept"]).json().await?;
        ensure!(kept["data"]["answer"] == "42", "{kept}");
        Ok(())
    })
    .await?;
    cluster::down(&folder)?;
    Ok(())
}
