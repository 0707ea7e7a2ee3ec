//! Moves one body from one HTTP/2 stream to another, with both sides' flow control end to end.

use std::{collections::VecDeque, future::poll_fn, task::Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::copying::Copying;

/// Most bytes of a request body that are kept until its answer begins, so that the app can answer if the client dies.
const KEPT: usize = 64 << 10;

/// A request body that may have to be sent twice.
#[derive(Debug)]
pub(super) struct RequestBody {
    recv: RecvStream,
    /// Everything read so far, while `keep`.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    keep: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Who gets a copy of what has not been read yet.
    copies: Vec<Copying>,
}

/// Why a body got no further.
#[derive(Debug)]
pub(super) enum Broken {
    /// Its sender reset the stream, or its connection failed.
    Source(h2::Error),
    /// Its receiver did.
    Sink(h2::Error),
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(recv: RecvStream, keep: bool) -> Self {
        Self { recv, kept: VecDeque::new(), kept_bytes: 0, keep, trailers: None, ended: false, copies: Vec::new() }
    }

    /// Whether there is no body: the request's head was its end.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.trailers.is_none() && (self.ended || self.recv.is_end_stream())
    }

    /// Whether it can be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        self.keep
    }

    /// From now on all that is read is copied.
    pub(super) fn copy_to(&mut self, copies: Vec<Copying>) {
        self.copies = copies;
    }

    /// It will not be sent again.
    pub(super) fn forget(&mut self) {
        self.keep = false;
    }

    /// Sends what is kept, then what comes, then the trailers.
    pub(super) async fn send(&mut self, to: &mut SendStream<Bytes>) -> Result<(), Broken> {
        for index in 0..self.kept.len() {
            send_all(to, self.kept[index].clone()).await?;
        }
        if !self.keep {
            self.kept.clear();
        }
        while !self.ended {
            match next(&mut self.recv, to).await? {
                Some(data) => {
                    let taken = data.len();
                    self.copies.iter_mut().for_each(|copy| copy.data(&data));
                    self.remember(&data);
                    send_all(to, data).await?;
                    // Fails only for a stream that is over.
                    let _ = self.recv.flow_control().release_capacity(taken);
                }
                None => {
                    self.trailers = self.recv.trailers().await.map_err(Broken::Source)?;
                    self.ended = true;
                    self.copies.drain(..).for_each(|copy| copy.end(self.trailers.clone()));
                }
            }
        }
        finish(to, self.trailers.clone())
    }

    fn remember(&mut self, data: &Bytes) {
        self.kept_bytes += data.len();
        if self.keep && self.kept_bytes <= KEPT {
            self.kept.push_back(data.clone());
        } else {
            self.keep = false;
            self.kept.clear();
        }
    }
}

/// Passes an answer's body on, trailers included.
pub(super) async fn pass(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<(), Broken> {
    loop {
        match next(from, to).await? {
            Some(data) if from.is_end_stream() => return send_last(to, data).await,
            Some(data) => {
                let taken = data.len();
                send_all(to, data).await?;
                // Fails only for a stream that is over.
                let _ = from.flow_control().release_capacity(taken);
            }
            None => {
                let trailers = from.trailers().await.map_err(Broken::Source)?;
                return finish(to, trailers);
            }
        }
    }
}

/// The next piece of a body. Notices at once when its receiver gives up, also while nothing comes.
async fn next(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Broken> {
    poll_fn(|cx| {
        if let Poll::Ready(reset) = to.poll_reset(cx) {
            return Poll::Ready(Err(Broken::Sink(reset.map_or_else(|error| error, h2::Error::from))));
        }
        from.poll_data(cx).map(|data| data.transpose().map_err(Broken::Source))
    })
    .await
}

pub(super) fn finish(to: &mut SendStream<Bytes>, trailers: Option<HeaderMap>) -> Result<(), Broken> {
    match trailers {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(Broken::Sink)
}

async fn send_last(to: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Broken> {
    while !data.is_empty() {
        let piece = next_piece(to, &mut data).await?;
        to.send_data(piece, data.is_empty()).map_err(Broken::Sink)?;
        if data.is_empty() {
            return Ok(());
        }
    }
    to.send_data(Bytes::new(), true).map_err(Broken::Sink)
}

pub(super) async fn send_all(to: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Broken> {
    while !data.is_empty() {
        let piece = next_piece(to, &mut data).await?;
        to.send_data(piece, false).map_err(Broken::Sink)?;
    }
    Ok(())
}

/// As much of `data` as the receiver has room for; waits until it has some.
async fn next_piece(to: &mut SendStream<Bytes>, data: &mut Bytes) -> Result<Bytes, Broken> {
    to.reserve_capacity(data.len());
    while to.capacity() == 0 {
        match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(Broken::Sink(error)),
            None => return Err(Broken::Sink(h2::Reason::CANCEL.into())),
        }
    }
    let n = data.len().min(to.capacity());
    Ok(data.split_to(n))
}
