//! When things break: the cases of part C on the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_tests::eventually;
use tokio::net::TcpListener;

use super::{
    laptop::Laptop,
    stage::{Intercepting, LIMIT, Stage, Told, condition},
};

const MINE: [&str; 2] = ["--header", "x-user: ann"];

/// Requests of ours and of others side by side for `seconds`, one every 20 ms each, while `happen` does something.
async fn during(
    stage: &Stage,
    to: &str,
    seconds: &str,
    happen: impl Future<Output = Result<()>>,
) -> Result<(Told, Told)> {
    let steady = [to, "--during", seconds, "--every", "20"];
    let ours = [&steady[..], &MINE].concat();
    let (ours, others, happened) = tokio::join!(stage.call(&ours), stage.call(&steady), happen);
    happened?;
    Ok((ours?, others?))
}

/// That the others were served by the pod, all of them and without a pause.
fn untouched(others: &Told) -> Result<()> {
    let served = others.failed == 0 && others.answers.keys().all(|who| who == "pod");
    ensure!(served && others.slowest_ms < 1000, "requests that do not fit: {others:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c01_a_client_that_is_killed_or_asleep_hangs_nobody() -> Result<()> {
    let stage = Stage::new("c01").await?;
    stage.deploy("add", 2).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
        let breaks = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            intercepting.signal(signal)
        };
        let (ours, others) = during(&stage, "http://add/sum", "14", breaks).await?;
        untouched(&others)?;
        ensure!(ours.failed == 0 && ours.slowest_ms < 6000, "{signal}: {ours:?}");
        let who: Vec<_> = ours.changes.iter().map(|(_, who)| who.as_str()).collect();
        ensure!(who == ["laptop", "pod"], "{signal}: {ours:?}");
        intercepting.kill().await?;
        ann.succeed(&["intercept", "remove", "add"]).await?;
    }
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c02_a_client_that_comes_back_goes_on_with_the_same_intercept() -> Result<()> {
    let stage = Stage::new("c02").await?;
    stage.deploy("add", 2).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
    let uid = stage.intercept("add").await?["metadata"]["uid"].clone();
    let mine = [&["http://add/sum", "--count", "20"][..], &MINE].concat();
    stage.call(&mine).await?.all_by("laptop", 20)?;
    intercepting.signal(Signal::SIGSTOP)?;
    stage.becomes("add", "False", "0/2").await?;
    stage.call(&mine).await?.all_by("pod", 20)?;
    intercepting.signal(Signal::SIGCONT)?;
    let back = stage.becomes("add", "True", "2/2").await?;
    ensure!(back["metadata"]["uid"] == uid, "another intercept");
    stage.call(&mine).await?.all_by("laptop", 20)?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    intercepting.stop().await?;
    stage.finish().await
}

/// The agent's first process in a pod of this machine, the parent: the one of those that Kubernetes has told the pod's uid
/// that nobody of them has started.
pub(crate) fn agent_process(uid: &str) -> Result<i32> {
    agent_processes(uid, false)
}

/// The agent proper, which the first process has started.
pub(crate) fn agent_worker(uid: &str) -> Result<i32> {
    agent_processes(uid, true)
}

fn agent_processes(uid: &str, worker: bool) -> Result<i32> {
    let wanted = format!("SLUICE_POD_UID={uid}");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        let is_worker = variables.clone().any(|variable| variable.starts_with(b"SLUICE_AGENT_WORKER="));
        if is_worker == worker && variables.any(|variable| variable == wanted.as_bytes()) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of the agent in the pod {uid} (worker: {worker})")
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c04_an_agent_that_is_killed_leaves_the_app_to_its_callers_and_comes_back() -> Result<()> {
    let stage = Stage::new("c04").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
    let found = stage.intercept("add").await?;
    let uid = found["status"]["pods"][0]["uid"].as_str().context("no pod")?;
    let pid = agent_process(uid)?;
    let network = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
    let kill = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
    };
    // At its own address: a pod of which any container is down is not ready, so for a moment the Service has no other.
    let address = found["status"]["pods"][0]["tunnel"].as_str().context("no tunnel")?;
    let to = format!("http://{}:8080/sum", address.split(':').next().unwrap_or_default());
    let (ours, others) = during(&stage, &to, "20", kill).await?;
    // At most the one that was under way; the next one finds the app.
    ensure!(ours.failed <= 1 && others.failed <= 1, "{ours:?} {others:?}");
    ensure!(ours.slowest_ms < 1500 && others.slowest_ms < 1500, "{ours:?} {others:?}");
    let who: Vec<_> = ours.changes.iter().map(|(_, who)| who.as_str()).collect();
    ensure!(who == ["laptop", "pod", "laptop"], "{ours:?}");
    stage.becomes("add", "True", "1/1").await?;
    // Of the one that was killed nothing holds on to the pod's network.
    let again = agent_process(uid)?;
    ensure!(again != pid && std::fs::read_link(format!("/proc/{again}/ns/net"))? == network, "another network");
    let links = std::process::Command::new("bpftool").args(["-j", "link", "list"]).output()?;
    let links: Vec<Value> = serde_json::from_slice(&links.stdout).context("bpftool link list")?;
    let inode = network.to_string_lossy().trim_start_matches("net:[").trim_end_matches(']').to_owned();
    let ours =
        links.iter().filter(|link| link["netns_ino"].as_u64().is_some_and(|found| found.to_string() == inode)).count();
    ensure!(ours == 1, "{ours} links in the pod's network");
    intercepting.stop().await?;
    stage.finish().await
}

/// Waits until the API server has pods injected, or has none any more.
async fn injects(stage: &Stage, wanted: bool) -> Result<()> {
    let what = if wanted { "pods are injected" } else { "pods are not injected any more" };
    eventually(LIMIT, what, || async {
        let image = format!("--image={}", stage.images.demo);
        let probe = ["run", "probe", &image, "--dry-run=server"];
        let pod: Value = stage.namespace.kubectl(&probe).json().await?;
        ensure!(pod["spec"].to_string().contains("sluice-agent") == wanted, "{}", pod["spec"]);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c05_intercepts_go_on_while_the_control_plane_is_away_and_its_state_is_right_afterwards() -> Result<()> {
    let stage = Stage::alone("c05").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http"), "--header", "x-user=ann"]).await?;
    let system = ["--namespace", super::stage::SYSTEM];
    let control = async |arguments: &[&str]| stage.cluster.kubectl(&system).arguments(arguments).run().await;
    let away = async {
        control(&["scale", "deployment/sluice-webhook", "--replicas=0"]).await?;
        control(&["delete", "pods", "--all", "--force", "--grace-period=0"]).await?;
        // The API server keeps its connections, and containers live a little longer than their pods.
        injects(&stage, false).await?;
        let mine = [&["http://add/sum", "--count", "20"][..], &MINE].concat();
        stage.call(&mine).await?.all_by("laptop", 20)?;
        stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("pod", 20)?;
        // A pod that is made meanwhile starts, without agent.
        stage.namespace.kubectl(&["scale", "deployment/add", "--replicas=2"]).run().await?;
        stage.rolled_out("deployment/add").await?;
        eventually(LIMIT, "callers reach both pods, of which one is intercepted", || async {
            let told = stage.call(&[&["http://add/sum", "--count", "100"][..], &MINE].concat()).await?;
            ensure!(told.failed == 0 && told.answers.len() == 2, "{told:?}");
            Ok(())
        })
        .await
    };
    let outcome = Box::pin(away).await;
    // Whatever has come out: other tests need the control plane.
    control(&["scale", "deployment/sluice-webhook", "--replicas=2"]).await?;
    control(&["rollout", "status", "deployment/sluice-webhook", "--timeout=120s"]).await?;
    outcome?;
    let back = stage.becomes("add", "False", "1/2").await?;
    let bare = back["status"]["pods"].as_array().context("no pods")?.iter().find(|pod| pod["programmed"] == false);
    let bare = bare.context("every pod has the rule")?;
    // It is up before every API server knows the way to it.
    injects(&stage, true).await?;
    ensure!(bare["reason"].as_str().is_some_and(|reason| reason.contains("no agent")), "{bare}");
    let pod = format!("pod/{}", bare["name"].as_str().unwrap_or_default());
    stage.namespace.kubectl(&["delete", &pod]).run().await?;
    stage.becomes("add", "True", "2/2").await?;
    let all = stage.namespace.get("intercepts").await?;
    ensure!(all["items"].as_array().is_some_and(|items| items.len() == 1), "{all}");
    stage.rolled_out("deployment/add").await?;
    stage.call(&[&["http://add/sum", "--count", "50"][..], &MINE].concat()).await?.all_by("laptop", 50)?;
    intercepting.stop().await?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c06_intercepts_go_on_while_the_api_server_is_unreachable_for_half_a_minute() -> Result<()> {
    let stage = Stage::alone("c06").await?;
    stage.deploy("add", 1).await?;
    // Without the API server there is no port-forward: this client reaches the pods themselves.
    let (ann, laptop) = (stage.user("ann").await?, Laptop::nearby(&stage.cluster, "laptop").await?);
    let arguments = ["intercept", "add", "add", "--port", &laptop.port("http"), "--header", "x-user=ann"];
    let intercepting = Intercepting::start(ann.sluice_nearby(&arguments)?).await?;
    ensure!(intercepting.summary.contains("direct"), "{}", intercepting.summary);
    let stopped = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        stage.cluster.signal("kube-apiserver", Signal::SIGSTOP)?;
        tokio::time::sleep(Duration::from_secs(30)).await;
        stage.cluster.signal("kube-apiserver", Signal::SIGCONT)
    };
    let (ours, others) = during(&stage, "http://add/sum", "36", stopped).await?;
    untouched(&others)?;
    let all_taken = ours.failed == 0 && ours.answers.keys().all(|who| who == "laptop");
    ensure!(all_taken && ours.answers["laptop"] > 500, "{ours:?}");
    stage.becomes("add", "True", "1/1").await?;
    intercepting.stop().await?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c08_starting_and_stopping_under_load_fails_no_request_of_others() -> Result<()> {
    let stage = Stage::new("c08").await?;
    stage.deploy("add", 2).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let (port, mut taken) = (laptop.port("http"), 0);
    let rounds = async {
        for _ in 0..3 {
            let intercepting = ann.intercept(&["add", "--port", &port, "--header", "x-user=ann"]).await?;
            stage.call(&[&["http://add/sum", "--count", "20"][..], &MINE].concat()).await?.all_by("laptop", 20)?;
            taken += 20;
            intercepting.stop().await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let load = ["http://add/sum", "--during", "20", "--every", "2", "--parallel", "8"];
    let kept = [&load[..], &["--keep-alive"]].concat();
    let (fresh, kept, rounds) = tokio::join!(stage.call(&load), stage.call(&kept), rounds);
    rounds?;
    for others in [fresh?, kept?] {
        ensure!(others.failed == 0 && others.answers.keys().all(|who| who == "pod"), "{others:?}");
        ensure!(others.answers["pod"] > 1000, "too few to be load: {others:?}");
    }
    ensure!(taken == 60);
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c09_an_interrupted_creation_leaves_nothing_behind() -> Result<()> {
    let stage = Stage::new("c09").await?;
    stage.deploy("add", 1).await?;
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let port = laptop.port("http");
    let arguments = ["intercept", "add", "add", "--port", &port, "--header", "x-user=ann"];
    let mut created = 0;
    for delay in (0..1200).step_by(60) {
        let mut child = ann.sluice(&arguments)?.stdout(std::process::Stdio::null()).spawn()?;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        created += usize::from(stage.namespace.get("intercept/add").await.is_ok());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().context("it has ended by itself")?)?);
        nix::sys::signal::kill(pid, if delay % 120 == 0 { Signal::SIGINT } else { Signal::SIGTERM })?;
        tokio::time::timeout(LIMIT, child.wait()).await.context("it does not end")??;
        let left = stage.namespace.kubectl(&["get", "intercepts", "-o", "name"]).run().await?;
        ensure!(left.trim().is_empty(), "after {delay} ms: {left}");
    }
    ensure!(created > 0, "none was interrupted late enough to have been created");
    // By its own deadline: this workload has no agent.
    stage
        .namespace
        .kubectl(&["label", "namespace", stage.namespace.name(), "sluice.dev/inject=disabled", "--overwrite"])
        .run()
        .await?;
    stage.deploy("bare", 1).await?;
    let said = ann.fail(&["intercept", "add", "bare", "--port", &port, "--timeout", "3s"]).await?;
    ensure!(said.contains("no agent") && said.contains("kubectl label namespace"), "{said}");
    let left = stage.namespace.kubectl(&["get", "intercepts", "-o", "name"]).run().await?;
    ensure!(left.trim().is_empty(), "{left}");
    stage.call(&[&["http://add/sum", "--count", "20"][..], &MINE].concat()).await?.all_by("pod", 20)?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c10_an_abandoned_intercept_is_taken_over_expires_or_is_deleted_by_an_admin() -> Result<()> {
    let stage = Stage::new("c10").await?;
    stage.deploy("add", 1).await?;
    stage.deploy("other", 1).await?;
    let (ann, bob) = (stage.user("ann").await?, stage.user("bob").await?);
    let (laptop, second) = (Laptop::start("ann").await?, Laptop::start("bob").await?);
    // Deleted by an admin: the client notices and ends, and the app answers.
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http")]).await?;
    stage.call(&["http://add/sum", "--count", "5"]).await?.all_by("ann", 5)?;
    stage.namespace.kubectl(&["delete", "intercept", "add"]).run().await?;
    intercepting.ended().await?;
    stage.call(&["http://add/sum", "--count", "5"]).await?.all_by("pod", 5)?;
    // Expires although its client is there.
    let expiring = ann.intercept(&["other", "--port", &laptop.port("http"), "--ttl", "1m"]).await?;
    // Taken over: not before its client has been away for a minute.
    ann.intercept(&["add", "--port", &laptop.port("http")]).await?.kill().await?;
    let port = second.port("http");
    let newcomer = ["bobs", "--workload", "Deployment/add", "--port", &port];
    let refused = bob.fail(&[&["intercept", "add"][..], &newcomer].concat()).await?;
    ensure!(refused.contains("add") && refused.contains(&ann.name), "{refused}");
    let taken = eventually(LIMIT, "the newcomer takes over", || bob.intercept(&newcomer)).await?;
    stage.call(&["http://add/sum", "--count", "5"]).await?.all_by("bob", 5)?;
    let left = eventually(LIMIT, "the abandoned one is gone", || async {
        let left = stage.namespace.kubectl(&["get", "intercepts", "-o", "name"]).run().await?;
        ensure!(!left.lines().any(|name| name == "intercept.sluice.dev/add"), "{left}");
        Ok(left)
    });
    left.await?;
    expiring.ended().await?;
    stage.call(&["http://other/sum", "--count", "5"]).await?.all_by("pod", 5)?;
    taken.stop().await?;
    stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn c11_probes_on_the_intercepted_port_never_reach_a_laptop_at_a_breakpoint() -> Result<()> {
    let stage = Stage::new("c11").await?;
    stage.deploy("add", 1).await?;
    let probes = serde_json::json!([
        { "op": "add", "path": "/spec/template/spec/containers/0/livenessProbe", "value":
            { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1, "failureThreshold": 1 } },
        { "op": "add", "path": "/spec/template/spec/containers/0/startupProbe", "value":
            { "grpc": { "port": 9090 }, "periodSeconds": 1, "failureThreshold": 30 } },
        { "op": "replace", "path": "/spec/template/spec/containers/0/readinessProbe", "value":
            { "grpc": { "port": 9090 }, "periodSeconds": 1, "failureThreshold": 1 } },
    ]);
    stage.namespace.kubectl(&["patch", "deployment/add", "--type=json", "-p", &probes.to_string()]).run().await?;
    stage.rolled_out("deployment/add").await?;
    // A TCP probe as well, on another workload.
    stage.deploy("tcp", 1).await?;
    // The laptop accepts and says nothing: somebody looks at a breakpoint.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let local = listener.local_addr()?.port();
    let (http, grpc) = (format!("{local}:http"), format!("{local}:grpc"));
    let ann = stage.user("ann").await?;
    let first = ann.intercept(&["add", "--port", &http, "--port", &grpc]).await?;
    let second = ann.intercept(&["tcp", "--port", &http]).await?;
    let accepted = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
            if held.len() == 3 {
                break;
            }
        }
        // Held until the test ends.
        let count = held.len();
        std::future::pending::<()>().await;
        (held, count)
    });
    let ready = async |name: &str| {
        let selector = format!("--selector=app={name}");
        let pods: Value = stage.namespace.kubectl(&["get", "pods", &selector, "-o", "json"]).json().await?;
        let pod = pods["items"].as_array().and_then(|pods| pods.first()).cloned().context("no pod")?;
        let restarts = pod["status"]["containerStatuses"].as_array().context("no containers")?;
        let restarts: i64 = restarts.iter().filter_map(|container| container["restartCount"].as_i64()).sum();
        let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
        let since = conditions.iter().find(|condition| condition["type"] == "Ready");
        let since = since.and_then(|condition| condition["lastTransitionTime"].as_str()).unwrap_or_default().to_owned();
        Ok::<_, anyhow::Error>((condition(&pod, "Ready"), since, restarts))
    };
    let before = (ready("add").await?, ready("tcp").await?);
    // Ordinary callers do reach the breakpoint, and wait there.
    let (web, rpc, tcp) = tokio::join!(
        stage.call(&["http://add/sum", "--during", "1"]),
        stage.call(&["http://add:9090/sum", "--during", "1"]),
        stage.call(&["http://tcp/sum", "--during", "1"])
    );
    for told in [web?, rpc?, tcp?] {
        ensure!(told.failed == 1 && told.answers.is_empty() && told.slowest_ms >= 25_000, "{told:?}");
    }
    // Half a minute of probes, one a second of each kind, any of which would have been enough.
    let after = (ready("add").await?, ready("tcp").await?);
    ensure!(before == after && before.0.0.as_deref() == Some("True"), "{before:?} {after:?}");
    accepted.abort();
    first.stop().await?;
    second.stop().await?;
    stage.finish().await
}
