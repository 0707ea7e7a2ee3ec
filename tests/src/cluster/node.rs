//! The node: the first process in a cluster's own namespaces, which starts the components and starts them again.
//!
//! Runs in a network, mount and process namespace of the cluster's own, as its process 1. Kubelet, containerd and CNI write
//! to fixed places (`/var/lib/kubelet`, `/run/netns`, `/var/log/containers`, …): here these are in memory and nobody else's.
//! When this process is killed, the kernel ends all others, containers included, and takes mounts and links away.
//!
//! Also passes connections on from the machine's loopback interface to the API server, by a socket that was opened
//! before the namespaces were.

use std::{
    collections::HashMap,
    fs,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::wait::{WaitStatus, waitpid},
};

use super::{
    config::{self, Component, NODE_PREFIX},
    folder::Folder,
};
use crate::command;

/// Folders of the machine in whose place the node has its own, empty and in memory.
const OWN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// How long those that a component needs may take until they listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(60);

/// A component that ends is started again after this time.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What the node is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster's folder.
    pub folder: PathBuf,
    /// The program with all components.
    pub program: PathBuf,
    /// The API server's port.
    pub port: u16,
}

/// Is the node until it is killed. `listener` is a socket on the machine's loopback interface.
pub fn run(plan: &Plan, listener: TcpListener) -> Result<()> {
    let folder = Folder::at(plan.folder.clone());
    let shared = plan.program.ancestors().nth(2).context("the program lies in the folder of all clusters")?;
    mounts(shared)?;
    network()?;
    fs::create_dir_all("/var/lib/tmp")?;
    let node = Arc::new(Node { plan: plan.clone(), folder, running: Mutex::default() });
    let port = plan.port;
    thread::Builder::new().name("forward".to_owned()).spawn(move || forward(&listener, port))?;
    let starter = Arc::clone(&node);
    thread::Builder::new().name("start".to_owned()).spawn(move || {
        if let Err(error) = starter.start_all() {
            eprintln!("node: {error:#}");
            // Ends the cluster: whoever started it sees that at once, and this message.
            std::process::exit(1);
        }
    })?;
    node.reap()
}

#[derive(Debug)]
struct Node {
    plan: Plan,
    folder: Folder,
    /// By process id. Locked while one is started, so that its end is not noticed before its beginning.
    running: Mutex<HashMap<u32, (Component, Child)>>,
}

// === impl Node ===

impl Node {
    fn start_all(&self) -> Result<()> {
        for component in config::components(&self.folder, self.plan.port) {
            let (name, port) = (component.name, component.port);
            self.start(component)?;
            if let Some(port) = port {
                wait_for_listener(name, port)?;
            }
        }
        Ok(())
    }

    fn start(&self, component: Component) -> Result<()> {
        let log = self.folder.logs().join(format!("{}.log", component.name));
        let log = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        let mut command = if component.linked {
            let mut command = Command::new(&self.plan.program);
            command.arg(component.name);
            command
        } else {
            Command::new(component.name)
        };
        let command = command.args(&component.arguments).env("TMPDIR", "/var/lib/tmp").process_group(0);
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut running = self.lock();
        let child = command.spawn().with_context(|| format!("starting {}", component.name))?;
        running.insert(child.id(), (component, child));
        Ok(())
    }

    /// Waits for whatever ends, the orphans of others included: that is what a process 1 is there for.
    fn reap(self: &Arc<Self>) -> Result<()> {
        loop {
            let status = match waitpid(None, None) {
                Ok(status) => status,
                // Between two components there may be none.
                Err(nix::Error::ECHILD | nix::Error::EINTR) => {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
                Err(error) => return Err(error).context("waiting for children"),
            };
            let (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = status else { continue };
            let ended = u32::try_from(pid.as_raw()).ok().and_then(|pid| self.lock().remove(&pid));
            if let Some((component, _)) = ended {
                eprintln!("node: {} has ended ({status:?}), starting it again", component.name);
                let node = Arc::clone(self);
                thread::Builder::new().name("again".to_owned()).spawn(move || {
                    thread::sleep(RESTART_AFTER);
                    if let Err(error) = node.start(component) {
                        eprintln!("node: {error:#}");
                    }
                })?;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, (Component, Child)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mounts(shared: &Path) -> Result<()> {
    // Opened before it may be hidden: a checkout can lie below one of these folders.
    let held = File::open(shared).with_context(|| format!("opening {}", shared.display()))?;
    for folder in OWN {
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .with_context(|| format!("mounting memory on {folder}"))?;
    }
    if OWN.iter().any(|own| shared.starts_with(own)) {
        fs::create_dir_all(shared)?;
        let held = PathBuf::from(format!("/proc/self/fd/{}", held.as_fd().as_raw_fd()));
        mount(Some(&held), shared, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("keeping the cluster's folder")?;
    }
    // Volumes that a pod mounts for others are seen by these, and still by nobody outside.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>).context("sharing mounts")
}

fn network() -> Result<()> {
    let commands = [
        "link set lo up",
        "link add node0 type bridge",
        &format!("address add {NODE_PREFIX} dev node0"),
        "link set node0 up",
        // Without it a process on the node cannot reach a Service's address.
        "route add default dev node0",
    ]
    .join("\n");
    command::run("ip", &["-batch", "-"], &commands)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("switching forwarding on")
}

fn wait_for_listener(name: &str, port: u16) -> Result<()> {
    let deadline = Instant::now() + LISTENS_WITHIN;
    while TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
        if Instant::now() > deadline {
            bail!("{name} does not listen after {LISTENS_WITHIN:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Joins connections from the machine to the API server.
fn forward(listener: &TcpListener, port: u16) {
    loop {
        let Ok((outside, _)) = listener.accept() else {
            // Out of file descriptors, or the peer has gone already.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        // An API server that is away looks the same from outside: the connection is reset.
        let Ok(inside) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) else { continue };
        if let Err(error) = join(outside, inside) {
            eprintln!("node: {error:#}");
        }
    }
}

fn join(outside: TcpStream, inside: TcpStream) -> Result<()> {
    let pairs = [(outside.try_clone()?, inside.try_clone()?), (inside, outside)];
    for (mut from, mut to) in pairs {
        from.set_nodelay(true)?;
        thread::Builder::new().name("forward".to_owned()).spawn(move || {
            // However it ends: the other end is told that nothing more comes.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        })?;
    }
    Ok(())
}
