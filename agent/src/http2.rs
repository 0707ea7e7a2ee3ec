//! HTTP/2 with prior knowledge, decided request by request.
//!
//! Owns one caller's connection from its preface on: an HTTP/2 server towards the caller, a client towards the app over
//! the connection that was opened for this caller, and, per rule that has matched, a client over one stream to the
//! developer's machine. Runs as one task per connection. The `h2` crate does frames, header compression and flow control;
//! nothing here looks inside a body.

mod body;
mod copying;
mod laptop;
mod request;
mod upgrade;

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use h2::{RecvStream, server::SendResponse};
use http::Request;
use sluice_protocol::{duplex::QuicDuplex, rules::matcher::Rule};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_util::io::InspectReader;

use self::{laptop::Laptops, request::Exchange};
use crate::{
    connection::{End, Shared, Steered},
    socket::Socket,
};

/// What a client sends first (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame type of `SETTINGS`.
const TYPE_SETTINGS: u8 = 0x04;

/// Most bytes that an app sends before its caller: settings, a window, a ping.
const MAX_GREETING: usize = 4 << 10;

/// Bytes of one stream that may be under way and unread, in each direction; also its memory bound.
const STREAM_WINDOW: u32 = 256 << 10;

/// The same for a connection: enough for all its streams, so that any number of them may stall (a laptop at a breakpoint
/// does not read) and the others still find room.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// Requests of one connection that may be open at once.
const MAX_STREAMS: u32 = 256;

/// Largest header list that is taken from either side, in bytes as RFC 9113 §6.5.2 counts them.
const MAX_HEADER_LIST: u32 = 128 << 10;

/// Requests that are taken at once before the first of them are on their way: what has come together is worth writing
/// together, but the app should not wait until the agent has looked at all of it.
const BATCH: usize = 8;

/// Bytes of answers that may wait for a caller that reads slowly.
const SEND_BUFFER: usize = 256 << 10;

/// A connection whose first bytes have been read already.
#[derive(Debug)]
struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

/// Watches a server's bytes until its settings have been read, which come first (RFC 9113 §3.4).
#[derive(Debug)]
struct FirstFrame {
    /// The beginning of the frame: its length.
    length: [u8; 3],
    read: usize,
    settled: Arc<Settled>,
}

/// Whether a server's settings have come: how many requests it takes at once, and what else, is known before the first is
/// sent. Otherwise a careful caller would see the refusals of an agent that was not.
#[derive(Debug, Default)]
struct Settled {
    yes: AtomicBool,
    notify: Notify,
}

/// What the requests of one connection share.
struct Upstreams {
    steered: SteeredBy,
    app: h2::client::SendRequest<Bytes>,
    settled: Arc<Settled>,
    laptops: Laptops,
    /// For wiretaps. With an owner of their own: copies may be under way when the caller has gone.
    wiretaps: Arc<Laptops>,
}

/// A [`Steered`] whose socket has gone to the HTTP/2 server.
#[derive(Debug, Clone)]
struct SteeredBy {
    shared: Arc<Shared>,
    peer: std::net::SocketAddr,
    destination: std::net::SocketAddr,
    port: u16,
}

/// What a connection's task has to see to.
#[expect(clippy::large_enum_variant, reason = "a request is moved once, and a box for each would be an allocation")]
enum Event {
    /// The caller's next request, or its end.
    Accepted(Option<Accepted>),
    /// The caller is to be looked at again: as many requests as are taken at once are on their way, or there is something
    /// to tell it.
    Caller,
    App(AppSaid),
}

type Accepted = Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>;

/// What has become of the app's connection.
enum AppSaid {
    /// It takes no more requests and answers those that it has.
    Goodbye,
    /// It has ended.
    Over(Result<(), h2::Error>),
}

/// Who has agreed to go on in HTTP/2 after an `Upgrade: h2c` (RFC 7540 §3.2).
pub(crate) enum Switched {
    /// The app, for a request that fits no rule.
    App(Socket),
    /// The developer's process, for one that does.
    Laptop {
        /// The rule that the request fits.
        rule: Arc<Rule>,
        /// The stream on which it has agreed.
        stream: QuicDuplex,
        /// The app's connection, on which nothing has been said yet.
        app: Socket,
    },
}

/// Whether `bytes`, behind `before`, may be the beginning of what a server of HTTP/2 sends: `SETTINGS` on stream 0 (RFC
/// 9113 §3.4). It may do so as soon as it has accepted, so here an app that speaks first is no other protocol. No settings
/// take 64 KiB: the first byte tells them from nearly everything else, such as a prompt of two letters.
pub(crate) fn may_greet(before: &[u8], bytes: &[u8]) -> bool {
    let header = [Some(0), None, None, Some(TYPE_SETTINGS), Some(0), Some(0), Some(0), Some(0), Some(0)];
    before.len() + bytes.len() <= MAX_GREETING
        && before.iter().chain(bytes).zip(header).all(|(&byte, wanted)| wanted.is_none_or(|wanted| wanted == byte))
}

/// Serves a connection whose first bytes, `prefix`, are the preface. `greeting` has come from the app already.
///
/// # Errors
/// [`End`] where the connection failed as a whole; requests that failed have been reset on their own.
pub(crate) async fn serve(steered: Steered, app: Socket, greeting: Bytes, prefix: Bytes) -> Result<(), End> {
    let (caller, by) = SteeredBy::new(steered);
    let settled = Arc::<Settled>::default();
    let app = Prefixed { prefix: greeting, inner: app };
    let mut first = FirstFrame { length: [0; 3], read: 0, settled: settled.clone() };
    let app = InspectReader::new(app, move |bytes| first.see(bytes));
    let (app, connection) = client().handshake(app).await.map_err(into_app)?;
    let upstreams = Upstreams::new(by, app, settled, Laptops::default());
    Box::pin(run(Prefixed { prefix, inner: caller }, upstreams, connection, None)).await
}

/// Serves a connection that has been switched to HTTP/2 by the answer to its last HTTP/1 request, of which the caller
/// has been told. `first` are the answering server's first bytes in HTTP/2, `early` what has come from the caller.
///
/// # Errors
/// As [`serve`].
pub(crate) async fn serve_switched(
    mut steered: Steered,
    switched: Switched,
    first: Bytes,
    early: Bytes,
) -> Result<(), End> {
    let prefix = upgrade::opening(&mut steered.caller, early).await.map_err(End::Caller)?;
    let (caller, by) = SteeredBy::new(steered);
    let caller = Prefixed { prefix, inner: caller };
    match switched {
        Switched::App(app) => {
            let (app, connection, answer) = upgrade::resume(app, first).await.map_err(into_app)?;
            let upstreams = Upstreams::new(by, app, Settled::already(), Laptops::default());
            Box::pin(run(caller, upstreams, connection, Some(answer))).await
        }
        Switched::Laptop { rule, stream, app } => {
            let (requests, connection, answer) = upgrade::resume(stream, first).await.map_err(into_laptop)?;
            let laptops = Laptops::with(&rule, requests, connection);
            let (app, connection) = client().handshake(app).await.map_err(into_app)?;
            let upstreams = Upstreams::new(by, app, Settled::already(), laptops);
            Box::pin(run(caller, upstreams, connection, Some(answer))).await
        }
    }
}

/// Serves the requests of one connection, all of them within this one task: what wakes one of them mostly has work for
/// the connections as well, and for the others. `answer` is the one that is under way for the request that switched it: the
/// first one that the server sees.
async fn run<A: AsyncRead + AsyncWrite + Unpin>(
    caller: Prefixed<Socket>,
    upstreams: Upstreams,
    mut app_connection: h2::client::Connection<A>,
    mut answer: Option<h2::client::ResponseFuture>,
) -> Result<(), End> {
    let mut server = server().handshake(caller).await.map_err(End::Http2)?;
    let stopping = upstreams.steered.shared.stopping.clone();
    let mut stopping = pin!(stopping.cancelled());
    let mut app = upstreams.app.clone();
    let upstreams = Arc::new(upstreams);
    let mut requests = FuturesUnordered::new();
    let (mut app_gone, mut told, mut extended) = (false, false, false);
    let mut accepted_now = 0;
    loop {
        // Each arm only polls: nothing is lost when another one comes first.
        tokio::select! {
            biased;
            event = poll_fn(|cx| {
                if accepted_now < BATCH && let Poll::Ready(accepted) = server.poll_accept(cx) {
                    return Poll::Ready(Event::Accepted(accepted));
                }
                poll_all(&mut requests, cx);
                if !app_gone && let Poll::Ready(said) = poll_app(&mut app_connection, &mut app, told, cx) {
                    return Poll::Ready(Event::App(said));
                }
                poll_all(&mut requests, cx);
                // Extended CONNECT (RFC 8441 §3) is offered as soon as the app has offered it. Not while the caller has not
                // acknowledged the settings before: the acknowledgement leads here again.
                if !extended && app.is_extended_connect_protocol_enabled() && server.enable_connect_protocol().is_ok() {
                    extended = true;
                    return Poll::Ready(Event::Caller);
                }
                if accepted_now < BATCH { Poll::Pending } else { Poll::Ready(Event::Caller) }
            }) => match event {
                Event::Accepted(Some(Ok((request, respond)))) => {
                    accepted_now += 1;
                    requests.push(Exchange::new(upstreams.clone(), respond).serve(request, answer.take()));
                }
                Event::Accepted(Some(Err(error))) => return Err(End::Http2(error)),
                Event::Accepted(None) => return Ok(()),
                Event::Caller => accepted_now = 0,
                Event::App(said) => {
                    // The caller's next requests shall come over a new connection. Open ones go on as long as the app's
                    // connection does.
                    told = true;
                    server.graceful_shutdown();
                    if let AppSaid::Over(result) = said {
                        app_gone = true;
                        upstreams.settled.set();
                        if let Err(error) = result {
                            let error = &error as &dyn std::error::Error;
                            tracing::debug!(error, "the app's HTTP/2 connection broke");
                        }
                    }
                }
            },
            () = &mut stopping, if !told => {
                told = true;
                server.graceful_shutdown();
            },
        }
    }
}

/// Goes on with every request that can.
fn poll_all<F: Future<Output = ()>>(requests: &mut FuturesUnordered<F>, cx: &mut Context<'_>) {
    while let Poll::Ready(Some(())) = requests.poll_next_unpin(cx) {}
}

/// Drives the app's connection; ready when it has ended and, unless the caller is `told` already, once the app has said
/// goodbye. That is long before the end if an answer takes long, and each new request would be refused until then.
fn poll_app<A: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut h2::client::Connection<A>,
    requests: &mut h2::client::SendRequest<Bytes>,
    told: bool,
    cx: &mut Context<'_>,
) -> Poll<AppSaid> {
    if let Poll::Ready(result) = Pin::new(connection).poll(cx) {
        return Poll::Ready(AppSaid::Over(result));
    }
    match requests.poll_ready(cx) {
        Poll::Ready(Err(_)) if !told => Poll::Ready(AppSaid::Goodbye),
        _ => Poll::Pending,
    }
}

fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

fn into_app(error: h2::Error) -> End {
    End::App(error.into_io().unwrap_or_else(|| io::Error::other("HTTP/2 handshake failed")))
}

fn into_laptop(error: h2::Error) -> End {
    End::Laptop(error.into_io().unwrap_or_else(|| io::Error::other("HTTP/2 handshake failed")))
}

// === impl Upstreams ===

impl Upstreams {
    fn new(steered: SteeredBy, app: h2::client::SendRequest<Bytes>, settled: Arc<Settled>, laptops: Laptops) -> Self {
        Self { steered, app, settled, laptops, wiretaps: Arc::default() }
    }
}

// === impl SteeredBy ===

impl SteeredBy {
    fn new(steered: Steered) -> (Socket, Self) {
        let Steered { shared, caller, peer, destination, port, .. } = steered;
        (caller, Self { shared, peer, destination, port })
    }
}

// === impl Prefixed ===

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..n]);
        self.prefix.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// === impl Settled ===

impl Settled {
    /// Where there is nothing to wait for.
    fn already() -> Arc<Self> {
        Arc::new(Self { yes: AtomicBool::new(true), notify: Notify::new() })
    }

    fn get(&self) -> bool {
        self.yes.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.yes.store(true, Ordering::Relaxed);
        self.notify.notify_waiters();
    }

    /// Waits until they have come. Cancel safe.
    async fn wait(&self) {
        loop {
            let notified = self.notify.notified();
            if self.get() {
                return;
            }
            notified.await;
        }
    }
}

// === impl FirstFrame ===

impl FirstFrame {
    /// Looks at what has just been read.
    fn see(&mut self, bytes: &[u8]) {
        /// What a frame has besides its payload (RFC 9113 §4.1).
        const HEADER: usize = 9;
        if self.settled.get() {
            return;
        }
        let missing = self.length.len().saturating_sub(self.read).min(bytes.len());
        let have = self.read.min(self.length.len());
        self.length[have..have + missing].copy_from_slice(&bytes[..missing]);
        self.read += bytes.len();
        let [high, middle, low] = self.length.map(usize::from);
        if self.read >= HEADER + (high << 16 | middle << 8 | low) {
            self.settled.set();
        }
    }
}
