//! A lab: hosts, the links between them and the programs in them, from the first to the last moment.
//!
//! A lab that goes out of scope without [`Lab::finish`] belongs to a failed test: it shows what its programs printed
//! and takes everything down. Labs of one process and of several processes run side by side.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail, ensure};

use crate::{
    guard,
    guard::BpfObjects,
    host::{Host, HostBuilder},
    leftovers,
    link::{Link, LinkProcess, shape::Shape},
    process,
    process::Inner as ProcessInner,
    run_id::{PREFIX, RunId},
};

/// How long the kernel may take to free what nobody holds any more: it does so in the background.
const KERNEL_FREES_WITHIN: Duration = Duration::from_secs(10);

/// Interface names must be shorter than this.
const IFNAMSIZ: usize = 16;

static SWEPT: OnceLock<Result<Vec<String>, String>> = OnceLock::new();

/// A network of hosts on this machine.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    hosts: Mutex<Vec<Host>>,
    link_processes: Mutex<Vec<Arc<Mutex<LinkProcess>>>>,
    up: bool,
}

/// What hosts and links need of their lab.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Name of the run and of the lab: first part of every name, and what marks the lab's processes.
    pub(crate) id: String,
    pub(crate) folder: PathBuf,
    processes: Mutex<Vec<Arc<ProcessInner>>>,
}

// === impl Lab ===

impl Lab {
    /// Starts a lab. The name must be unique within the process: the test's case number serves well.
    ///
    /// The first one also removes what runs that were killed have left behind.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: cargo xtask test");
        ensure!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
            "the lab's name {name:?} becomes part of other names: letters, digits and _ only"
        );
        if let Err(error) = SWEPT.get_or_init(|| leftovers::sweep().map_err(|error| format!("{error:#}"))) {
            bail!("removing what earlier runs have left behind: {error}");
        }
        let id = format!("{PREFIX}{}-{name}", RunId::ours());
        let folder = std::env::temp_dir().join(&id);
        fs::create_dir(&folder)
            .map_err(|error| anyhow!("making {} (a lab's name must be unique): {error}", folder.display()))?;
        let shared = Arc::new(Shared { id, folder, processes: Mutex::default() });
        Ok(Self { shared, hosts: Mutex::default(), link_processes: Mutex::default(), up: true })
    }

    /// A folder for the lab's files, removed with it.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Begins a host.
    pub fn host(&self, name: &str) -> HostBuilder<'_> {
        HostBuilder::new(name, &self.hosts, Arc::clone(&self.shared))
    }

    /// Joins two hosts by a pair of virtual Ethernet devices.
    pub fn connect(&self, a: &Host, b: &Host) -> Result<Link> {
        Link::ethernet(a, b)
    }

    /// Joins two hosts by a link that delays, reorders, limits and loses packets as `shape` says, in both directions.
    pub fn connect_shaped(&self, a: &Host, b: &Host, shape: Shape) -> Result<Link> {
        let (link, process) = Link::shaped(a, b, shape)?;
        self.link_processes.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        Ok(link)
    }

    /// The last lines of what each of its programs has printed.
    pub fn outputs(&self) -> String {
        process::show_outputs(&self.shared.folder)
    }

    /// Removes what runs that were killed have left behind, and says what that was. Starting a lab does so as well.
    pub fn sweep() -> Result<Vec<String>> {
        leftovers::sweep()
    }

    /// What a run that was this process, alive or not, has on the machine: processes, namespaces, folders.
    pub fn left_by(pid: u32) -> Vec<String> {
        leftovers::of_run(|run| run.is_of(pid))
    }

    /// Takes everything down and fails if anything is left: a process, a namespace, an interface, a BPF program, map or
    /// link. To be called at the end of each test; a lab that is dropped instead counts as failed.
    pub fn finish(mut self) -> Result<()> {
        let inodes: BTreeSet<u64> = self.lock_hosts().iter().map(Host::namespace_inode).collect();
        self.take_down()?;
        let processes = self.shared.processes();
        wait_until_gone(|| {
            let present = BpfObjects::of_system()?;
            let mut left: Vec<_> = processes.iter().filter_map(|process| process.left(&present)).collect();
            for &inode in &inodes {
                let links = guard::links_in_namespace(inode)?;
                if !links.is_empty() {
                    left.push(format!("links {links:?} on the namespace {inode}"));
                }
            }
            Ok(left)
        })
    }

    /// Takes everything down without looking at BPF, for users without `bpftool`. Fails if processes or namespaces stay.
    pub fn take_down(&mut self) -> Result<()> {
        self.up = false;
        for process in self.shared.processes() {
            process.end();
        }
        let hosts: Vec<_> = self.lock_hosts().drain(..).collect();
        hosts.iter().for_each(Host::leave);
        let id = &self.shared.id;
        // By name and not by what was noted: a host may have been interrupted while it was made.
        for namespace in leftovers::namespaces(|name| is_of(name, id)) {
            leftovers::delete_namespace(&namespace)?;
        }
        wait_until_gone(|| Ok(self.left()))?;
        fs::remove_dir_all(&self.shared.folder)?;
        Ok(())
    }

    /// Processes, namespaces and interfaces that still carry the lab's name.
    fn left(&self) -> Vec<String> {
        let id = &self.shared.id;
        let processes = leftovers::processes(|lab| lab == id).into_iter().map(|(pid, _)| format!("process {pid}"));
        let namespaces = leftovers::namespaces(|name| is_of(name, id)).into_iter().map(|name| format!("netns {name}"));
        // They are made inside the hosts and go with them; one that is seen here has escaped.
        let own = device_prefix();
        let devices =
            leftovers::devices(|name| name.starts_with(&own)).into_iter().map(|name| format!("device {name}"));
        processes.chain(namespaces).chain(devices).collect()
    }

    fn lock_hosts(&self) -> MutexGuard<'_, Vec<Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.up {
            return;
        }
        eprintln!("lab {} was not finished; its programs printed:", self.shared.id);
        for process in self.shared.processes() {
            process.end();
        }
        eprintln!("{}", process::show_outputs(&self.shared.folder));
        if let Err(error) = self.take_down() {
            eprintln!("taking down {}: {error:#}", self.shared.id);
        }
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn processes(&self) -> Vec<Arc<ProcessInner>> {
        self.lock_processes().clone()
    }

    pub(crate) fn add_process(&self, process: Arc<ProcessInner>) {
        self.lock_processes().push(process);
    }

    /// A device name within the 15 bytes that Linux allows: the run, and where the device leads.
    pub(crate) fn device_name(&self, number: usize, peer: &str) -> String {
        let mut name = format!("{}{number}{peer}", device_prefix());
        name.truncate(IFNAMSIZ - 1);
        name
    }

    fn lock_processes(&self) -> MutexGuard<'_, Vec<Arc<ProcessInner>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the names of this run's devices begin with.
fn device_prefix() -> String {
    format!("sl{}-", RunId::ours().short())
}

/// Whether a namespace is one of the lab's: lab `a1` has none of the namespaces of lab `a1_b` or `a12`.
fn is_of(namespace: &str, lab: &str) -> bool {
    namespace.strip_prefix(lab).is_some_and(|rest| rest.starts_with('-'))
}

fn wait_until_gone(look: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + KERNEL_FREES_WITHIN;
    loop {
        let left = look()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("left behind: {}", left.join("; "));
        }
        thread::sleep(PAUSE);
    }
}
