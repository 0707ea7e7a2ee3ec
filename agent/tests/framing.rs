//! Where messages begin and end, for bytes that nobody would send.
//!
//! The same entries as the fuzzers of `agent/fuzz` have (`cargo xtask fuzz`), over the committed seeds, over what random
//! changes make of them, and over random sequences of what HTTP/1 is made of.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::{fs, path::Path, sync::LazyLock};

use proptest::prelude::*;

#[path = "framing/chunks.rs"]
mod chunks;
#[path = "framing/entry.rs"]
mod entry;
#[path = "framing/hyper_client.rs"]
mod hyper_client;
#[path = "framing/hyper_io.rs"]
mod hyper_io;
#[path = "framing/hyper_server.rs"]
mod hyper_server;

type Entry = fn(&[u8]);

const ENTRIES: [(&str, Entry); 4] = [
    ("requests", entry::requests),
    ("answers", entry::answers),
    ("chunked", entry::chunked),
    ("against_hyper", entry::against_hyper),
];

/// What streams are put together of.
const PARTS: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "HEAD http://h/x HTTP/1.0\r\n",
    "get / HTTP/1.1\r\n",
    "CONNECT h:1 HTTP/1.1\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.0 304 \r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "content-length:\t12 \r\n",
    "Content-Length: +5\r\n",
    "Content-Length: 5, 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding:\x0bchunked\r\n",
    "TRANSFER-encoding: Chunked \r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "x-user: adam\r\n",
    "X-User:\u{e9}va\r\n",
    " folded\r\n",
    "\r\n",
    "\r\n",
    "\r\n",
    "hello",
    "5\r\nhello\r\n",
    "0005;a=b\r\nhello\r\n",
    "0\r\n\r\n",
    "0\r\nX-Trailer: a\r\n\r\n",
    "ffffffffffffffff\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    ":",
    "a",
    "/",
];

static SEEDS: LazyLock<Vec<(Entry, Vec<u8>)>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut seeds = Vec::new();
    for (name, entry) in ENTRIES {
        let mut files: Vec<_> = fs::read_dir(folder.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "no seeds for {name}");
        seeds.extend(files.into_iter().map(|file| (entry, fs::read(file).unwrap())));
    }
    seeds
});

#[derive(Clone, Debug)]
enum Change {
    Set(u8),
    Insert(u8),
    Remove(usize),
    Repeat(usize),
    Cut,
    Part(usize),
}

fn change() -> impl Strategy<Value = (usize, Change)> {
    let bytes = prop_oneof![any::<u8>(), prop::sample::select(b"\r\n\t :;,0159afx\0\x0b\x7f\xff".to_vec())];
    let change = prop_oneof![
        bytes.clone().prop_map(Change::Set),
        bytes.prop_map(Change::Insert),
        (1..20_usize).prop_map(Change::Remove),
        (1..200_usize).prop_map(Change::Repeat),
        Just(Change::Cut),
        (0..PARTS.len()).prop_map(Change::Part),
    ];
    (any::<usize>(), change)
}

fn apply(bytes: &mut Vec<u8>, at: usize, change: &Change) {
    let at = at % (bytes.len() + 1);
    let behind = |count: usize| at..(at + count).min(bytes.len());
    match *change {
        Change::Set(byte) => bytes.iter_mut().skip(at).take(1).for_each(|old| *old = byte),
        Change::Insert(byte) => bytes.insert(at, byte),
        Change::Remove(count) => drop(bytes.drain(behind(count))),
        Change::Repeat(count) => drop(bytes.splice(at..at, bytes[behind(count)].to_vec())),
        Change::Cut => bytes.truncate(at),
        Change::Part(part) => drop(bytes.splice(at..at, PARTS[part].bytes())),
    }
}

#[test]
fn b05_seeds() {
    for (entry, seed) in SEEDS.iter() {
        entry(seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn b05_changed_seeds(seed in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 1..6)) {
        let (entry, bytes) = seed.get(&SEEDS);
        let mut bytes = bytes.clone();
        for (at, change) in &changes {
            apply(&mut bytes, *at, change);
        }
        entry(&bytes);
    }

    #[test]
    fn b05_sequences(parts in prop::collection::vec(prop::sample::select(PARTS), 0..16), kind: u8) {
        let bytes = parts.concat().into_bytes();
        let with_kind = [&[kind], &bytes[..]].concat();
        entry::requests(&bytes);
        entry::answers(&with_kind);
        entry::chunked(&bytes);
        entry::against_hyper(&with_kind);
    }
}
