//! A namespace with the agent in its pods, users with few rights, and callers: what most tests of the cluster need.
//!
//! The control plane is installed once for each run, by the real `sluice install`, from the programs that stand beside
//! this test. Tests run side by side, except for those that hurt the control plane, which are alone ([`Stage::alone`]).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
pub(crate) use sluice_tests::product::Images;
use sluice_tests::{
    binaries,
    cluster::{Cluster, Namespace},
    eventually,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// How long anything may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The namespace of the control plane.
pub(crate) const SYSTEM: &str = "sluice-system";

/// Held for reading by tests that need the control plane, for writing by those that hurt it.
static CONTROL_PLANE: RwLock<()> = RwLock::const_new(());

static INSTALLED: OnceCell<Images> = OnceCell::const_new();

#[derive(Debug)]
enum Hold {
    #[expect(dead_code, reason = "held until the stage is dropped")]
    Shared(RwLockReadGuard<'static, ()>),
    #[expect(dead_code, reason = "held until the stage is dropped")]
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A labelled namespace with a caller in it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) namespace: Namespace,
    pub(crate) images: Images,
    _hold: Hold,
}

/// Somebody with the role `edit` in the stage's namespace, and nothing else.
#[derive(Debug)]
pub(crate) struct User {
    cluster: Cluster,
    kubeconfig: PathBuf,
    /// As the API server knows them.
    pub(crate) name: String,
    home: tempfile::TempDir,
}

/// A running `sluice intercept add`.
#[derive(Debug)]
pub(crate) struct Intercepting {
    child: Child,
    /// What it has printed until it was ready.
    pub(crate) summary: String,
}

/// What a caller has seen.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    pub(crate) answers: BTreeMap<String, u32>,
    pub(crate) failed: u32,
    #[expect(dead_code, reason = "shown when a test fails")]
    pub(crate) errors: Vec<String>,
    pub(crate) slowest_ms: u64,
    pub(crate) changes: Vec<(u64, String)>,
}

// === impl Stage ===

impl Stage {
    /// A namespace beside those of other tests.
    pub(crate) async fn new(name: &str) -> Result<Self> {
        Self::labelled(name, &[("sluice.dev/inject", "enabled")]).await
    }

    /// The same with labels of one's own.
    pub(crate) async fn labelled(name: &str, labels: &[(&str, &str)]) -> Result<Self> {
        Box::pin(Self::with(name, labels, Hold::Shared(CONTROL_PLANE.read().await))).await
    }

    /// A namespace while no other test needs the control plane.
    pub(crate) async fn alone(name: &str) -> Result<Self> {
        let hold = Hold::Alone(CONTROL_PLANE.write().await);
        Box::pin(Self::with(name, &[("sluice.dev/inject", "enabled")], hold)).await
    }

    async fn with(name: &str, labels: &[(&str, &str)], hold: Hold) -> Result<Self> {
        let cluster = Cluster::get().await?;
        let images = INSTALLED.get_or_try_init(|| Box::pin(install(&cluster))).await?.clone();
        let namespace = cluster.labelled_namespace(name, labels).await?;
        let stage = Self { cluster, namespace, images, _hold: hold };
        stage.namespace.apply(&stage.pod("caller", &["/call", "--idle"])).await?;
        Ok(stage)
    }

    /// A pod without agent and without ports.
    fn pod(&self, name: &str, command: &[&str]) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "sluice.dev/inject": "disabled" } },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [{
                "name": name, "image": self.images.demo, "imagePullPolicy": "IfNotPresent", "command": command }] } })
    }

    /// The pods' template for `add`, with these labels.
    pub(crate) fn template(&self, labels: &Value) -> Value {
        json!({ "metadata": { "labels": labels }, "spec": { "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "add", "image": self.images.demo, "imagePullPolicy": "IfNotPresent",
            "command": ["/add", "--http", "[::]:8080", "--grpc", "[::]:9090"],
            "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "grpc", "containerPort": 9090 }],
            "readinessProbe": { "tcpSocket": { "port": "http" }, "periodSeconds": 1 } }] } })
    }

    /// `add` as a Deployment, with a Service of the same name whose ports are 80 (http) and 9090 (grpc).
    pub(crate) async fn deploy(&self, name: &str, replicas: u32) -> Result<()> {
        let labels = json!({ "app": name });
        let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name }, "spec": {
            "replicas": replicas, "selector": { "matchLabels": labels }, "template": self.template(&labels) } });
        self.namespace.apply(&deployment).await?;
        self.namespace.apply(&service(name, &labels)).await?;
        self.rolled_out(&format!("deployment/{name}")).await?;
        self.namespace.wait("pod/caller", "condition=Ready", LIMIT).await?;
        self.served(&format!("http://{name}/sum")).await
    }

    /// Waits until all pods of a workload are there and ready.
    pub(crate) async fn rolled_out(&self, workload: &str) -> Result<()> {
        self.namespace.rolled_out(workload, LIMIT).await
    }

    /// Calls from inside the cluster.
    pub(crate) async fn call(&self, arguments: &[&str]) -> Result<Told> {
        let mut command = vec!["exec", "caller", "--", "/call"];
        command.extend(arguments);
        let told = self.namespace.kubectl(&command).within(LIMIT).run().await?;
        serde_json::from_str(told.trim()).with_context(|| format!("`call` printed {told:?}"))
    }

    /// Waits until requests to a Service are answered, by whomever: pods are ready before Services know of it.
    pub(crate) async fn served(&self, to: &str) -> Result<()> {
        eventually(LIMIT, "the Service has somebody who answers", || async {
            let told = self.call(&[to]).await?;
            ensure!(told.failed == 0, "{told:?}");
            Ok(())
        })
        .await
    }

    /// Somebody who may edit this namespace.
    pub(crate) async fn user(&self, name: &str) -> Result<User> {
        self.user_with(name, Some("edit")).await
    }

    /// Somebody with another role in this namespace, or with none.
    pub(crate) async fn user_with(&self, name: &str, role: Option<&str>) -> Result<User> {
        let namespace = self.namespace.name();
        self.namespace.kubectl(&["create", "serviceaccount", name]).run().await?;
        if let Some(role) = role {
            let (role, subject) = (format!("--clusterrole={role}"), format!("--serviceaccount={namespace}:{name}"));
            self.namespace.kubectl(&["create", "rolebinding", name, &role, &subject]).run().await?;
        }
        let token = self.namespace.kubectl(&["create", "token", name, "--duration=2h"]).run().await?;
        let config: Value = self.cluster.kubectl(&["config", "view", "--raw", "--minify", "-o", "json"]).json().await?;
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": config["clusters"][0]["cluster"] }],
            "users": [{ "name": name, "user": { "token": token.trim() } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name, "namespace": namespace } }] });
        let home = tempfile::tempdir()?;
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, config.to_string())?;
        let name = format!("system:serviceaccount:{namespace}:{name}");
        Ok(User { cluster: self.cluster.clone(), kubeconfig, name, home })
    }

    /// An Intercept as it stands in the API.
    pub(crate) async fn intercept(&self, name: &str) -> Result<Value> {
        self.namespace.get(&format!("intercept/{name}")).await
    }

    /// Waits until the Intercept's condition `Ready` is `ready` with so many pods, such as `2/2`.
    pub(crate) async fn becomes(&self, name: &str, ready: &str, pods: &str) -> Result<Value> {
        let what = format!("intercept {name} is ready: {ready}, pods {pods}");
        eventually(LIMIT, &what, || async {
            let found = self.intercept(name).await?;
            let seen = (condition(&found, "Ready"), found["status"]["podsReady"].as_str());
            ensure!(seen.0.as_deref() == Some(ready) && seen.1 == Some(pods), "{}", found["status"]);
            Ok(found)
        })
        .await
    }

    /// Removes the namespace.
    pub(crate) async fn finish(self) -> Result<()> {
        self.namespace.finish().await
    }
}

/// Status of a condition.
pub(crate) fn condition(object: &Value, kind: &str) -> Option<String> {
    let found = object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?;
    found["status"].as_str().map(str::to_owned)
}

/// A Service of `add`'s two ports.
pub(crate) fn service(name: &str, selector: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "selector": selector, "ports": [
        { "name": "http", "port": 80, "targetPort": "http" }, { "name": "grpc", "port": 9090, "targetPort": "grpc" }] } })
}

/// Makes images of the programs and installs them with the real command.
async fn install(cluster: &Cluster) -> Result<Images> {
    let images = Images::load(cluster).await?;
    images.install(cluster, Stdio::piped()).await?;
    Ok(images)
}

// === impl User ===

impl User {
    /// `sluice` with these arguments, on the machine: pods are reached through the API server only.
    pub(crate) fn sluice(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::find("sluice")?);
        self.complete(&mut command, arguments);
        Ok(command)
    }

    /// The same in the node's network, where pods are within reach.
    pub(crate) fn sluice_nearby(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::from(self.cluster.command(binaries::find("sluice")?)?);
        self.complete(&mut command, arguments);
        Ok(command)
    }

    fn complete(&self, command: &mut Command, arguments: &[&str]) {
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("RUST_BACKTRACE", "0");
        command.env("HOME", self.home.path()).env("XDG_CONFIG_HOME", self.home.path().join("config"));
        command.stdin(Stdio::null()).kill_on_drop(true);
    }

    /// Runs `sluice` to its end, whatever that is.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<Output> {
        output(self.sluice(arguments)?).await
    }

    /// Runs `sluice`, which must succeed, and gives what it prints on standard output.
    pub(crate) async fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments).await?;
        ensure!(output.status.success(), "sluice {}: {}", arguments.join(" "), text(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `sluice`, which must fail with status 1, and gives what it says.
    pub(crate) async fn fail(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments).await?;
        ensure!(output.status.code() == Some(1), "sluice {}: {}", arguments.join(" "), text(&output));
        Ok(text(&output))
    }

    /// `sluice intercept add` with these arguments, until it is ready.
    pub(crate) async fn intercept(&self, arguments: &[&str]) -> Result<Intercepting> {
        let mut all = vec!["intercept", "add"];
        all.extend(arguments);
        Intercepting::start(self.sluice(&all)?).await
    }
}

// === impl Intercepting ===

impl Intercepting {
    /// Starts the command and waits until it says that it intercepts.
    pub(crate) async fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut errors = child.stderr.take().context("no errors")?;
        let mut summary = String::new();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                summary.push_str(&line);
                summary.push('\n');
                if line.starts_with("Owner") {
                    return Ok(true);
                }
            }
            Ok::<_, anyhow::Error>(false)
        };
        let ready = tokio::time::timeout(LIMIT, ready).await;
        if !matches!(ready, Ok(Ok(true))) {
            let _ = child.start_kill();
            let mut said = String::new();
            errors.read_to_string(&mut said).await?;
            bail!("`sluice intercept add` did not become ready: {summary}{said}");
        }
        // Read on, or it would wait for room to write.
        tokio::spawn(async move { while matches!(lines.next_line().await, Ok(Some(_))) {} });
        tokio::spawn(async move { tokio::io::copy(&mut errors, &mut tokio::io::sink()).await });
        Ok(Self { child, summary })
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("killing sluice")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    /// SIGTERM; it must end well.
    pub(crate) async fn stop(self) -> Result<()> {
        self.signal(nix::sys::signal::Signal::SIGTERM)?;
        self.ended().await
    }

    /// Waits until it ends by itself, well.
    pub(crate) async fn ended(mut self) -> Result<()> {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "sluice intercept add: {status}");
        Ok(())
    }
}

// === impl Told ===

impl Told {
    /// That `who` has answered all `count` requests.
    pub(crate) fn all_by(&self, who: &str, count: u32) -> Result<()> {
        let all = self.failed == 0 && self.answers.get(who) == Some(&count) && self.answers.len() == 1;
        ensure!(all, "expected {count} answers of {who}: {self:?}");
        Ok(())
    }
}

/// Runs a command to its end.
pub(crate) async fn output(mut command: Command) -> Result<Output> {
    let output = tokio::time::timeout(LIMIT * 2, command.kill_on_drop(true).output()).await;
    output.context("the command does not end")?.context("the command does not start")
}

/// How a command ended and all that it said.
pub(crate) fn text(output: &Output) -> String {
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{errors}", output.status)
}
