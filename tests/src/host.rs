//! A host of a lab: a network namespace with a name, addresses and a thread inside.
//!
//! Sockets are made by that thread and used wherever the test runs: a socket stays in the namespace it was made in.

mod running;
mod worker;

use std::{
    collections::BTreeSet,
    fs,
    fs::File,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

pub use self::running::Running;
use self::worker::Worker;
use crate::{
    command, eventually, guard,
    guard::BpfObjects,
    lab::Shared,
    leftovers::NETNS_DIR,
    process::{Inner as ProcessInner, Process},
};

/// A host; clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    /// Name of the namespace under `/run/netns`.
    namespace: String,
    inode: u64,
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    worker: Mutex<Option<Arc<Worker>>>,
    /// What the namespace looked like before anything of Sluice ran in it.
    before: OnceLock<BTreeSet<String>>,
    started: AtomicUsize,
    devices: AtomicUsize,
    lab: Arc<Shared>,
}

/// Describes a host; [`HostBuilder::build`] makes it.
#[derive(Debug)]
#[must_use = "`build` makes the host"]
pub struct HostBuilder<'l> {
    name: String,
    lab: Arc<Shared>,
    hosts: &'l Mutex<Vec<Host>>,
    v4: Vec<String>,
    v6: Vec<String>,
}

// === impl HostBuilder ===

impl<'l> HostBuilder<'l> {
    pub(crate) fn new(name: &str, hosts: &'l Mutex<Vec<Host>>, lab: Arc<Shared>) -> Self {
        Self { name: name.to_owned(), lab, hosts, v4: Vec::new(), v6: Vec::new() }
    }

    /// Gives the host an IPv4 address. A host for which no address is given gets one of each family.
    pub fn v4(mut self, address: &str) -> Self {
        self.v4.push(address.to_owned());
        self
    }

    /// Gives the host an IPv6 address.
    pub fn v6(mut self, address: &str) -> Self {
        self.v6.push(address.to_owned());
        self
    }

    /// Makes the host: the namespace, with only `lo` in it, up.
    pub fn build(self) -> Result<Host> {
        let (mut v4, mut v6) = (parse::<Ipv4Addr>(&self.v4)?, parse::<Ipv6Addr>(&self.v6)?);
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if v4.is_empty() && v6.is_empty() {
            let number = u8::try_from(hosts.len() + 1).context("too many hosts")?;
            v4.push(Ipv4Addr::new(10, 77, 0, number));
            v6.push(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)));
        }
        let namespace = format!("{}-{}", self.lab.id, self.name);
        command::run("ip", &["netns", "add", &namespace], "")?;
        let path = Path::new(NETNS_DIR).join(&namespace);
        let inode = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?.ino();
        let worker = Worker::start(&self.name, &path)?;
        worker.call(prepare)??;
        let inner = Inner {
            name: self.name,
            namespace,
            inode,
            v4,
            v6,
            worker: Mutex::new(Some(Arc::new(worker))),
            before: OnceLock::new(),
            started: AtomicUsize::new(0),
            devices: AtomicUsize::new(0),
            lab: self.lab,
        };
        let host = Host { inner: Arc::new(inner) };
        hosts.push(host.clone());
        Ok(host)
    }
}

// === impl Host ===

impl Host {
    /// The name given to [`Lab::host`](crate::Lab::host).
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The namespace's file, for commands that a person runs: `nsenter --net=<path> …`.
    pub fn namespace_path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.inner.namespace)
    }

    /// Inode of the namespace: what `bpftool link` calls `netns_ino`.
    pub fn namespace_inode(&self) -> u64 {
        self.inner.inode
    }

    /// Its IPv4 addresses on all its links.
    pub fn v4_addresses(&self) -> &[Ipv4Addr] {
        &self.inner.v4
    }

    /// Its IPv6 addresses on all its links.
    pub fn v6_addresses(&self) -> &[Ipv6Addr] {
        &self.inner.v6
    }

    /// Its first IPv4 address, or its first IPv6 address when it has no other.
    pub fn address(&self) -> IpAddr {
        let first = self.inner.v4.first().map(|&v4| v4.into()).or_else(|| self.inner.v6.first().map(|&v6| v6.into()));
        first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Where others reach the given port of this host, by [`Host::address`].
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address(), port).into()
    }

    /// The same over IPv6.
    pub fn at_v6(&self, port: u16) -> Result<SocketAddr> {
        let v6 = self.inner.v6.first().with_context(|| format!("host {} has no IPv6 address", self.inner.name))?;
        Ok((*v6, port).into())
    }

    /// The lab's folder: files in it are removed with the lab.
    pub fn folder(&self) -> &Path {
        &self.inner.lab.folder
    }

    /// Does `work` on the host's thread, inside its namespace, and waits for it. For work that takes moments.
    pub fn enter<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let worker = self.inner.worker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let worker = worker.ok_or_else(|| anyhow!("host {} is gone: its lab is finished", self.inner.name))?;
        worker.call(work)
    }

    /// Runs asynchronous code on a thread and a runtime of its own inside the host.
    pub fn run<T, W, F>(&self, work: W) -> Result<Running<T>>
    where
        T: Send + 'static,
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let namespace = File::open(self.namespace_path())?;
        Running::start(self.inner.name.clone(), namespace, work)
    }

    /// Runs a tool that ends by itself inside the host and returns what it printed.
    pub fn tool(&self, program: &'static str, arguments: &[&str]) -> Result<String> {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        self.enter(move || command::run(program, &arguments, ""))?
    }

    /// Starts a program inside the host.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        self.start(command, Stdio::null(), None).map(|(process, ..)| process)
    }

    /// Starts a program inside the host that the caller talks to over its standard input and output.
    pub fn spawn_piped(&self, command: Command) -> Result<(Process, ChildStdin, ChildStdout)> {
        let (process, stdin, stdout) = self.start(command, Stdio::piped(), Some(Stdio::piped()))?;
        Ok((process, stdin.context("no pipe")?, stdout.context("no pipe")?))
    }

    /// A TCP connection out of this host.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.tcp_socket(to)?.connect(to).await.with_context(|| format!("connecting {} to {to}", self.inner.name))
    }

    /// The same from a given address and, unless it is 0, port.
    pub async fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
        let socket = self.tcp_socket(to)?;
        socket.set_reuseaddr(true)?;
        socket.bind(from).with_context(|| format!("binding to {from} in {}", self.inner.name))?;
        socket.connect(to).await.with_context(|| format!("connecting {} from {from} to {to}", self.inner.name))
    }

    /// An unconnected TCP socket inside this host, of the address's family.
    pub fn tcp_socket(&self, of: SocketAddr) -> Result<TcpSocket> {
        let socket = self.enter(move || if of.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })?;
        Ok(socket?)
    }

    /// A TCP listener inside this host. `[::]` is dual-stack.
    pub fn listen(&self, on: SocketAddr) -> Result<TcpListener> {
        const BACKLOG: u32 = 1024;
        let socket = self.tcp_socket(on)?;
        socket.set_reuseaddr(true)?;
        socket.bind(on).with_context(|| format!("listening on {on} in {}", self.inner.name))?;
        Ok(socket.listen(BACKLOG)?)
    }

    /// A UDP socket inside this host. It holds some thousand packets that nobody has read yet: what a test loses, it
    /// loses on the way.
    pub fn udp(&self, on: SocketAddr) -> Result<UdpSocket> {
        const BUFFER: usize = 8 * 1024 * 1024;
        let socket = self.enter(move || {
            let socket = std::net::UdpSocket::bind(on)?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            Ok::<_, io::Error>(socket)
        })?;
        Ok(UdpSocket::from_std(socket.with_context(|| format!("binding to {on} in {}", self.inner.name))?)?)
    }

    /// Remembers addresses, routes, rules and filters as they are now, for [`Host::nothing_left`]. The first call counts.
    pub fn remember_state(&self) -> Result<()> {
        if self.inner.before.get().is_none() {
            let state = self.enter(guard::network_state)??;
            let _ = self.inner.before.set(state);
        }
        Ok(())
    }

    /// Waits until nothing of the programs that have ended is left in this host: no BPF link on the namespace, none of
    /// the programs, maps and links they held, and addresses, routes, rules and filters as remembered.
    ///
    /// What programs that still run hold is not counted.
    pub async fn nothing_left(&self, within: Duration) -> Result<()> {
        let what = format!("nothing is left in {}", self.inner.name);
        eventually(within, &what, || async {
            let left = self.left()?;
            if left.is_empty() { Ok(()) } else { Err(anyhow!("{}", left.join("\n"))) }
        })
        .await
    }

    fn left(&self) -> Result<Vec<String>> {
        let Some(before) = self.inner.before.get() else {
            bail!("the state of {} was not remembered", self.inner.name);
        };
        let present = BpfObjects::of_system()?;
        let mut links = guard::links_in_namespace(self.inner.inode)?;
        let mut left = Vec::new();
        for process in self.inner.lab.processes() {
            if process.namespace != self.inner.inode {
                continue;
            }
            match process.status() {
                Ok(None) => process.running_links().iter().for_each(|link| {
                    links.remove(link);
                }),
                _ => left.extend(process.left(&present)),
            }
        }
        if !links.is_empty() {
            left.push(format!("links {links:?} on the namespace"));
        }
        let after = self.enter(guard::network_state)??;
        left.extend(guard::differences(before, &after));
        Ok(left)
    }

    fn start(
        &self,
        command: Command,
        stdin: Stdio,
        stdout: Option<Stdio>,
    ) -> Result<(Process, Option<ChildStdin>, Option<ChildStdout>)> {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = self.inner.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}-{program}", self.inner.name);
        let log = self.inner.lab.folder.join(format!("{name}.log"));
        let (lab, namespace) = (self.inner.lab.id.clone(), self.inner.inode);
        let (process, stdin, stdout) =
            self.enter(move || ProcessInner::start(&command, name, log, &lab, namespace, stdin, stdout))??;
        let process = Arc::new(process);
        self.inner.lab.add_process(Arc::clone(&process));
        Ok((Process::new(process), stdin, stdout))
    }

    /// A name for the device of this host that leads to `peer`, unique within the host.
    pub(crate) fn next_device(&self, peer: &Self) -> String {
        let number = self.inner.devices.fetch_add(1, Ordering::Relaxed);
        self.inner.lab.device_name(number, &peer.inner.name)
    }

    /// Leaves the namespace, which can then go.
    pub(crate) fn leave(&self) {
        let worker = self.inner.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(worker);
    }
}

fn parse<A: std::str::FromStr>(addresses: &[String]) -> Result<Vec<A>> {
    addresses
        .iter()
        // A length is accepted and of no consequence: hosts reach each other over host routes.
        .map(|text| text.split('/').next().unwrap_or(text))
        .map(|text| text.parse().map_err(|_| anyhow!("{text:?} is no address of this family")))
        .collect()
}

/// Brings a new namespace into the state that every host starts from.
fn prepare() -> Result<()> {
    // Addresses usable at once (no duplicate detection), and IPv6 addresses kept when a cable is pulled, as IPv4's are.
    for (file, value) in [("accept_dad", "0"), ("keep_addr_on_down", "1"), ("accept_ra", "0")] {
        for group in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{group}/{file}");
            fs::write(&path, value).with_context(|| format!("writing {path}"))?;
        }
    }
    command::run("ip", &["link", "set", "lo", "up"], "")?;
    Ok(())
}
