//! What a process uses, by its id: also of those that are the child of another one.

use std::fs;

use anyhow::{Context as _, Result};

/// Memory that is resident now, in KiB.
pub(crate) fn rss_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no VmRSS in {path}: has it ended?"))
}

/// Number of files, sockets included, that are open now.
pub(crate) fn open_files(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("reading {path}"))?.count())
}

/// Number of sockets that are open now.
pub(crate) fn open_sockets(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    let files = fs::read_dir(&path).with_context(|| format!("reading {path}"))?;
    let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count())
}
