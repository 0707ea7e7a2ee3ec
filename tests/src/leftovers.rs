//! Finds and removes what runs that died without cleaning up (SIGKILL, a crash, a power cut) left on the machine.
//!
//! Runs in the machine's first namespaces, once for each process, before its first lab. Touches only what carries the
//! name of a run whose process is gone: runs in parallel never see each other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    command,
    run_id::{PREFIX, RUN_VARIABLE, RunId},
};

/// Where iproute2 keeps named network namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// Removes the processes, namespaces and folders of dead runs. Returns what was removed, for the record.
pub(crate) fn sweep() -> Result<Vec<String>> {
    let dead = |name: &str| RunId::in_name(name).is_some_and(|run| !run.is_alive());
    let mut removed = Vec::new();
    for (pid, run) in processes(dead) {
        // Gone in the meantime is what was wanted.
        if kill(pid, Signal::SIGKILL).is_ok() {
            removed.push(format!("process {pid} of {run}"));
        }
    }
    for name in namespaces(dead) {
        if delete_namespace(&name)? {
            removed.push(format!("namespace {name}"));
        }
    }
    for folder in folders(dead) {
        // Another run may be sweeping at the same time.
        if fs::remove_dir_all(&folder).is_ok() {
            removed.push(folder.display().to_string());
        }
    }
    Ok(removed)
}

/// Everything that carries the name of a run that `wanted` accepts.
pub(crate) fn of_run(wanted: impl Fn(RunId) -> bool) -> Vec<String> {
    let wanted = |name: &str| RunId::in_name(name).is_some_and(&wanted);
    let processes = processes(wanted).into_iter().map(|(pid, lab)| format!("process {pid} of {lab}"));
    let namespaces = namespaces(wanted).into_iter().map(|name| format!("namespace {name}"));
    let folders = folders(wanted).into_iter().map(|folder| folder.display().to_string());
    processes.chain(namespaces).chain(folders).collect()
}

/// Processes whose environment carries a lab's name that `wanted` accepts, with that name.
pub(crate) fn processes(wanted: impl Fn(&str) -> bool) -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let Some(pid) = entry.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // Unreadable: not ours, or gone since. A zombie's environment reads as empty.
        let Ok(environment) = fs::read(entry.join("environ")) else { continue };
        let lab = environment.split(|&byte| byte == 0).find_map(|variable| {
            let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
            (name == RUN_VARIABLE).then(|| value.to_owned())
        });
        if let Some(lab) = lab.filter(|lab| wanted(lab)) {
            found.push((Pid::from_raw(pid), lab));
        }
    }
    found
}

/// Names of network namespaces that `wanted` accepts.
pub(crate) fn namespaces(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    names(Path::new(NETNS_DIR), wanted)
}

/// Folders of labs that `wanted` accepts.
pub(crate) fn folders(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let parent = std::env::temp_dir();
    names(&parent, wanted).into_iter().map(|name| parent.join(name)).collect()
}

/// Network devices of the machine itself that `wanted` accepts.
pub(crate) fn devices(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let names = entries(Path::new("/sys/class/net")).into_iter();
    names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).filter(|name| wanted(name)).collect()
}

/// Removes a named namespace; false when somebody else has done so already.
pub(crate) fn delete_namespace(name: &str) -> Result<bool> {
    match command::run("ip", &["netns", "delete", name], "") {
        Ok(_) => Ok(true),
        Err(_) if !Path::new(NETNS_DIR).join(name).exists() => Ok(false),
        // Its maker died between making the file and mounting the namespace on it.
        Err(error) => fs::remove_file(Path::new(NETNS_DIR).join(name)).map(|()| true).map_err(|_| error),
    }
}

fn names(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    entries(folder)
        .into_iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.starts_with(PREFIX) && wanted(name))
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}
