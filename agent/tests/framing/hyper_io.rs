//! A connection of hyper's without sockets: it gets bytes up to a mark, and is asked again until it waits for more.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Where the bytes of a connection come from; what is written to it is thrown away.
#[derive(Clone)]
pub(crate) struct Source(Rc<RefCell<State>>);

struct State {
    bytes: Vec<u8>,
    at: usize,
    upto: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// Remembers that somebody wants to be asked again.
#[derive(Default)]
pub(crate) struct Woken(AtomicBool);

// === impl Source ===

impl Source {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(Rc::new(RefCell::new(State { bytes: bytes.to_vec(), at: 0, upto: 0, closed: false, waker: None })))
    }

    /// All bytes before `upto` have arrived.
    pub(crate) fn arrive(&self, upto: usize) {
        let mut state = self.0.borrow_mut();
        state.upto = upto;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// No more will.
    pub(crate) fn close(&self) {
        self.0.borrow_mut().closed = true;
        let upto = self.0.borrow().upto;
        self.arrive(upto);
    }
}

impl Read for Source {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        let have = state.upto - state.at;
        if have == 0 && !state.closed {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = have.min(buf.remaining());
        buf.put_slice(&state.bytes[state.at..state.at + taken]);
        state.at += taken;
        Poll::Ready(Ok(()))
    }
}

impl Write for Source {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// === impl Woken ===

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls until it is ready or nobody has anything left to do.
pub(crate) fn until_quiet<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    loop {
        if let Poll::Ready(value) = poll(&mut Context::from_waker(&waker)) {
            return Poll::Ready(value);
        }
        if !woken.0.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
    }
}
