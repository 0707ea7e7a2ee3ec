//! A network namespace for one test, and a caller, an app and an agent in it.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::MetadataExt},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sched::{CloneFlags, unshare},
};
use sluice_agent::kernel::{Kernel, Listeners, LoadOptions, PortKey};
use socket2::{Domain, Socket, Type};

/// For whatever the kernel does at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Runs a test on a thread in a new network namespace, with the loopback interface up.
pub(crate) fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let namespace = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
            run("ip link set lo up");
            test()
        });
        match namespace.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// As [`in_namespace`], for a test that awaits.
pub(crate) fn in_namespace_async<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
}

/// Runs a command in the namespace of this thread and returns what it printed.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The program ids of the `sk_lookup` links of this thread's network namespace, as the kernel lists them.
pub(crate) fn linked_programs() -> Vec<u32> {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let mut links = serde_json::Value::Null;
    // bpftool fails when a link of another test goes while it walks them.
    eventually("bpftool lists the links", || {
        let output = Command::new("bpftool").args(["-j", "link", "show"]).output().expect("bpftool is installed");
        links = serde_json::from_slice(&output.stdout).unwrap_or_default();
        output.status.success() && links.is_array()
    });
    let links = links.as_array().into_iter().flatten();
    links
        .filter(|link| link["type"] == "netns" && link["netns_ino"] == namespace)
        .filter_map(|link| u32::try_from(link["prog_id"].as_u64()?).ok())
        .collect()
}

/// Who accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    App,
    Agent,
}

/// A loaded kernel part, its listeners and an app's.
pub(crate) struct Scene {
    pub(crate) kernel: Kernel,
    pub(crate) agent: Option<Listeners>,
    pub(crate) apps: Vec<TcpListener>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(LoadOptions::default())
    }

    pub(crate) fn with(options: LoadOptions) -> Self {
        let mut kernel = Kernel::load(options).unwrap();
        let agent = kernel.take_listeners();
        Self { kernel, agent, apps: Vec::new() }
    }

    /// Adds an app that listens on an address; `v6only` matters to IPv6 addresses only.
    pub(crate) fn app(&mut self, address: &str, v6only: bool) {
        self.apps.push(listen(address.parse().unwrap(), v6only));
    }

    pub(crate) fn steer(&mut self, ports: &[u16]) {
        self.exempting(ports, &[]);
    }

    pub(crate) fn exempting(&mut self, ports: &[u16], exempt: &[&str]) {
        let ports: BTreeSet<_> = ports.iter().copied().map(PortKey::tcp).collect();
        let exempt: Vec<_> = exempt.iter().map(|net| net.parse().unwrap()).collect();
        self.kernel.apply(&ports, &exempt).unwrap();
    }

    /// Connects and says who got the connection.
    pub(crate) fn connect(&self, target: &str) -> By {
        self.connect_from(None, target).0
    }

    /// Connects from an address; returns who got the connection, the accepted socket and the caller's.
    pub(crate) fn connect_from(&self, source: Option<&str>, target: &str) -> (By, TcpStream, TcpStream) {
        let caller = caller(source, target);
        let (by, accepted) = self.accept();
        (by, accepted, caller)
    }

    /// Accepts the next connection, wherever it arrives.
    pub(crate) fn accept(&self) -> (By, TcpStream) {
        let agent = self.agent.iter().flat_map(|agent| [Some(&agent.v4), agent.v6.as_ref()]).flatten();
        let all: Vec<_> =
            self.apps.iter().map(|app| (By::App, app)).chain(agent.map(|listener| (By::Agent, listener))).collect();
        let mut fds: Vec<_> =
            all.iter().map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = u16::try_from(SOON.as_millis()).unwrap();
        assert!(poll(&mut fds, timeout).unwrap() > 0, "the connection arrived nowhere");
        let ready = fds.iter().position(|fd| fd.any() == Some(true)).unwrap();
        let (by, listener) = all[ready];
        (by, listener.accept().unwrap().0)
    }
}

/// A listener of an app.
pub(crate) fn listen(address: SocketAddr, v6only: bool) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(v6only).unwrap();
    }
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.listen(128).unwrap();
    socket.into()
}

/// A caller's connection.
pub(crate) fn caller(source: Option<&str>, target: &str) -> TcpStream {
    let target: SocketAddr = target.parse().unwrap();
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
    if let Some(source) = source {
        let source = SocketAddr::new(source.parse().unwrap(), 0);
        socket.bind(&source.into()).unwrap();
    }
    socket.connect(&target.into()).unwrap_or_else(|error| panic!("{target}: {error}"));
    socket.into()
}
