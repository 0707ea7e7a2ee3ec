//! The agent as two processes: a parent that does nothing but keep what must outlive a crash, and the worker, which is the
//! agent proper and is started again when it dies.
//!
//! What must outlive it: the packet programs at the network devices. A connection that the agent has left may have shifted
//! numbers, and is dead without them; one that it is in must still be rewritten while its sockets' resets go out. So the
//! worker passes the descriptors of its links and maps to the parent (`Supervisor::keep`). When the worker dies, the
//! parent tells the kernel to look at no more requests, keeps the programs for as long as a connection depends on them, and
//! starts another worker, which loads programs of its own.
//!
//! The parent has no threads, no timers but one, and no network. When it dies the worker dies with it.

use std::{
    env, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::ExitStatusExt as _,
    },
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
            socketpair,
        },
    },
    unistd::Pid,
};
use sluice_ebpf_common::insertion::{ENDED, FLAG_RESET, Flow, FlowKey, LOCAL_PORT, Local};

/// Set for the worker, whose standard input is the socket to its parent: to [`AGAIN`] if another one has been before.
const WORKER: &str = "SLUICE_AGENT_WORKER";
const AGAIN: &str = "again";
/// Most descriptors that are passed at once (`SCM_MAX_FD` of the kernel is 253).
const MOST: usize = 250;
/// How often it is looked whether a connection still depends on what a dead worker has left.
const LOOK: Duration = Duration::from_secs(2);
/// A worker that dies sooner is started again after a pause, which doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The worker's way to its parent.
#[derive(Debug)]
pub struct Supervisor {
    socket: OwnedFd,
    /// Another worker has been before.
    again: bool,
}

/// What a worker has passed on.
struct Kept {
    flows: HashMap<MapData, FlowKey, Flow>,
    locals: HashMap<MapData, u32, Local>,
    _links: Vec<OwnedFd>,
}

/// Whether this process is a worker; if so, it dies with its parent from now on.
///
/// # Errors
/// When the socket to the parent cannot be had.
pub fn supervisor() -> io::Result<Option<Supervisor>> {
    let Some(worker) = env::var_os(WORKER) else { return Ok(None) };
    // The parent's mask has been inherited.
    SigSet::all().thread_unblock()?;
    set_pdeathsig(Signal::SIGKILL)?;
    Ok(Some(Supervisor { socket: io::stdin().as_fd().try_clone_to_owned()?, again: worker == AGAIN }))
}

/// Runs this program as a worker, again and again, until it ends by itself or a signal asks for the end.
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
    let (mut left, mut pause, mut stopping) = (Vec::<Kept>::new(), Duration::from_millis(100), false);
    let mut which = "first";
    loop {
        let begun = Instant::now();
        let (mut worker, socket) = start(which)?;
        which = AGAIN;
        let mut kept = None;
        let status = loop {
            let timeout = if left.is_empty() { PollTimeout::NONE } else { PollTimeout::try_from(LOOK)? };
            let mut ready =
                [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            if ready[1].any().unwrap_or(false)
                && let Some(new) = receive(&socket)
            {
                kept = Some(new);
            }
            while let Ok(Some(signal)) = signals.read_signal() {
                let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
                if let Some(signal @ (Signal::SIGTERM | Signal::SIGINT)) = signal {
                    stopping = true;
                    // Fails for one that has just ended.
                    let _ = kill(Pid::from_raw(i32::try_from(worker.id())?), signal);
                }
            }
            left.retain(is_needed);
            if let Some(status) = worker.try_wait().context("cannot wait for the worker")? {
                break status;
            }
        };
        if stopping || status.code().is_some() {
            return Ok(exit_code(status));
        }
        tracing::error!(%status, "the agent has died and is started again; connections that it had left go on");
        if let Some(kept) = kept {
            retire(kept, &mut left);
        }
        if begun.elapsed() > LONGEST_PAUSE {
            pause = Duration::from_millis(100);
        } else {
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

fn start(which: &str) -> Result<(Child, OwnedFd)> {
    let (own, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context("cannot make a socket to the worker")?;
    let program = env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).env(WORKER, which).stdin(Stdio::from(other));
    Ok((command.spawn().context("cannot start the worker")?, own))
}

/// Takes what the worker passes on, in place of what it did before.
fn receive(socket: &OwnedFd) -> Option<Kept> {
    let mut text = [0; 16];
    let mut parts = [io::IoSliceMut::new(&mut text)];
    let mut space = cmsg_space!([RawFd; MOST]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            #[expect(unsafe_code, reason = "descriptors come as numbers")]
            // SAFETY: the kernel has just made these for this process, and nobody else has them.
            descriptors.extend(received.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let mut descriptors = descriptors.into_iter();
    let mut map = || Some(Map::HashMap(MapData::from_fd(descriptors.next()?).ok()?));
    let (flows, locals) = (HashMap::try_from(map()?).ok()?, HashMap::try_from(map()?).ok()?);
    Some(Kept { flows, locals, _links: descriptors.collect() })
}

/// The kernel looks at no more requests on its behalf.
fn retire(mut kept: Kept, left: &mut Vec<Kept>) {
    for (port, mut local) in kept.locals.iter().flatten().collect::<Vec<_>>() {
        if local.kind == LOCAL_PORT {
            local.active = 0;
            if let Err(error) = kept.locals.insert(port, local, 0) {
                tracing::error!(%error, port, "the kernel goes on to hold requests for a dead agent");
            }
        }
    }
    if is_needed(&kept) {
        left.push(kept);
    }
}

/// Whether a connection with shifted numbers is still open.
fn is_needed(kept: &Kept) -> bool {
    // Read under its lock, as the kernel writes it.
    let flows = kept.flows.keys().flatten().filter_map(|key| kept.flows.get(&key, super::insertion::WITH_LOCK).ok());
    flows.into_iter().any(|flow| flow.is_shifted() && flow.flags & FLAG_RESET == 0 && flow.flags & ENDED != ENDED)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

// === impl Supervisor ===

impl Supervisor {
    /// Whether connections may be shifted by the programs of a worker that has died.
    pub(crate) const fn is_again(&self) -> bool {
        self.again
    }

    /// Passes on what shall outlive this process: the map of flows, the map of local ports, and the links.
    ///
    /// # Errors
    /// When the parent does not take it.
    pub(crate) fn keep(&self, flows: &OwnedFd, locals: &OwnedFd, links: &[RawFd]) -> io::Result<()> {
        let mut descriptors = vec![flows.as_raw_fd(), locals.as_raw_fd()];
        descriptors.extend(links.iter().take(MOST - 2));
        let text = [io::IoSlice::new(b"keep")];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(self.socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}
