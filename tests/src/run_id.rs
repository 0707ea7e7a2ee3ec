//! The name of one run of a test binary, and whether the run is still alive.
//!
//! Every namespace, interface, folder and child process of a lab carries it. It consists of the process's id and its
//! start time, so that whoever finds a leftover can tell with certainty whether its owner still lives, without any
//! file that the owner would have to remove.

use std::{fmt, fs, str::FromStr, sync::LazyLock};

/// Environment variable that marks the processes of a lab.
pub(crate) const RUN_VARIABLE: &str = "SLUICE_RUN";

/// First part of the name of everything a lab makes.
pub(crate) const PREFIX: &str = "slu-";

static OURS: LazyLock<RunId> = LazyLock::new(|| {
    let pid = std::process::id();
    RunId { pid, started: start_time(pid).unwrap_or(0) }
});

/// A process, told apart from all that had or will have its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RunId {
    pid: u32,
    /// Clock ticks from boot to the start of the process.
    started: u64,
}

impl RunId {
    /// The run that this process is.
    pub(crate) fn ours() -> Self {
        *OURS
    }

    /// Whether the process that made the leftover still runs.
    pub(crate) fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Whether it is, or was, the run of a process with this id.
    pub(crate) fn is_of(self, pid: u32) -> bool {
        self.pid == pid
    }

    /// The short form for interface names, which must not exceed 15 bytes.
    pub(crate) fn short(self) -> String {
        base36(u64::from(self.pid))
    }

    /// The run in the name of a namespace or folder, or in the environment of a process.
    pub(crate) fn in_name(name: &str) -> Option<Self> {
        name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", base36(u64::from(self.pid)), base36(self.started))
    }
}

impl FromStr for RunId {
    type Err = NotARunId;

    fn from_str(text: &str) -> Result<Self, NotARunId> {
        let (pid, started) = text.split_once('.').ok_or(NotARunId)?;
        Ok(Self {
            pid: u32::from_str_radix(pid, 36).map_err(|_| NotARunId)?,
            started: u64::from_str_radix(started, 36).map_err(|_| NotARunId)?,
        })
    }
}

/// The text is not the name of a run.
#[derive(Debug)]
pub(crate) struct NotARunId;

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // A zombie owns nothing any more.
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn base36(mut number: u64) -> String {
    const DIGITS: [char; 36] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l',
        'm', 'n', 'o', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y', 'z',
    ];
    let mut reversed = Vec::new();
    loop {
        reversed.push(DIGITS[usize::try_from(number % 36).unwrap_or_default()]);
        number /= 36;
        if number == 0 {
            return reversed.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_whose_it_is() {
        let ours = RunId::ours();
        assert_eq!(RunId::in_name(&format!("{PREFIX}{ours}-a01-pod")), Some(ours));
        assert_eq!(RunId::in_name("slu-someone-else"), None);
        assert_eq!(RunId::in_name("cni-1234"), None);
    }

    #[test]
    fn a_run_is_alive_as_long_as_its_process() {
        let ours = RunId::ours();
        assert!(ours.is_alive());
        assert!(!RunId { started: ours.started + 1, ..ours }.is_alive(), "same id, another process");
        assert!(!RunId { pid: u32::MAX, ..ours }.is_alive());
    }

    #[test]
    fn interface_names_have_room() {
        assert!(base36(4_194_304).len() <= 5, "the largest process id Linux gives");
    }
}
