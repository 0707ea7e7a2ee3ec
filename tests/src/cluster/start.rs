//! Starts a cluster and takes it down again.
//!
//! Runs outside of the cluster's namespaces; talks to it as any client does.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};

use super::{
    cgroups, config,
    folder::{self, Folder, VARIABLE},
    keys,
    kubectl::{self, Kubectl},
    pause, program,
};
use crate::{binaries, eventually};

/// How long a cluster may take to get ready on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long one that is up may be away: a component that was killed is started again.
const AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// How long the kernel may take to free what nobody holds any more.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What a cluster of one's own needs besides the program: each tool and its package on Debian.
const TOOLS: [(&str, &str); 7] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];

/// Where Debian has the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni/ptp";

/// Starts a cluster in this folder and waits until pods can be made. False when it is up already.
pub(crate) async fn up(folder: &Folder) -> Result<bool> {
    let _lock = folder.lock()?;
    if folder.init().is_some() && folder.complete().exists() {
        // An API server that was killed a moment ago is on its way back.
        let ready = || async { is_ready(folder).await };
        if eventually(AGAIN_WITHIN, "the cluster that is up is ready", ready).await.is_ok() {
            return Ok(false);
        }
    }
    require_tools()?;
    let program = program::ensure()?;
    // What was killed half-way, or is there no longer in full.
    remove(folder)?;
    let started = begin(folder, &program).await;
    if started.is_ok() {
        fs::write(folder.complete(), "")?;
    } else {
        // What it has printed is worth more than an empty folder.
        end_processes(folder)?;
        cgroups::remove(&folder.cgroup())?;
    }
    started.map(|()| true).with_context(|| format!("starting the cluster; its logs are in {}", folder.logs().display()))
}

/// Takes the cluster down and proves that nothing is left. Returns what there was.
pub(crate) fn down(folder: &Folder) -> Result<Vec<String>> {
    let _lock = folder.lock()?;
    let found = traces(folder)?;
    remove(folder)?;
    let left = traces(folder)?;
    ensure!(left.is_empty(), "left behind: {}", left.join("; "));
    Ok(found)
}

/// Everything on this machine that belongs to the cluster.
pub(crate) fn traces(folder: &Folder) -> Result<Vec<String>> {
    let processes = folder.processes().into_iter();
    let mut traces: Vec<_> =
        processes.map(|process| format!("process {} ({})", process.pid, process.words.join(" "))).collect();
    for cgroup in cgroups::present(&folder.cgroup())? {
        traces.push(format!("cgroup {}", cgroup.display()));
    }
    if folder.path().exists() {
        traces.push(format!("folder {}", folder.path().display()));
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let path = folder.path().display().to_string();
    traces.extend(mounts.lines().filter(|line| line.contains(&path)).map(|line| format!("mount {line}")));
    Ok(traces)
}

/// Clusters of other folders that are up on this machine.
pub(crate) fn others(folder: &Folder) -> Vec<Folder> {
    let inits = folder::processes().into_iter().filter(|process| process.is_init);
    inits.map(|process| Folder::at(process.folder)).filter(|other| other != folder).collect()
}

/// Whether the API server says so.
pub(crate) async fn is_ready(folder: &Folder) -> bool {
    let Ok(kubectl) = kubectl::own(folder) else { return false };
    let ready = Kubectl::new(kubectl, &["get", "--raw=/readyz"]).within(Duration::from_secs(10)).run().await;
    ready.is_ok_and(|text| text.trim() == "ok")
}

async fn begin(folder: &Folder, program: &Path) -> Result<()> {
    for path in [folder.logs(), folder.keys(), folder.config("")] {
        fs::create_dir_all(path)?;
    }
    // Free here; the cluster's network is its own, so it is free there too. One kubeconfig serves on both sides.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening the cluster's port")?;
    let port = listener.local_addr()?.port();
    keys::write(&folder.keys(), port)?;
    fs::copy(folder.keys().join("admin.kubeconfig"), folder.kubeconfig())?;
    config::write(folder)?;
    cgroups::make(&folder.cgroup())?;
    start_node(folder, program, port, listener)?;

    let pause = pause::image(folder)?;
    import(folder, &pause).await?;
    let kubectl = kubectl::own(folder)?;
    let run = |arguments: &'static [&'static str]| Kubectl::new(kubectl.clone(), arguments);
    alive(folder, "the API server is ready", || async { Ok(is_ready(folder).await) }).await?;
    run(&["apply", "-f", "-"]).input(&config::dns_service().to_string()).run().await?;
    let node = format!("node/{}", config::NODE);
    alive(folder, "the node is ready", || async {
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let found = run(&["get", "--ignore-not-found"]).arguments(&[&node, "-o", ready]).run().await?;
        Ok(found.trim() == "True")
    })
    .await?;
    alive(folder, "the namespace default has its ServiceAccount", || async {
        let account =
            run(&["get", "serviceaccount/default", "--namespace=default", "--ignore-not-found"]).run().await?;
        Ok(!account.trim().is_empty())
    })
    .await
}

/// Tries until it is so; fails at once, with what it has said, when the node has ended.
async fn alive<F>(folder: &Folder, what: &str, mut attempt: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let outcome = eventually(READY_WITHIN, what, || {
        let gone = folder.init().is_none();
        let attempt = attempt();
        async move {
            match attempt.await {
                Ok(true) => Ok(Ok(())),
                _ if gone => Ok(Err(anyhow::anyhow!("the node has ended"))),
                Ok(false) => Err("not yet".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        }
    });
    let log = || fs::read_to_string(folder.logs().join("node.log")).unwrap_or_default();
    outcome.await?.with_context(|| format!("{what}: {}", log().trim()))
}

fn start_node(folder: &Folder, program: &Path, port: u16, listener: TcpListener) -> Result<()> {
    let log = fs::File::create(folder.logs().join("node.log"))?;
    let node = binaries::find("sluice-cluster")?;
    let mut command = Command::new("unshare");
    command
        // Killing `unshare` kills the node, and that all the rest.
        .args(["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(node)
        .arg("node")
        .arg("--folder")
        .arg(folder.path())
        .arg("--program")
        .arg(program)
        .args(["--port", &port.to_string()])
        .env(VARIABLE, folder.path())
        // What a component reads from there would be the caller's.
        .env_remove("KUBECONFIG")
        .current_dir("/")
        // A Ctrl-C at the terminal is for whoever has started it.
        .process_group(0)
        .stdin(OwnedFd::from(listener))
        .stdout(log.try_clone()?)
        .stderr(log);
    // Not waited for: it outlives this program.
    command.spawn().context("starting the node through unshare (package util-linux)")?;
    alive_node(folder)
}

fn alive_node(folder: &Folder) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while folder.init().is_none() {
        if Instant::now() > deadline {
            let log = fs::read_to_string(folder.logs().join("node.log")).unwrap_or_default();
            bail!("the node does not start: {}", log.trim());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Makes an image known to the cluster's node.
pub(crate) async fn import(folder: &Folder, tar: &Path) -> Result<()> {
    let what = format!("{} is imported", tar.display());
    alive(folder, &what, || async {
        let mut ctr = enter(folder, &["--mount"])?;
        ctr.args(["ctr", "--address", config::CONTAINERD, "--namespace", "k8s.io", "image", "import"]).arg(tar);
        kubectl::output(ctr, "", Duration::from_secs(60)).await.map(|_| true)
    })
    .await
}

/// `nsenter` into namespaces of the node.
pub(crate) fn enter(folder: &Folder, namespaces: &[&str]) -> Result<Command> {
    let init = folder.init().context("no cluster is up: cargo xtask cluster up")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={init}")).args(namespaces).arg("--");
    Ok(command)
}

fn remove(folder: &Folder) -> Result<()> {
    end_processes(folder)?;
    retry(|| cgroups::remove(&folder.cgroup()))?;
    // The last writers are gone, but may have left the kernel busy.
    retry(|| match fs::remove_dir_all(folder.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.path().display()))
        }
        _ => Ok(()),
    })
}

/// SIGKILL: the kernel ends everything in the node's process namespace, and there is no state worth a farewell.
fn end_processes(folder: &Folder) -> Result<()> {
    retry(|| {
        let processes = folder.processes();
        for process in &processes {
            // Gone in the meantime is what was wanted.
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        ensure!(processes.is_empty(), "{} processes of the cluster still run", processes.len());
        Ok(())
    })
}

fn retry(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        match attempt() {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
            Ok(()) => return Ok(()),
        }
    }
}

fn require_tools() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "a cluster of one's own needs root: cargo xtask cluster up");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let mut missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| !folders.iter().any(|folder| folder.join(tool).exists()))
        .map(|(_, p)| *p)
        .collect();
    if !Path::new(PLUGINS).exists() {
        missing.push("containernetworking-plugins");
    }
    missing.dedup();
    ensure!(missing.is_empty(), "missing packages: {} (`cargo xtask cluster up` installs them)", missing.join(", "));
    Ok(())
}
