//! Follows the answers of a server through their bytes: which is running, which request it belongs to, where it ends.
//!
//! The bytes are never held back: they are on their way to the caller while this looks at them. Only the beginning of
//! a head that arrives in pieces is copied, until the rest is there.

use std::collections::VecDeque;

use super::{
    Doubt,
    body::Body,
    head::{MAX_HEAD, Parsed, RequestKind, ResponseHead, parse_response},
};

/// Answers that are owed, in the order of their requests, and the one that is running.
#[derive(Debug, Default)]
pub(super) struct Answers {
    owed: VecDeque<Owed>,
    /// Beginning of a head whose rest has not arrived.
    partial: Vec<u8>,
    running: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct Owed {
    kind: RequestKind,
    upgrade: bool,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    body: Body,
    close: bool,
}

/// Where [`Answers::follow`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// All bytes belong to owed answers.
    All,
    /// This many bytes ended an answer; what follows has not been looked at.
    End {
        /// How many.
        at: usize,
        /// The server closes after it, or has said so.
        close: bool,
    },
    /// The server has switched protocols; the bytes behind `at` are the other protocol's.
    Switched {
        /// Where the other protocol begins.
        at: usize,
    },
    /// Not to be framed, from byte `at` on.
    Doubt {
        /// How many bytes before it were followed.
        at: usize,
        /// Why.
        doubt: Doubt,
    },
}

// === impl Answers ===

impl Answers {
    /// Goes on in a connection that was served by others: the requests that are owed an answer, and what is to come of the
    /// first answer's body, where it has begun.
    pub(super) fn resume(&mut self, owed: &[RequestKind], running: Option<Body>) {
        self.owed.extend(owed.iter().map(|&kind| Owed { kind, upgrade: false }));
        self.running = running.map(|body| Running { body, close: false });
    }

    /// A request has gone to the server.
    pub(super) fn expect(&mut self, kind: RequestKind, upgrade: bool) {
        self.owed.push_back(Owed { kind, upgrade });
    }

    /// How many answers have not ended.
    pub(super) fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether nothing of the first owed answer has arrived.
    pub(super) fn untouched(&self) -> bool {
        self.running.is_none() && self.partial.is_empty()
    }

    /// The server has closed. Whether that ends an answer as it should: one that runs until then.
    pub(super) fn close(&mut self) -> bool {
        let ends = matches!(self.running, Some(Running { body: Body::UntilClose, .. }));
        if ends {
            self.running = None;
            self.owed.pop_front();
        }
        ends
    }

    /// Looks at the next bytes of the server, up to the end of one answer.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Followed {
        let mut at = 0;
        while at < bytes.len() {
            if let Some(running) = &mut self.running {
                match running.body.take(&bytes[at..]) {
                    Ok(taken) => at += taken,
                    Err(_) => return Followed::Doubt { at, doubt: Doubt::Response },
                }
                if running.body.is_done() {
                    let close = running.close;
                    return self.ended(at, close);
                }
                continue;
            }
            let Some(&owed) = self.owed.front() else {
                return Followed::Doubt { at, doubt: Doubt::AppFirst };
            };
            let Some((head, len)) = self.head(&bytes[at..], owed.kind) else {
                return Followed::Doubt { at, doubt: Doubt::Response };
            };
            at += len;
            let Some(head) = head else { break };
            match head.status {
                101 if owed.upgrade => return Followed::Switched { at },
                101 => return Followed::Doubt { at, doubt: Doubt::Response },
                // An interim answer: the final one is still owed (RFC 9110 §15.2).
                100..=199 => {}
                _ if head.body.is_done() => return self.ended(at, head.close),
                _ => self.running = Some(Running { body: head.body, close: head.close }),
            }
        }
        Followed::All
    }

    fn ended(&mut self, at: usize, close: bool) -> Followed {
        self.running = None;
        self.owed.pop_front();
        Followed::End { at, close }
    }

    /// The head that ends in `bytes` and how many of them belong to it, or `None` where it cannot be one.
    fn head(&mut self, bytes: &[u8], kind: RequestKind) -> Option<(Option<ResponseHead>, usize)> {
        if self.partial.is_empty() {
            return match parse_response(bytes, kind) {
                Parsed::Head(head) => Some((Some(head), head.len)),
                Parsed::Doubt(_) => None,
                Parsed::Partial => {
                    self.partial.extend_from_slice(bytes);
                    Some((None, bytes.len()))
                }
            };
        }
        let before = self.partial.len();
        let room = (MAX_HEAD - before).min(bytes.len());
        self.partial.extend_from_slice(&bytes[..room]);
        match parse_response(&self.partial, kind) {
            Parsed::Head(head) => {
                self.partial = Vec::new();
                Some((Some(head), head.len - before))
            }
            Parsed::Doubt(_) => None,
            Parsed::Partial => Some((None, bytes.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` in pieces of `step` until something other than `All`; the place counted from the beginning.
    fn follow(answers: &mut Answers, bytes: &[u8], step: usize) -> (usize, Followed) {
        let mut fed = 0;
        for piece in bytes.chunks(step) {
            match answers.follow(piece) {
                Followed::All => fed += piece.len(),
                end @ (Followed::End { at, .. } | Followed::Switched { at } | Followed::Doubt { at, .. }) => {
                    return (fed + at, end);
                }
            }
        }
        (fed, Followed::All)
    }

    fn end_of(kind: RequestKind, answer: &[u8]) -> (usize, bool) {
        let mut ends = Vec::new();
        for step in 1..=answer.len() {
            let mut answers = Answers::default();
            answers.expect(kind, false);
            match follow(&mut answers, answer, step) {
                (at, Followed::End { close, .. }) => ends.push((at, close)),
                (at, Followed::All) => ends.push((at, answers.close())),
                (at, other) => panic!("{other:?} at {at}, step {step}"),
            }
            assert_eq!(answers.owed(), usize::from(!ends.last().unwrap().1 && ends.last().unwrap().0 == 0));
        }
        assert!(ends.windows(2).all(|w| w[0] == w[1]), "{ends:?}");
        ends[0]
    }

    #[test]
    fn answers_end_where_they_end() {
        use RequestKind::{Head, Other};
        for (kind, answer, end, close) in [
            (Other, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokX", 40, false),
            (Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nX", 59, false),
            (Other, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\nX", 44, false),
            (Other, "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\nX", 38, false),
            (Head, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nX", 38, false),
            (Other, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nXY", 58, true),
            (Other, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nXY", 39, true),
            (Other, "HTTP/1.1 304 No\r\nContent-Length: x\r\nConnection: close\r\n\r\nX", 57, true),
            (Other, "HTTP/1.1 200 OK\r\n\r\nuntil the end", 32, true),
        ] {
            assert_eq!(end_of(kind, answer.as_bytes()), (end, close), "{answer}");
        }
    }

    #[test]
    fn what_nobody_asked_for_and_what_cannot_be_framed_is_doubted() {
        assert_eq!(Answers::default().follow(b"220 hi"), Followed::Doubt { at: 0, doubt: Doubt::AppFirst });
        for answer in [
            "220 hello\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 101 Switching\r\n\r\n",
        ] {
            let mut answers = Answers::default();
            answers.expect(RequestKind::Other, false);
            let (_, followed) = follow(&mut answers, answer.as_bytes(), 7);
            assert!(matches!(followed, Followed::Doubt { doubt: Doubt::Response, .. }), "{answer}: {followed:?}");
        }
    }

    #[test]
    fn an_upgrade_that_was_asked_for_switches() {
        let mut answers = Answers::default();
        answers.expect(RequestKind::Other, true);
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi";
        assert_eq!(answers.follow(answer), Followed::Switched { at: answer.len() - 4 });
    }
}
