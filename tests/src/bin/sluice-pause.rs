//! `sluice-pause`: the first process of a pod's sandbox. Waits to be told to end, and reaps what is left to it.

#![forbid(unsafe_code)]

use nix::{
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

fn main() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    loop {
        if signals.wait()? != Signal::SIGCHLD {
            return Ok(());
        }
        // Several that have ended make one signal.
        while !matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    }
}
