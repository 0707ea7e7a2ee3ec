//! Counts the system calls of a process with `strace`, which makes it several times slower: never while time is
//! measured. With more than one connection a slower process finds more to do each time it wakes, and so wakes less
//! often: it is with one that the number is exact.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::LIMIT;
use crate::{Host, Process};

/// A process being watched.
#[derive(Debug)]
pub(super) struct Strace {
    process: Process,
    summary: PathBuf,
}

// === impl Strace ===

impl Strace {
    /// Counts from now on.
    pub(super) async fn attach(host: &Host, watched: &Process) -> Result<Self> {
        let summary = host.folder().join("system-calls");
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-U", "calls,name", "-p", &watched.pid().to_string(), "-o"]).arg(&summary);
        let process = host.spawn(command)?;
        process.printed("attached", LIMIT).await.context("`strace` (package strace) is needed")?;
        Ok(Self { process, summary })
    }

    /// Stops counting and says how many there were.
    pub(super) async fn detach(self) -> Result<u64> {
        self.process.signal(Signal::SIGINT)?;
        self.process.exited(LIMIT).await?;
        let text = fs::read_to_string(&self.summary).context("reading what strace has counted")?;
        total(&text).with_context(|| format!("no total in {text:?}"))
    }
}

/// Sum of the calls in strace's table; none at all where it has seen none.
fn total(table: &str) -> Option<u64> {
    if table.trim().is_empty() {
        return Some(0);
    }
    let line = table.lines().find(|line| line.split_ascii_whitespace().nth(1) == Some("total"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        let table = "    calls syscall\n--------- ----------------\n     2000 sendto\n       10 epoll_wait\n--------- ----------------\n     2010 total\n";
        assert_eq!(total(table), Some(2010));
        assert_eq!(total(""), Some(0));
        assert_eq!(total("nonsense"), None);
    }
}
