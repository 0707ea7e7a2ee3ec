//! Responders that do nothing but write prepared bytes: what the load generator reaches with these is its own ceiling.
//!
//! They answer what [`super::super::load`] sends and nothing else.

use std::io;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::bench::load::frames::{self, END_HEADERS, END_STREAM, Frame, Kind, PREFACE, Reader};

/// Answers each request of the HTTP/1 load, which sends the next one only then and each in one piece.
pub(super) async fn http1(mut stream: TcpStream, body: Bytes) -> io::Result<()> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    let mut head = [0; 4096];
    let mut end = 0;
    loop {
        let read = stream.read(&mut head[end..]).await?;
        if read == 0 {
            return Ok(());
        }
        end += read;
        if head[..end].ends_with(b"\r\n\r\n") {
            end = 0;
            stream.write_all(&answer).await?;
        }
    }
}

/// Answers each request of the HTTP/2 load, all that have come at once in one piece.
pub(super) async fn http2(mut stream: TcpStream, body: Bytes) -> io::Result<()> {
    /// `:status: 200`, from the static table (RFC 7541, appendix A).
    const OK: &[u8] = &[0x88];
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    let mut out = Vec::new();
    frames::write(&mut out, Kind::SETTINGS, 0, 0, &[]);
    let mut reader = Reader::default();
    loop {
        stream.write_all(&out).await?;
        out.clear();
        if reader.fill(&mut stream).await? == 0 {
            return Ok(());
        }
        while let Some(frame) = reader.next() {
            let Frame { kind, flags, stream, .. } = frame;
            if kind == Kind::SETTINGS && flags & frames::ACK == 0 {
                frames::write(&mut out, Kind::SETTINGS, frames::ACK, 0, &[]);
            }
            if kind == Kind::HEADERS && flags & END_STREAM != 0 {
                frames::write(&mut out, Kind::HEADERS, END_HEADERS, stream, OK);
                frames::write(&mut out, Kind::DATA, END_STREAM, stream, &body);
            }
        }
    }
}
