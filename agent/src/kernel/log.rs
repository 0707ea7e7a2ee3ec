//! Passes on what the kernel program logs, when it was asked to.
//!
//! One thread that sleeps until the kernel has written something; it ends when its handle is dropped. Lines go to
//! `tracing` with the target `sluice::kernel`.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

/// The running thread.
#[derive(Debug)]
pub(super) struct KernelLog {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Hands aya's records to `tracing`.
struct Tracing;

// === impl KernelLog ===

impl KernelLog {
    pub(super) fn start(ebpf: &mut Ebpf) -> io::Result<Self> {
        let mut logger = EbpfLogger::init_with_logger(ebpf, Tracing).map_err(io::Error::other)?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("kernel-log".to_owned()).spawn(move || {
            loop {
                logger.flush();
                let mut fds =
                    [PollFd::new(logger.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) if fds[1].any() == Some(true) => break,
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "no longer reading the kernel log");
                        break;
                    }
                }
            }
            logger.flush();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then the thread is awake.
        let _awake = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads the kernel log panicked");
        }
    }
}

// === impl Tracing ===

impl log::Log for Tracing {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!(target: "sluice::kernel", "{}", record.args());
    }

    fn flush(&self) {}
}
