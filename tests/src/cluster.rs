//! A real Kubernetes for tests and for trying: one node on this machine, or the cluster that `KUBECONFIG` names.
//!
//! [`Cluster::get`] is where a test begins; `sluice-cluster` is the same for people (`cargo xtask cluster`). A cluster of
//! our own is made of one program with all of Kubernetes (`tests/cluster`, built once) and Debian's containerd, runc and CNI
//! plugins. It lives in namespaces of its own: nothing of it is seen outside, but the API server on a loopback port, and
//! the kernel takes it all down with one process. Several run side by side.
//!
//! Not in here: anything about Sluice.

mod cgroups;
mod config;
mod folder;
mod keys;
mod kubectl;
mod namespace;
mod pause;
mod start;

pub mod node;
pub mod program;

use std::{
    env,
    ffi::OsStr,
    fs::File,
    net,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
};
use tokio::net::TcpStream;

pub use folder::Folder;
pub(crate) use folder::hex;
pub use kubectl::Kubectl;
pub use namespace::Namespace;

/// How long a connection into the cluster may take.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);

/// A cluster that is up.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: kubectl::Program,
    /// Where it is, if it is one of our own.
    folder: Option<Folder>,
}

/// Whether a component of a cluster runs.
#[derive(Clone, Debug)]
pub struct ComponentStatus {
    /// Its name.
    pub name: &'static str,
    /// Its process as this machine sees it.
    pub pid: Option<i32>,
}

/// The kubeconfig that the user has chosen in place of a cluster of our own.
pub fn given() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("KUBECONFIG").filter(|path| !path.is_empty())?);
    // A shell beside our own cluster has it set as well.
    let ours = Folder::of_checkout().is_ok_and(|folder| folder.kubeconfig() == path);
    (!ours).then_some(path)
}

/// Starts a cluster in this folder. False when it is up already.
pub async fn up(folder: &Folder) -> Result<bool> {
    Box::pin(start::up(folder)).await
}

/// Takes the cluster in this folder down, whatever state it is in, and fails if anything is left. Returns what there was.
pub fn down(folder: &Folder) -> Result<Vec<String>> {
    start::down(folder)
}

/// Everything on this machine that belongs to the cluster in this folder: processes, cgroups, files, mounts.
pub fn traces(folder: &Folder) -> Result<Vec<String>> {
    start::traces(folder)
}

/// Clusters of other folders that are up on this machine.
pub fn others(folder: &Folder) -> Vec<Folder> {
    start::others(folder)
}

/// The version of Kubernetes that a cluster of our own has.
pub fn kubernetes() -> Result<String> {
    program::kubernetes()
}

// === impl Cluster ===

impl Cluster {
    /// The cluster of `KUBECONFIG`, or else this checkout's own, which is started if it is not up. It stays up: the next
    /// test finds it.
    pub async fn get() -> Result<Self> {
        if let Some(kubeconfig) = given() {
            return Ok(Self { kubectl: kubectl::for_kubeconfig(kubeconfig)?, folder: None });
        }
        let folder = Folder::of_checkout()?;
        up(&folder).await?;
        Self::at(&folder)
    }

    /// The cluster in this folder, which is up.
    pub fn at(folder: &Folder) -> Result<Self> {
        ensure!(folder.init().is_some(), "no cluster is up: cargo xtask cluster up");
        Ok(Self { kubectl: kubectl::own(folder)?, folder: Some(folder.clone()) })
    }

    /// Whether it is one of our own, and not that of `KUBECONFIG`.
    pub fn is_own(&self) -> bool {
        self.folder.is_some()
    }

    /// The administrator's kubeconfig. Serves on this machine as well as inside the node's network.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubectl.kubeconfig
    }

    /// Whether it answers.
    pub async fn is_ready(&self) -> bool {
        let ready = self.kubectl(&["get", "--raw=/readyz"]).run().await;
        ready.is_ok_and(|text| text.trim() == "ok")
    }

    /// kubectl, as the administrator unless told otherwise.
    pub fn kubectl(&self, arguments: &[&str]) -> Kubectl {
        Kubectl::new(self.kubectl.clone(), arguments)
    }

    /// A namespace of the test's own. `name` says whose; the namespace's name is unique.
    pub async fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::new(self, name, &[]).await
    }

    /// The same, with labels from its first moment on.
    pub async fn labelled_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
        Namespace::new(self, name, labels).await
    }

    /// Makes an image ([`Image::save`](crate::image::Image::save)) known to the node. Its name must have a tag other than
    /// `latest`, and pods that use it `imagePullPolicy: IfNotPresent`, or the node looks for a registry.
    ///
    /// Somebody else's cluster can be given images only where its kind is told by the context's name: kind, k3d, minikube.
    pub async fn import(&self, tar: &Path) -> Result<()> {
        if let Some(folder) = &self.folder {
            return start::import(folder, tar).await;
        }
        let context = self.kubectl(&["config", "current-context"]).run().await?;
        let mut command = match context.trim() {
            context if context.starts_with("kind-") => {
                let mut command = Command::new("kind");
                command.args(["load", "image-archive", "--name", &context["kind-".len()..]]).arg(tar);
                command
            }
            context if context.starts_with("k3d-") => {
                let mut command = Command::new("k3d");
                command.args(["image", "import", "--cluster", &context["k3d-".len()..]]).arg(tar);
                command
            }
            "minikube" => {
                let mut command = Command::new("minikube");
                command.args(["image", "load"]).arg(tar);
                command
            }
            other => {
                bail!("no way is known to load an image into the cluster of context {other:?}: push it to a registry")
            }
        };
        command.env("KUBECONFIG", &self.kubectl.kubeconfig);
        kubectl::output(command, "", Duration::from_secs(120)).await.map(drop)
    }

    /// A command that runs in the node's network: pods and Services are reachable from there, as from a laptop in the
    /// same network. Everything else is the machine's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let folder = self.folder.as_ref().context("the network of the cluster of KUBECONFIG is not on this machine")?;
        let mut command = start::enter(folder, &["--net"])?;
        command.arg(program);
        Ok(command)
    }

    /// A connection out of the node's network: to a pod or a Service, as from a laptop in the same network.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let namespace = File::open(self.network_namespace()?)?;
        let (stream_tx, stream_rx) = tokio::sync::oneshot::channel();
        // A socket stays in the namespace that it was opened in. The thread that opened it is of no other use.
        thread::Builder::new().name("connect".to_owned()).spawn(move || {
            let connect = || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                let stream = net::TcpStream::connect_timeout(&to, CONNECTED_WITHIN)?;
                stream.set_nonblocking(true)?;
                Ok::<_, anyhow::Error>(stream)
            };
            // Nobody waits any more: the connection is closed.
            let _ = stream_tx.send(connect());
        })?;
        let stream = stream_rx.await?.with_context(|| format!("connecting to {to} in the cluster"))?;
        Ok(TcpStream::from_std(stream)?)
    }

    /// The path of the node's network namespace, for `setns` and `ip link set … netns`.
    pub fn network_namespace(&self) -> Result<PathBuf> {
        let init =
            self.folder.as_ref().and_then(Folder::init).context("the cluster is not on this machine, or not up")?;
        Ok(PathBuf::from(format!("/proc/{init}/ns/net")))
    }

    /// The components of a cluster of our own.
    pub fn components(&self) -> Vec<ComponentStatus> {
        let processes = self.folder.as_ref().map(Folder::processes).unwrap_or_default();
        let is = |words: &[String; 2], name: &str| words.iter().any(|word| word == name);
        let component = |name| {
            let process = processes.iter().find(|process| is(&process.words, name));
            ComponentStatus { name, pid: process.map(|process| process.pid.as_raw()) }
        };
        config::NAMES.into_iter().map(component).collect()
    }

    /// Sends a signal to a component (`kube-apiserver`, …): SIGSTOP and SIGCONT make it unreachable for a while; one that is
    /// killed is started again after a second.
    pub fn signal(&self, component: &str, signal: Signal) -> Result<()> {
        let components = self.components();
        let found = components.iter().find(|status| status.name == component).and_then(|status| status.pid);
        let pid = found.with_context(|| format!("{component} does not run in a cluster of our own"))?;
        kill(nix::unistd::Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {component}"))
    }
}
