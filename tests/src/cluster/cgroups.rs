//! The cluster's cgroups: one folder below the root of each hierarchy, in which the kubelet makes its own.
//!
//! Cgroups outlive every process, so nobody removes them when everything is killed: the next `down` or `up` does.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// What a kubelet needs to have switched on where there is one hierarchy for all.
const CONTROLLERS: [&str; 5] = ["+cpuset", "+cpu", "+io", "+memory", "+pids"];

/// Makes the cgroup in every hierarchy.
pub(crate) fn make(name: &str) -> Result<()> {
    let hierarchies = hierarchies()?;
    let unified = hierarchies.iter().all(|hierarchy| hierarchy.unified);
    for Hierarchy { root, .. } in &hierarchies {
        let folder = root.join(name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making the cgroup {}", folder.display()));
            }
            _ => {}
        }
        if unified {
            for controller in CONTROLLERS {
                // Those that this machine does not let out of its hands, the kubelet names.
                for parent in [root, &folder] {
                    let _ = fs::write(parent.join("cgroup.subtree_control"), controller);
                }
            }
        }
    }
    Ok(())
}

/// Removes the cgroup and all below it, where no process is in it any more.
pub(crate) fn remove(name: &str) -> Result<()> {
    for folder in present(name)? {
        remove_tree(&folder).with_context(|| format!("removing the cgroup {}", folder.display()))?;
    }
    Ok(())
}

/// The cgroup's folders that exist.
pub(crate) fn present(name: &str) -> Result<Vec<PathBuf>> {
    let folders = hierarchies()?.into_iter().map(|hierarchy| hierarchy.root.join(name));
    Ok(folders.filter(|folder| folder.exists()).collect())
}

#[derive(Debug)]
struct Hierarchy {
    root: PathBuf,
    unified: bool,
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let parse = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (root, kind) = (words.next()?, words.next()?);
        let unified = kind == "cgroup2";
        (unified || kind == "cgroup").then(|| Hierarchy { root: root.into(), unified })
    };
    Ok(mounts.lines().filter_map(parse).collect())
}

/// Bottom up: the files in a cgroup belong to the kernel and go with their folder.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
