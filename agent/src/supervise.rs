//! The agent as two processes: a parent that does nothing but keep what must outlive a crash, and the worker, which is the
//! agent proper and is started again when it dies.
//!
//! What must outlive it: the packet programs at the network devices. A connection that the agent has left may have shifted
//! numbers, and is dead without them; one that it is in must still be rewritten while its sockets' resets go out. So the
//! worker passes the descriptors of its links and maps to the parent (`Supervisor::keep`). When the worker dies, the
//! parent tells the kernel to look at no more requests, keeps the programs for as long as a connection depends on them, and
//! starts another worker, which loads programs of its own. The agent's key outlives the worker too (`Supervisor::note`):
//! clients and the controller know the agent by it, and go on where they were.
//!
//! A worker that ends by itself ends the parent with its status. One that dies again and again does so too, with that of
//! its signal, so that whoever has started the agent sees it; connections that depend on the parent come first.
//!
//! The parent has no threads, no timers but one, and no network. When it dies the worker dies with it.

use std::{
    env, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, send,
            sendmsg, socketpair,
        },
    },
    unistd::Pid,
};

mod kept;

use self::kept::Kept;

/// Set for the worker, whose standard input is the socket to its parent: to [`AGAIN`] if another one has been before.
const WORKER: &str = "SLUICE_AGENT_WORKER";
const AGAIN: &str = "again";
/// The message that carries descriptors. All others are notes, in both directions.
const KEEP: &[u8] = b"keep";
/// Longest note.
const LONGEST_NOTE: usize = 1024;
/// Most descriptors that are passed at once (`SCM_MAX_FD` of the kernel is 253).
const MOST: usize = 250;
/// How often it is looked whether a connection still depends on what a dead worker has left.
const LOOK: Duration = Duration::from_secs(2);
/// Pause behind a worker that died soon after its start, and the longest, up to which it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many workers in a row that die within [`LONGEST_PAUSE`] are a loop, which another start will not end: 3 s in all.
const LOOP: u32 = 6;
/// Exit statuses that the agent has. Any other is a death, such as that of a panic.
const STATUSES: std::ops::RangeInclusive<i32> = 0..=4;

/// The worker's way to its parent.
#[derive(Debug)]
pub struct Supervisor {
    socket: OwnedFd,
    /// Another worker has been before.
    again: bool,
    noted: Option<Vec<u8>>,
}

/// The parent's state.
struct Parent {
    signals: SignalFd,
    /// Of workers that have died.
    left: Vec<Kept>,
    /// Of the one that runs, or has just died.
    kept: Option<Kept>,
    /// What the next worker is told.
    note: Option<Vec<u8>>,
    /// Somebody has asked for the end.
    stopping: bool,
}

/// A worker that runs.
struct Worker {
    process: Child,
    socket: OwnedFd,
}

/// Whether this process is a worker; if so, it dies with its parent from now on.
///
/// # Errors
/// When the socket to the parent cannot be had, or the parent has died meanwhile.
pub fn supervisor() -> io::Result<Option<Supervisor>> {
    let Some(worker) = env::var_os(WORKER) else { return Ok(None) };
    set_pdeathsig(Signal::SIGKILL)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut note = vec![0; LONGEST_NOTE];
    let noted = match recv(socket.as_raw_fd(), &mut note, MsgFlags::MSG_DONTWAIT) {
        // Before it could take this process with it.
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => {
            note.truncate(length);
            Some(note)
        }
        Err(nix::Error::EAGAIN) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Supervisor { socket, again: worker == AGAIN, noted }))
}

/// Runs this program as a worker, again and again, until it ends by itself, dies in a loop, or a signal asks for the end.
///
/// # Errors
/// When no worker can be started.
pub fn run() -> Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot receive signals")?;
    let mut parent = Parent { signals, left: Vec::new(), kept: None, note: None, stopping: false };
    let status = parent.run();
    // Nobody keeps them any longer.
    parent.left.iter().chain(&parent.kept).for_each(Kept::end);
    status
}

/// The status of whom a signal has ended is what shells make of it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

// === impl Parent ===

impl Parent {
    fn run(&mut self) -> Result<ExitCode> {
        let (mut which, mut pause, mut deaths) = ("first", FIRST_PAUSE, 0);
        loop {
            let begun = Instant::now();
            let worker = match self.start(which) {
                Ok(worker) => worker,
                // As scarce as memory and processes may be: those who depend on this one cannot do without.
                Err(error) if self.is_needed() && !self.stopping => {
                    tracing::error!(error = format!("{error:#}"), "the agent cannot be started again yet");
                    self.wait(LONGEST_PAUSE)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = self.watch(worker)?;
            which = AGAIN;
            let quick = begun.elapsed() < LONGEST_PAUSE;
            deaths = if quick { deaths + 1 } else { 0 };
            let for_good = deaths >= LOOP || status.code().is_some_and(|code| STATUSES.contains(&code));
            if self.stopping || status.success() || for_good && !self.is_needed() {
                return Ok(exit_code(status));
            }
            tracing::error!(%status, "the agent has died and is started again; connections that it had left go on");
            if let Some(mut kept) = self.kept.take() {
                kept.retire();
                self.left.push(kept);
            }
            self.look();
            if quick {
                self.wait(pause)?;
                pause = (2 * pause).min(LONGEST_PAUSE);
                if self.stopping {
                    return Ok(ExitCode::SUCCESS);
                }
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    fn start(&self, which: &str) -> Result<Worker> {
        let (own, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .context("cannot make a socket to the worker")?;
        if let Some(note) = &self.note {
            // It waits there until the worker looks for it.
            send(own.as_raw_fd(), note, MsgFlags::MSG_NOSIGNAL).context("cannot tell the worker its key")?;
        }
        let program = env::current_exe().context("cannot find this program")?;
        // It may have been replaced since, and this one goes on with what it knows.
        let program = if program.exists() { &program } else { Path::new("/proc/self/exe") };
        let mut command = Command::new(program);
        command.args(env::args_os().skip(1)).env(WORKER, which).stdin(Stdio::from(other));
        Ok(Worker { process: command.spawn().context("cannot start the worker")?, socket: own })
    }

    /// Keeps what the worker passes on, and passes signals on to it, until it has ended.
    fn watch(&mut self, mut worker: Worker) -> Result<ExitStatus> {
        loop {
            let timeout = if self.left.is_empty() { PollTimeout::NONE } else { PollTimeout::try_from(LOOK)? };
            let mut ready = [self.signals.as_fd(), worker.socket.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut ready, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            // Looked at first: all that it has passed on is there by then.
            let ended = worker.process.try_wait().context("cannot wait for the worker")?;
            while self.receive(&worker.socket) {}
            if let Some(status) = ended {
                return Ok(status);
            }
            if let Some(signal) = self.asked() {
                // Fails for one that has just ended.
                let _ = kill(Pid::from_raw(i32::try_from(worker.process.id())?), signal);
            }
            self.look();
        }
    }

    /// Waits while no worker runs, unless the end is asked for.
    fn wait(&mut self, pause: Duration) -> Result<()> {
        let until = Instant::now() + pause;
        while !self.stopping {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut ready = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::try_from(left)?) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            self.asked();
        }
        Ok(())
    }

    /// The last signal that asks for the end, if any has come.
    fn asked(&mut self) -> Option<Signal> {
        let mut asked = None;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            asked = signal.filter(|signal| matches!(signal, Signal::SIGTERM | Signal::SIGINT)).or(asked);
        }
        self.stopping |= asked.is_some();
        asked
    }

    /// Takes one message of the worker, in place of what it did before. Whether there was one.
    fn receive(&mut self, socket: &OwnedFd) -> bool {
        let mut text = [0; LONGEST_NOTE];
        let mut parts = [io::IoSliceMut::new(&mut text)];
        let mut space = cmsg_space!([RawFd; MOST]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let Ok(message) = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) else { return false };
        let (length, mut descriptors) = (message.bytes, Vec::new());
        for part in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(received) = part {
                #[expect(unsafe_code, reason = "descriptors come as numbers")]
                // SAFETY: the kernel has just made these for this process, and nobody else has them.
                descriptors.extend(received.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        match &text[..length] {
            // The worker has closed its end.
            [] => return false,
            KEEP => self.kept = Kept::new(descriptors).or(self.kept.take()),
            note => self.note = Some(note.to_vec()),
        }
        true
    }

    /// Lets go what no connection depends on any more.
    fn look(&mut self) {
        self.left.retain(Kept::is_needed);
    }

    fn is_needed(&self) -> bool {
        self.left.iter().chain(&self.kept).any(Kept::is_needed)
    }
}

// === impl Supervisor ===

impl Supervisor {
    /// Whether connections may be shifted by the programs of a worker that has died.
    pub(crate) const fn is_again(&self) -> bool {
        self.again
    }

    /// What the worker before has noted.
    pub(crate) fn noted(&self) -> Option<&[u8]> {
        self.noted.as_deref()
    }

    /// Notes something for the next worker. It stays in memory; other users cannot read it there.
    ///
    /// # Errors
    /// When the parent does not take it.
    pub(crate) fn note(&self, note: &[u8]) -> io::Result<()> {
        if note.is_empty() || note.len() > LONGEST_NOTE || note == KEEP {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        send(self.socket.as_raw_fd(), note, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Passes on what shall outlive this process: the map of flows, the map of local ports, and the links.
    ///
    /// # Errors
    /// When the parent does not take it.
    pub(crate) fn keep(&self, flows: &OwnedFd, locals: &OwnedFd, links: &[RawFd]) -> io::Result<()> {
        let mut descriptors = vec![flows.as_raw_fd(), locals.as_raw_fd()];
        descriptors.extend(links.iter().take(MOST - 2));
        let text = [io::IoSlice::new(KEEP)];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(self.socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}
