//! Follows the requests of a caller through their bytes: where each begins, which head it has, where it ends.
//!
//! Owns the position only. The bytes are the relay's ([`super::relay`]), which keeps a head's beginning until the rest
//! is there, and decides what becomes of each request.

use super::{
    Doubt,
    body::Body,
    head::{MAX_HEAD, Parsed, RequestHead, RequestView, parse_request},
    scan::{HeadScan, Scanned},
};

/// Position in a stream of requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// What is still to come of the body of the last request that passed.
    body: Body,
    scan: HeadScan,
    /// A head has been read: what follows is HTTP/1.
    begun: bool,
    /// The connection ends with the answer to what has passed: no request follows (RFC 9112 §9.6).
    last: bool,
}

// === impl Requests ===

impl Requests {
    /// Whether a head has been read.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// Goes on in a connection that was served by others: whether a head has been read, and what is to come of a body.
    pub(super) fn resume(&mut self, begun: bool, body: u64) {
        self.begun = begun;
        self.body = Body::Length(body);
    }

    /// Whether the next byte begins a head; it belongs to a body otherwise.
    pub(super) fn between(&self) -> bool {
        self.body.is_done()
    }

    /// How many of the first `bytes` belong to the body that is running; they are through then.
    pub(super) fn body(&mut self, bytes: &[u8]) -> Result<usize, Doubt> {
        self.body.take(bytes)
    }

    /// The head at the beginning of `rest`, which is all that has come of it, and what `decide` says about it.
    pub(super) fn head<R>(
        &mut self,
        rest: &[u8],
        decide: impl FnOnce(&RequestView<'_>) -> R,
    ) -> Parsed<(RequestHead, R)> {
        if self.last {
            return Parsed::Doubt(Doubt::Closing);
        }
        let parsed = self.read(rest, decide);
        match parsed {
            Parsed::Head(_) => self.begun = true,
            // Another protocol does not begin in the middle.
            Parsed::Doubt(Doubt::NotHttp) if self.begun => return Parsed::Doubt(Doubt::Grammar),
            _ => {}
        }
        parsed
    }

    /// The request with this head, the last that was found, passes: its body is what follows.
    pub(super) fn pass(&mut self, head: &RequestHead) {
        self.body = head.body;
        self.last = head.close;
    }

    /// The connection ends with the present answer.
    pub(super) fn end(&mut self) {
        self.last = true;
    }

    /// Whether it does.
    pub(super) fn ended(&self) -> bool {
        self.last
    }

    /// What follows begins anew.
    pub(super) fn restart(&mut self) {
        self.scan = HeadScan::default();
    }

    fn read<R>(&mut self, rest: &[u8], decide: impl FnOnce(&RequestView<'_>) -> R) -> Parsed<(RequestHead, R)> {
        if self.scan != HeadScan::default() {
            let rest = &rest[..rest.len().min(MAX_HEAD)];
            match self.scan.advance(rest) {
                Scanned::Partial if rest.len() == MAX_HEAD => return Parsed::Doubt(Doubt::TooLarge),
                Scanned::Partial => return Parsed::Partial,
                Scanned::Doubt(doubt) => return Parsed::Doubt(doubt),
                Scanned::Complete => self.scan = HeadScan::default(),
            }
        }
        match parse_request(rest, decide) {
            Parsed::Partial => match self.scan.advance(rest) {
                Scanned::Partial => Parsed::Partial,
                Scanned::Doubt(doubt) => Parsed::Doubt(doubt),
                // The two do not agree on what is a head: that is doubt enough.
                Scanned::Complete => Parsed::Doubt(Doubt::Grammar),
            },
            parsed => parsed,
        }
    }
}
