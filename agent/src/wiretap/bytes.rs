//! Copies of bytes: of HTTP/1 requests one after the other, and of whole TCP connections.
//!
//! One stream per caller's connection and wiretap, opened with the first copy. A request whose copy has a gap is of no use,
//! so its stream is aborted; the next request gets a new one.

use std::sync::Arc;

use bytes::Bytes;
use sluice_protocol::{
    duplex::{Duplex as _, QuicDuplex},
    rules::matcher::Rule,
    stream::Open,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Copy, Limits};
use crate::connection::Shared;

/// The copies of the requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct RequestTaps {
    taps: Vec<Tap>,
    /// Whose copies of the request at hand are not complete.
    active: Vec<usize>,
    /// Where in the request what comes next stands: it may come again from its first byte.
    at: usize,
    /// How much of the request has been copied.
    copied: usize,
}

/// The copies of all bytes of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionTaps(Vec<Tap>);

/// The copies of one connection for one wiretap.
#[derive(Debug)]
struct Tap {
    rule: Arc<Rule>,
    limits: Limits,
    open: Open,
    /// connection --pieces--> its task; bounded by the bytes that may wait, of which each piece takes some
    pieces_tx: Option<mpsc::UnboundedSender<Piece>>,
    /// The one that is under way.
    copy: Option<Copy>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes, OwnedSemaphorePermit),
    End(Copy),
}

// === impl RequestTaps ===

impl RequestTaps {
    /// A request begins that is copied for these rules, if for any. What is not complete of the one before never will be.
    pub(crate) fn begin(&mut self, shared: &Arc<Shared>, rules: Vec<Arc<Rule>>, open: impl Fn(&Rule) -> Open) {
        (self.at, self.copied) = (0, 0);
        self.active.drain(..).for_each(|tap| self.taps[tap].cut());
        for rule in rules {
            let named = |tap: &Tap| tap.rule.intercept.name == rule.intercept.name;
            let at = self.taps.iter().position(named).unwrap_or(self.taps.len());
            match self.taps.get_mut(at) {
                Some(tap) if Arc::ptr_eq(&tap.rule, &rule) => {}
                // The rules have changed meanwhile.
                Some(tap) => *tap = Tap::new(shared, open(&rule), rule),
                None => self.taps.push(Tap::new(shared, open(&rule), rule)),
            }
            self.taps[at].begin(shared);
            self.active.push(at);
        }
    }

    /// More of the request; `last`: all of it has come.
    pub(crate) fn copy(&mut self, bytes: &[u8], last: bool) {
        let known = (self.copied - self.at).min(bytes.len());
        self.at += bytes.len();
        self.copied = self.copied.max(self.at);
        if known < bytes.len() {
            self.active.iter().for_each(|&tap| self.taps[tap].copy(&bytes[known..]));
        }
        if last {
            self.active.drain(..).for_each(|tap| self.taps[tap].end());
        }
    }

    /// The request comes again from its first byte.
    pub(crate) fn again(&mut self) {
        self.at = 0;
    }
}

// === impl ConnectionTaps ===

impl ConnectionTaps {
    pub(crate) fn new(shared: &Arc<Shared>, rules: &[Arc<Rule>], open: impl Fn(&Rule) -> Open) -> Self {
        let tap = |rule: &Arc<Rule>| {
            let mut tap = Tap::new(shared, open(rule), rule.clone());
            tap.begin(shared);
            tap
        };
        Self(rules.iter().map(tap).collect())
    }

    /// The caller's next bytes.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|tap| tap.copy(bytes));
    }

    /// The caller has broken off: so do the copies.
    pub(crate) fn cut(&mut self) {
        self.0.clear();
    }
}

/// There is nothing more to come, or nobody who would read it.
impl Drop for ConnectionTaps {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Tap::end);
    }
}

// === impl Tap ===

impl Tap {
    fn new(shared: &Shared, open: Open, rule: Arc<Rule>) -> Self {
        let limits = shared.wiretaps.limits(&rule.intercept.name);
        let open = Open { copy: true, ..open };
        Self { rule, limits, open, pieces_tx: None, copy: None }
    }

    fn begin(&mut self, shared: &Arc<Shared>) {
        self.copy = Some(Copy::new(&shared.metrics, &self.rule));
        if self.pieces_tx.as_ref().is_none_or(mpsc::UnboundedSender::is_closed) {
            self.pieces_tx = self.limits.stream().map(|stream| {
                let (pieces_tx, pieces_rx) = mpsc::unbounded_channel();
                let (hub, key, open) = (shared.hub.clone(), self.rule.intercept.client.key_hash, self.open.clone());
                shared.wiretaps.spawn(async move {
                    match hub.open(key, open, &[]).await {
                        Ok(stream) => deliver(stream, pieces_rx).await,
                        Err(why) => tracing::debug!("no copy, client unavailable: {why}"),
                    }
                    drop(stream);
                });
                pieces_tx
            });
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        let Some(pieces_tx) = &self.pieces_tx else { return };
        let queued = self
            .limits
            .room(bytes.len())
            .is_some_and(|room| pieces_tx.send(Piece::Bytes(Bytes::copy_from_slice(bytes), room)).is_ok());
        if !queued {
            self.cut();
        }
    }

    /// Counts the copy as lost. What is queued of it is cut off by the end of the queue.
    fn cut(&mut self) {
        (self.pieces_tx, self.copy) = (None, None);
    }

    fn end(&mut self) {
        if let (Some(pieces_tx), Some(copy)) = (&self.pieces_tx, self.copy.take()) {
            // Where nobody takes it any more, it is dropped and counts as lost.
            let _ = pieces_tx.send(Piece::End(copy));
        }
    }
}

/// Writes what is queued to a client, and reads what comes back, for nobody.
async fn deliver(mut stream: QuicDuplex, mut pieces_rx: mpsc::UnboundedReceiver<Piece>) {
    let (send, recv) = stream.halves_mut();
    let (mut whole, mut nobody) = (true, tokio::io::sink());
    let feeding = async {
        while let Some(piece) = pieces_rx.recv().await {
            match piece {
                Piece::Bytes(bytes, _room) => {
                    whole = false;
                    send.write_all(&bytes).await?;
                }
                Piece::End(copy) => {
                    whole = true;
                    copy.sent();
                }
            }
        }
        std::io::Result::Ok(())
    };
    let ended = tokio::select! {
        biased;
        fed = feeding => fed.is_ok() && whole,
        // The client has ended it: the next request gets another stream.
        _ = tokio::io::copy(recv, &mut nobody) => false,
    };
    if ended { stream.finish() } else { stream.abort() }
}
