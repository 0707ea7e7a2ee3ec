//! Asynchronous code inside a host, on a thread and a runtime of its own.
//!
//! For libraries that open their sockets themselves. Test code that only needs a socket takes it from
//! [`Host::connect`](crate::Host::connect) or [`Host::listen`](crate::Host::listen) and stays where it is.

use std::{
    fs::File,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    thread,
    thread::JoinHandle,
};

use anyhow::{Result, anyhow};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::worker::enter;

/// Work going on inside a host. Await it for its result; dropping it ends the work.
#[derive(Debug)]
#[must_use = "dropping this ends the work"]
pub struct Running<T> {
    result_rx: oneshot::Receiver<Result<T>>,
    stop: Option<DropGuard>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Running<T> {
    pub(super) fn start<W, F>(name: String, namespace: File, work: W) -> Result<Self>
    where
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let (result_tx, result_rx) = oneshot::channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let prepared = enter(&namespace).and_then(|()| {
                drop(namespace);
                Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
            });
            let result = match prepared {
                Err(error) => Err(error),
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        biased;
                        // Cancel-safe: nobody waits for the result any more.
                        () = stopped.cancelled() => Err(anyhow!("stopped")),
                        // Cancel-safe: it is polled to its end or dropped as a whole.
                        value = work() => Ok(value),
                    }
                }),
            };
            let _ = result_tx.send(result);
        })?;
        Ok(Self { result_rx, stop: Some(stop.drop_guard()), thread: Some(thread) })
    }
}

impl<T> Future for Running<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        Pin::new(&mut self.result_rx)
            .poll(context)
            .map(|result| result.unwrap_or_else(|_| Err(anyhow!("the work inside the host panicked"))))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
