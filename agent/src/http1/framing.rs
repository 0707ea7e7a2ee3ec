//! The framing of whole streams, without sockets: for fuzzing, and for comparison with other implementations.
//!
//! Drives what the relay drives, over bytes that are all there. It decides nothing and passes nothing on.

use super::{
    Doubt,
    head::{Parsed, RequestKind, RequestView},
    requests::Requests,
    track::{Answers, Followed},
};

/// A stream, as far as it is HTTP/1 beyond doubt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Framed {
    /// Where the head of each request ends. Not known of answers.
    pub heads: Vec<usize>,
    /// Where each message ends that has ended.
    pub ends: Vec<usize>,
    /// The last of them says that the connection ends with it.
    pub last: bool,
    /// It ends with nothing but the connection.
    pub to_end: bool,
    /// Why everything behind the last end is passed on as bytes; `None` where more may come.
    pub wire: Option<Doubt>,
}

/// Frames requests that arrive in `pieces`, and shows each to `see` as rules see it. One that asks for another protocol
/// is taken not to get it.
pub fn requests<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, mut see: impl FnMut(&RequestView<'_>)) -> Framed {
    let (mut framed, mut requests) = (Framed::default(), Requests::default());
    let (mut buf, mut at) = (Vec::new(), 0);
    for piece in pieces {
        buf.extend_from_slice(piece);
        let mut done = 0;
        while done < buf.len() && framed.wire.is_none() {
            if requests.between() {
                match requests.head(&buf[done..], &mut see) {
                    Parsed::Partial => break,
                    Parsed::Doubt(doubt) => framed.wire = Some(doubt),
                    Parsed::Head((head, ())) => {
                        requests.pass(&head);
                        done += head.len;
                        framed.heads.push(at + done);
                    }
                }
            } else {
                match requests.body(&buf[done..]) {
                    Ok(taken) => done += taken,
                    Err(doubt) => framed.wire = Some(doubt),
                }
            }
            if requests.between() && framed.ends.len() < framed.heads.len() {
                framed.ends.push(at + done);
                framed.last = requests.ended();
            }
        }
        buf.drain(..done);
        at += done;
    }
    framed
}

/// Frames the answers to requests of these kinds that arrive in `pieces`, after which the server closes.
pub fn answers<'a>(kinds: &[RequestKind], pieces: impl IntoIterator<Item = &'a [u8]>) -> Framed {
    let (mut framed, mut answers) = (Framed::default(), Answers::default());
    for &kind in kinds {
        answers.expect(kind, true);
    }
    let mut at = 0;
    for mut piece in pieces {
        while !piece.is_empty() && framed.wire.is_none() {
            match answers.follow(piece) {
                Followed::All => {
                    at += piece.len();
                    break;
                }
                Followed::End { at: end, close } => {
                    at += end;
                    piece = &piece[end..];
                    framed.ends.push(at);
                    framed.last = close;
                }
                Followed::Switched { .. } => framed.wire = Some(Doubt::Upgraded),
                Followed::Doubt { doubt, .. } => framed.wire = Some(doubt),
            }
        }
    }
    if framed.wire.is_none() && answers.close() {
        framed.ends.push(at);
        (framed.last, framed.to_end) = (true, true);
    }
    framed
}
