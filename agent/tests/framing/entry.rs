//! What is to hold of any bytes at all. Fuzzers and tests come in here.
//!
//! Each entry takes the bytes as they are found and panics where something does not hold. Also compiled into the
//! fuzzers (`agent/fuzz`), which run on a nightly toolchain.

use sluice_agent::http1::{
    Doubt,
    body::Body,
    framing::{self, Framed},
    head::RequestKind,
};

use crate::{chunks, hyper_client, hyper_server};

/// Most bytes of which each arrives alone: the rest would only take time.
const SINGLY: usize = 2048;

/// Requests are framed alike however their bytes arrive, and one lies behind the other.
pub(crate) fn requests(data: &[u8]) {
    let frame = |pieces: &[&[u8]]| {
        let mut seen = Vec::new();
        let framed =
            framing::requests(pieces.iter().copied(), |request| seen.push(hyper_server::Request::of_view(request)));
        (framed, seen)
    };
    let whole = frame(&[data]);
    lies_in_order(&whole.0, data.len());
    for pieces in splits(data) {
        assert_eq!(frame(&pieces), whole, "{:?} and whole", sizes(&pieces));
    }
}

/// Answers are, whatever the requests were. The first byte says which of eight were `HEAD`.
pub(crate) fn answers(data: &[u8]) {
    let Some((&heads, data)) = data.split_first() else { return };
    let kinds = kinds(heads);
    let whole = framing::answers(&kinds, [data]);
    lies_in_order(&whole, data.len());
    for pieces in splits(data) {
        assert_eq!(framing::answers(&kinds, pieces.iter().copied()), whole, "{:?} and whole", sizes(&pieces));
    }
}

/// A chunked body ends where a reading of the whole says, however its bytes arrive.
pub(crate) fn chunked(data: &[u8]) {
    let end = |pieces: &[&[u8]]| {
        let (mut body, mut at) = (Body::CHUNKED, 0);
        for piece in pieces {
            match body.take(piece) {
                Ok(taken) => at += taken,
                Err(doubt) => return Err(doubt),
            }
            if body.is_done() {
                return Ok(Some(at));
            }
        }
        Ok(None)
    };
    let expected = chunks::end(data).map_err(|chunks::Broken| Doubt::Chunk);
    assert_eq!(end(&[data]), expected, "whole");
    for pieces in splits(data) {
        assert_eq!(end(&pieces), expected, "{:?}", sizes(&pieces));
    }
}

/// What is framed is framed alike by hyper, and rules see of a request what hyper sees. What hyper refuses does not
/// count. The first byte says whether these are answers, and of which of seven `HEAD`s.
pub(crate) fn against_hyper(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    if kind & 1 == 0 {
        let mut seen = Vec::new();
        let framed = framing::requests([data], |request| seen.push(hyper_server::Request::of_view(request)));
        hyper_server::compare(data, &framed, &seen);
    } else {
        let kinds = kinds(kind >> 1);
        let framed = framing::answers(&kinds, [data]);
        hyper_client::compare(data, &framed, &kinds);
    }
}

/// Which answers belong to `HEAD`s, by the bits of a byte.
fn kinds(heads: u8) -> Vec<RequestKind> {
    (0..8).map(|bit| if heads >> bit & 1 == 1 { RequestKind::Head } else { RequestKind::Other }).collect()
}

fn lies_in_order(framed: &Framed, len: usize) {
    for ends in [&framed.heads, &framed.ends] {
        assert!(ends.is_sorted() && ends.last().is_none_or(|&last| last <= len), "{framed:?}");
    }
    if !framed.heads.is_empty() {
        assert!(framed.heads.iter().zip(&framed.ends).all(|(head, end)| head <= end), "{framed:?}");
        assert!(framed.ends.len().abs_diff(framed.heads.len()) <= 1, "{framed:?}");
    }
}

/// The same bytes in single ones, in two pieces cut in several places, and in pieces of irregular sizes.
fn splits(data: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut splits = Vec::new();
    if data.len() <= SINGLY {
        splits.push(data.chunks(1).collect());
    }
    // The same for the same bytes: what is found is found again.
    let mut state = data.iter().fold(data.len(), |state, &byte| state.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    for _ in 0..6 {
        let (before, behind) = data.split_at(below(data.len() + 1));
        splits.push(vec![before, behind]);
    }
    for most in [3, 40, 700] {
        let (mut pieces, mut rest) = (Vec::new(), data);
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + below(most.min(rest.len())));
            pieces.push(piece);
            rest = behind;
        }
        splits.push(pieces);
    }
    splits
}

fn sizes(pieces: &[&[u8]]) -> Vec<usize> {
    pieces.iter().map(|piece| piece.len()).collect()
}
