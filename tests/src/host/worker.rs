//! One thread that lives inside a network namespace and does there what others ask of it.
//!
//! A namespace belongs to a thread, and a socket or child process to the namespace of the thread that made it. So
//! sockets and children are made here and used anywhere. The thread is also what the kernel takes for the parent of
//! the children, which matters for `PR_SET_PDEATHSIG`: they die with this thread and not earlier.

use std::{fs::File, path::Path, sync::mpsc, thread, thread::JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    /// test code --what to do inside the namespace--> the thread. Unbounded: whoever sends waits for the answer.
    jobs_tx: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread inside the namespace at `path`.
    pub(crate) fn start(name: &str, path: &Path) -> Result<Self> {
        let namespace = File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
        let (jobs_tx, jobs_rx) = mpsc::channel::<Job>();
        let (entered_tx, entered_rx) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let entered = enter(&namespace);
            drop(namespace);
            let failed = entered.is_err();
            let _ = entered_tx.send(entered);
            if failed {
                return;
            }
            for job in jobs_rx {
                job();
            }
        })?;
        entered_rx.recv().context("the namespace's thread did not start")??;
        Ok(Self { jobs_tx: Some(jobs_tx), thread: Some(thread) })
    }

    /// Does `work` on the thread and waits for what it returns.
    pub(crate) fn call<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done_tx, done_rx) = mpsc::channel();
        let job = Box::new(move || {
            let _ = done_tx.send(work());
        });
        self.jobs_tx.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(|| anyhow!("the host is gone"))?;
        done_rx.recv().map_err(|_| anyhow!("the work inside the host panicked"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs_tx = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread into a namespace, for good.
pub(crate) fn enter(namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace (needs root: cargo xtask test)")
}
