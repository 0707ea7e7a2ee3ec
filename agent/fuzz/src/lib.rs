//! What the fuzzers run: the entries of `agent/tests/framing.rs`, which runs them over the seeds.

#[path = "../../tests/framing/chunks.rs"]
mod chunks;
#[path = "../../tests/framing/entry.rs"]
mod entry;
#[path = "../../tests/framing/hyper_client.rs"]
mod hyper_client;
#[path = "../../tests/framing/hyper_io.rs"]
mod hyper_io;
#[path = "../../tests/framing/hyper_server.rs"]
mod hyper_server;

/// Requests, however they are split.
pub fn requests(data: &[u8]) {
    entry::requests(data);
}

/// Answers, however they are split.
pub fn answers(data: &[u8]) {
    entry::answers(data);
}

/// Chunked bodies, against a second reading of them.
pub fn chunked(data: &[u8]) {
    entry::chunked(data);
}

/// Requests and answers, against hyper.
pub fn against_hyper(data: &[u8]) {
    entry::against_hyper(data);
}
