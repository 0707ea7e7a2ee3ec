//! An HTTP/2 app that does what a request's path says, and remembers what it was told.
//!
//! For what ordinary servers do too seldom to be tested with them: resets with a code of their own, answers that come
//! early, streams that stall, goodbyes in the middle.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderValue, Response};
use sluice_tests::{
    Host, eventually,
    peers::{
        ANSWERED_BY,
        http2::{read_all, send_all},
        pattern,
    },
};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::stage::{SOON, on};

/// How much `/endless` sends: more than all windows on the way.
pub(crate) const ENDLESS: u64 = 2 << 20;

/// The app. It ends when this is dropped.
pub(crate) struct ActingApp {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    name: HeaderValue,
    /// What became of each request, by path.
    seen: Mutex<BTreeMap<String, Seen>>,
    connections: AtomicUsize,
    released_tx: watch::Sender<bool>,
    goodbye_tx: watch::Sender<()>,
}

/// What the app knows of the requests with one path.
#[derive(Clone, Default, Debug)]
pub(crate) struct Seen {
    /// How many there were.
    pub(crate) times: usize,
    /// The code with which it was reset.
    pub(crate) reset: Option<Reason>,
    /// The whole body, when it has ended.
    pub(crate) body: Option<Bytes>,
    /// How many bytes of the answer have gone.
    pub(crate) sent: usize,
}

// === impl ActingApp ===

impl ActingApp {
    pub(crate) fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host.listen(on(port))?;
        let shared = Arc::new(Shared {
            name: HeaderValue::from_str(host.name())?,
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            released_tx: watch::Sender::new(false),
            goodbye_tx: watch::Sender::new(()),
        });
        let app = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                app.connections.fetch_add(1, Ordering::Relaxed);
                let app = Arc::clone(&app);
                // Where a connection breaks the caller sees it.
                tasks.spawn(async move { app.serve(stream).await.ok() });
            }
        });
        Ok(Self { shared, _task: AbortOnDropHandle::new(task) })
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// What it knows of a path.
    pub(crate) fn seen(&self, path: &str) -> Seen {
        self.shared.lock().get(path).cloned().unwrap_or_default()
    }

    /// Bytes of all answers that have gone.
    pub(crate) fn sent(&self) -> usize {
        self.shared.lock().values().map(|seen| seen.sent).sum()
    }

    /// Ends all waiting.
    pub(crate) fn release(&self) {
        self.shared.released_tx.send_replace(true);
    }

    /// Says GOAWAY on all connections there are: what was begun is answered, nothing else.
    pub(crate) fn say_goodbye(&self) {
        self.shared.goodbye_tx.send_replace(());
    }

    /// Waits until a request with this path is there.
    pub(crate) async fn has(&self, path: &str) -> Result<()> {
        eventually(SOON, &format!("{path} is there"), || async { self.seen(path).times == 1 }).await
    }

    /// Waits until the request with this path was reset, and checks the code.
    pub(crate) async fn told(&self, path: &str, code: Reason) -> Result<()> {
        let told = eventually(SOON, &format!("{path} is reset"), || async { self.seen(path).reset }).await?;
        ensure!(told == code, "{path} was reset with {told:?} instead of {code:?}");
        Ok(())
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, path: &str, change: impl FnOnce(&mut Seen)) {
        change(self.lock().entry(path.to_owned()).or_default());
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) -> Result<()> {
        let mut goodbye_rx = self.goodbye_tx.subscribe();
        stream.set_nodelay(true)?;
        let mut settings = h2::server::Builder::new();
        // A stream that is not read is not in the way of others, here at least.
        settings.initial_connection_window_size(1 << 30);
        let mut connection = settings.handshake(stream).await?;
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    let Some(accepted) = accepted else { return Ok(()) };
                    let (request, respond) = accepted?;
                    let path = request.uri().path().to_owned();
                    self.note(&path, |seen| seen.times += 1);
                    let app = Arc::clone(&self);
                    // What goes wrong with one request is its caller's to see.
                    tasks.spawn(async move { app.act(&path, request.into_body(), respond).await.ok() });
                }
                Ok(()) = goodbye_rx.changed() => connection.graceful_shutdown(),
            }
        }
    }

    async fn act(&self, path: &str, mut body: RecvStream, mut respond: SendResponse<Bytes>) -> Result<()> {
        let answer = || Response::builder().header(ANSWERED_BY, &self.name).body(());
        let mut words = path.split('/').skip(1);
        let code = |word: Option<&str>| Ok::<_, anyhow::Error>(Reason::from(word.context("no code")?.parse::<u32>()?));
        match words.next() {
            // Until the caller resets it.
            Some("hold") => {
                let reason = poll_fn(|context| respond.poll_reset(context)).await?;
                self.note(path, |seen| seen.reset = Some(reason));
            }
            // The same in the middle of the answer.
            Some("stream") => {
                let mut send = respond.send_response(answer()?, false)?;
                send.send_data(Bytes::from_static(b"piece"), false)?;
                let reason = poll_fn(|context| send.poll_reset(context)).await?;
                self.note(path, |seen| seen.reset = Some(reason));
            }
            Some("reset") => respond.send_reset(code(words.next())?),
            Some("cut") => {
                let mut send = respond.send_response(answer()?, false)?;
                send.send_data(Bytes::from_static(b"piece"), false)?;
                // A reset overtakes what has not been written yet: the caller says when it has it.
                self.wait().await?;
                send.send_reset(code(words.next())?);
            }
            Some("wait") => {
                self.wait().await?;
                respond.send_response(answer()?, true)?;
            }
            Some("endless") => {
                let mut send = respond.send_response(answer()?, false)?;
                for piece in pattern::body(1, ENDLESS).chunks(16 << 10) {
                    send_all(&mut send, Bytes::copy_from_slice(piece)).await?;
                    self.note(path, |seen| seen.sent += piece.len());
                }
                send.send_data(Bytes::new(), true)?;
            }
            Some("sink") => {
                self.wait().await?;
                let (body, _) = read_all(&mut body).await?;
                self.note(path, |seen| seen.body = Some(body));
                respond.send_response(answer()?, true)?;
            }
            // The whole answer, while the request is still coming.
            Some("early") => {
                respond.send_response(answer()?, true)?;
                let (body, _) = read_all(&mut body).await?;
                self.note(path, |seen| seen.body = Some(body));
            }
            // The same, but the rest of the request is not wanted (RFC 9113, 8.1).
            Some("enough") => {
                let mut send = respond.send_response(answer()?, false)?;
                send.send_data(Bytes::new(), true)?;
                self.wait().await?;
                send.send_reset(Reason::NO_ERROR);
            }
            // An answer without content, whatever its head claims.
            Some("claim") => {
                let status: u16 = words.next().context("no status")?.parse()?;
                let answer = Response::builder().status(status).header(ANSWERED_BY, &self.name);
                respond.send_response(answer.header("content-length", 1234).body(())?, true)?;
            }
            // The request is wanted, and said to be; its trailers come back.
            Some("continue") => {
                for status in [103, 100] {
                    let interim = Response::builder().status(status).header(ANSWERED_BY, &self.name);
                    respond.send_informational(interim.body(())?)?;
                }
                let (body, trailers) = read_all(&mut body).await?;
                let mut send = respond.send_response(answer()?, false)?;
                send_all(&mut send, body).await?;
                send.send_trailers(trailers.unwrap_or_default())?;
            }
            _ => {
                let (body, _) = read_all(&mut body).await?;
                let mut send = respond.send_response(answer()?, false)?;
                send_all(&mut send, body).await?;
                send.send_data(Bytes::new(), true)?;
            }
        }
        Ok(())
    }

    async fn wait(&self) -> Result<()> {
        self.released_tx.subscribe().wait_for(|&released| released).await?;
        Ok(())
    }
}
