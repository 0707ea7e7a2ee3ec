//! Copies of HTTP/2 requests for wiretaps: sent again as requests of the agent's own, whose answers nobody reads.
//!
//! Runs as one task per copy, which lives until the local process has answered: a stream that is given up earlier would
//! look to it like a caller that lost interest. The request itself waits for none of this: what does not fit the queue
//! makes the copy end in a reset.

use std::sync::Arc;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{HeaderMap, request::Parts};
use sluice_protocol::rules::matcher::Rule;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{SteeredBy, Upstreams, body, laptop::Laptops, request::request};
use crate::wiretap::{Copy, Limits};

/// One copy.
#[derive(Debug)]
pub(super) struct Copying {
    limits: Limits,
    /// request --pieces of its body--> the copy's task; bounded by the bytes that may wait, of which each piece takes some
    pieces_tx: mpsc::UnboundedSender<Piece>,
    copy: Copy,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes, OwnedSemaphorePermit),
    End(Option<HeaderMap>, Copy),
}

// === impl Copying ===

impl Copying {
    /// Begins a copy for each of these rules. Without a body (`whole`) it is complete at once.
    pub(super) fn begin(upstreams: &Upstreams, rules: Vec<Arc<Rule>>, parts: &Parts, whole: bool) -> Vec<Self> {
        let shared = &upstreams.steered.shared;
        let mut copies = Vec::new();
        for rule in rules {
            let limits = shared.wiretaps.limits(&rule.intercept.name);
            let copy = Copy::new(&shared.metrics, &rule);
            // Lost at once, where there are too many.
            let Some(stream) = limits.stream() else { continue };
            let (pieces_tx, pieces_rx) = mpsc::unbounded_channel();
            let (by, laptops, parts) = (upstreams.steered.clone(), upstreams.wiretaps.clone(), parts.clone());
            shared.wiretaps.spawn(async move {
                if let Err(error) = deliver(&by, &laptops, &rule, parts, whole, pieces_rx).await {
                    tracing::debug!(intercept = rule.intercept.name, "a copy is lost: {error:#}");
                }
                drop(stream);
            });
            let copying = Self { limits, pieces_tx, copy };
            if whole { copying.end(None) } else { copies.push(copying) }
        }
        copies
    }

    /// More of the body.
    pub(super) fn data(&mut self, data: &Bytes) {
        match self.limits.room(data.len()) {
            // Where nobody takes it any more, the copy is lost as well.
            Some(room) => _ = self.pieces_tx.send(Piece::Data(data.clone(), room)),
            // The task sees the end of the queue, and no end of the body.
            None => self.pieces_tx = mpsc::unbounded_channel().0,
        }
    }

    /// The body's end.
    pub(super) fn end(self, trailers: Option<HeaderMap>) {
        let _ = self.pieces_tx.send(Piece::End(trailers, self.copy));
    }
}

async fn deliver(
    by: &SteeredBy,
    laptops: &Laptops,
    rule: &Rule,
    parts: Parts,
    whole: bool,
    pieces_rx: mpsc::UnboundedReceiver<Piece>,
) -> anyhow::Result<()> {
    let mut laptop = laptops.get(by, rule).await?;
    std::future::poll_fn(|cx| laptop.poll_ready(cx)).await?;
    let (answer, send) = laptop.send_request(request(parts), whole)?;
    let answering = async {
        let mut body = answer.await?.into_body();
        while let Some(data) = body.data().await {
            // Fails only for a stream that is over.
            let _ = body.flow_control().release_capacity(data?.len());
        }
        anyhow::Ok(())
    };
    tokio::try_join!(feed(send, whole, pieces_rx), answering)?;
    Ok(())
}

async fn feed(
    mut send: SendStream<Bytes>,
    whole: bool,
    mut pieces_rx: mpsc::UnboundedReceiver<Piece>,
) -> anyhow::Result<()> {
    while let Some(piece) = pieces_rx.recv().await {
        let sent = match piece {
            Piece::Data(data, _room) => body::send_all(&mut send, data).await,
            Piece::End(trailers, copy) => {
                let sent = if whole { Ok(()) } else { body::finish(&mut send, trailers) };
                if sent.is_ok() {
                    copy.sent();
                    return Ok(());
                }
                sent
            }
        };
        sent.map_err(|broken| anyhow::anyhow!("{broken:?}"))?;
    }
    send.send_reset(Reason::CANCEL);
    anyhow::bail!("the request was not completed, or came faster than it could be copied")
}
