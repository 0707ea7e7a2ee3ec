//! A cluster's folder, and which processes and cgroups are this cluster's.
//!
//! The folder is the cluster's name: every process carries its path in the environment, the cgroups a hash of it. So a
//! cluster is found, and taken down, even when everything that was written about it is gone.

use std::{
    fs,
    fs::File,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

/// Environment variable of all processes of a cluster: the path of its folder.
pub(crate) const VARIABLE: &str = "SLUICE_CLUSTER";

/// First part of the name of a cluster's cgroups.
const PREFIX: &str = "slu-cluster-";

/// Where one cluster keeps everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// A process of a cluster, as this machine sees it.
#[derive(Clone, Debug)]
pub(crate) struct ClusterProcess {
    pub(crate) pid: Pid,
    /// The folder of its cluster.
    pub(crate) folder: PathBuf,
    /// The first two words of its command line.
    pub(crate) words: [String; 2],
    /// Whether it is the first process of the cluster's own process namespace.
    pub(crate) is_init: bool,
}

// === impl Folder ===

impl Folder {
    /// The folder of this checkout's cluster.
    pub fn of_checkout() -> Result<Self> {
        Self::named("run")
    }

    /// The folder of another cluster of this checkout, for tests that start one of their own.
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self { path: shared()?.join(name) })
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The administrator's kubeconfig, which serves on this machine as well as inside the cluster's network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// The folder with what the components print, a file each.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// A file that is there once everything that makes a cluster is.
    pub(crate) fn complete(&self) -> PathBuf {
        self.path.join("complete")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.path.join("config").join(name)
    }

    /// The name of the cluster's cgroup below the root of each hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, self.path.as_os_str().as_bytes());
        format!("{PREFIX}{}", hex(&hash.as_ref()[..4]))
    }

    /// Held while a cluster is started or taken down. Waits for whoever else does so.
    pub(crate) fn lock(&self) -> Result<File> {
        let parent = self.path.parent().context("a cluster's folder lies in another")?;
        fs::create_dir_all(parent)?;
        // Beside the folder, which comes and goes.
        let path = self.path.with_extension("lock");
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// The cluster's processes that can be told by their environment. Those in containers cannot, and end with the
    /// namespace that they are in.
    pub(crate) fn processes(&self) -> Vec<ClusterProcess> {
        processes().into_iter().filter(|process| process.folder == self.path).collect()
    }

    /// The first process of the cluster's process namespace.
    pub(crate) fn init(&self) -> Option<Pid> {
        self.processes().into_iter().find(|process| process.is_init).map(|process| process.pid)
    }
}

/// What all clusters of this checkout share.
pub(crate) fn shared() -> Result<PathBuf> {
    let this = std::env::current_exe().context("asking for the running program's path")?;
    // target/<profile>/program or target/<profile>/deps/test
    let profile = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let target = profile.and_then(Path::parent).context("the running program is in no target folder")?;
    Ok(target.join("cluster"))
}

/// Processes of all clusters on this machine.
pub(crate) fn processes() -> Vec<ClusterProcess> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn process(pid: i32) -> Option<ClusterProcess> {
    // Unreadable: not ours, or gone since. A zombie's environment reads as empty.
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let folder = environment.split(|&byte| byte == 0).find_map(|variable| {
        let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        (name == VARIABLE).then(|| PathBuf::from(value))
    })?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let words = [words.next()?, words.next().unwrap_or_default()];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let inside: Vec<_> = inside.split_ascii_whitespace().collect();
    let is_init = inside.len() == 2 && inside[1] == "1";
    Some(ClusterProcess { pid: Pid::from_raw(pid), folder, words, is_init })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
