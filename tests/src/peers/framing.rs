//! HTTP/1 messages taken from a stream as the bytes they are.
//!
//! Strict where it matters to the tests (a message that is not framed beyond doubt is an error) and otherwise simple;
//! written independently of the agent's own reading of HTTP, which it serves to check.

use std::io;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const MOST_HEADERS: usize = 256;
const MOST_HEAD: usize = 1024 * 1024;

/// Header fields in the order and spelling in which they came.
pub(super) type Headers = Vec<(String, Vec<u8>)>;

/// How the length of a body is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Length {
    None,
    Exactly(usize),
    Chunked,
    ToEnd,
}

/// Bytes read from a stream and not yet taken.
#[derive(Default, Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
}

/// First line of a request or response.
#[derive(Clone, Debug)]
pub(super) enum First {
    Request { method: String, target: String, minor: u8 },
    Response { status: u16 },
}

// === impl Buffer ===

impl Buffer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Takes a head, with the empty line; `None` when the stream ends between messages.
    pub(super) async fn head<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(at) = find(&self.bytes[searched..], b"\r\n\r\n") {
                return Ok(Some(self.take(searched + at + 4)));
            }
            searched = self.bytes.len().saturating_sub(3);
            ensure!(self.bytes.len() < MOST_HEAD, "a head of more than {MOST_HEAD} bytes");
            if !self.fill(from).await? {
                ensure!(self.bytes.is_empty(), ended(&format!("inside a head: {:?}", lossy(&self.bytes))));
                return Ok(None);
            }
        }
    }

    /// Takes a body: the bytes on the wire, and the content without the framing.
    pub(super) async fn body<R: AsyncRead + Unpin>(&mut self, from: &mut R, length: Length) -> Result<Body> {
        match length {
            Length::None => Ok(Body::default()),
            Length::Exactly(count) => {
                let raw = self.exactly(from, count).await?;
                Ok(Body { content: raw.clone(), raw, trailers: Headers::new() })
            }
            Length::ToEnd => {
                while self.fill(from).await? {}
                let raw = std::mem::take(&mut self.bytes);
                Ok(Body { content: raw.clone(), raw, trailers: Headers::new() })
            }
            Length::Chunked => self.chunked(from).await,
        }
    }

    async fn chunked<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<Body> {
        let mut body = Body::default();
        loop {
            let line = self.line(from).await?;
            let size = std::str::from_utf8(&line)?.trim_end().split(';').next().unwrap_or_default().to_owned();
            let size = usize::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
            body.raw.extend_from_slice(&line);
            if size == 0 {
                break;
            }
            let chunk = self.exactly(from, size + 2).await?;
            ensure!(chunk.ends_with(b"\r\n"), "a chunk that does not end where it should");
            body.content.extend_from_slice(&chunk[..size]);
            body.raw.extend_from_slice(&chunk);
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line(from).await?;
            body.raw.extend_from_slice(&line);
            trailers.extend_from_slice(&line);
            if line == b"\r\n" {
                break;
            }
        }
        body.trailers = parse_headers(&trailers)?;
        Ok(body)
    }

    async fn line<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = find(&self.bytes, b"\r\n") {
                return Ok(self.take(at + 2));
            }
            ensure!(self.fill(from).await?, ended("inside a body"));
        }
    }

    async fn exactly<R: AsyncRead + Unpin>(&mut self, from: &mut R, count: usize) -> Result<Vec<u8>> {
        while self.bytes.len() < count {
            ensure!(self.fill(from).await?, ended(&format!("{} bytes short", count - self.bytes.len())));
        }
        Ok(self.take(count))
    }

    async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<bool> {
        const STEP: usize = 64 * 1024;
        self.bytes.reserve(STEP);
        Ok(from.read_buf(&mut self.bytes).await? > 0)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.bytes.split_off(count);
        std::mem::replace(&mut self.bytes, rest)
    }
}

/// A body.
#[derive(Clone, Default, Debug)]
pub(super) struct Body {
    /// As it was on the wire, chunk sizes and trailers included.
    pub(super) raw: Vec<u8>,
    /// Without any framing.
    pub(super) content: Vec<u8>,
    /// Of a chunked body.
    pub(super) trailers: Headers,
}

pub(super) fn parse_request(head: &[u8]) -> Result<(First, Headers)> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(head).with_context(|| format!("request head {:?}", lossy(head)))?;
    let first = First::Request {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        minor: request.version.unwrap_or_default(),
    };
    Ok((first, collect(request.headers)))
}

pub(super) fn parse_response(head: &[u8]) -> Result<(First, Headers)> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(head).with_context(|| format!("response head {:?}", lossy(head)))?;
    Ok((First::Response { status: response.code.unwrap_or_default() }, collect(response.headers)))
}

/// The length of a message's body (RFC 9112, 6.3). `to_method` is the method of the request that a response answers.
pub(super) fn length(first: &First, headers: &Headers, to_method: &str) -> Result<Length> {
    if let First::Response { status } = *first
        && (to_method == "HEAD" || status < 200 || status == 204 || status == 304)
    {
        return Ok(Length::None);
    }
    if let Some(coding) = value(headers, "transfer-encoding") {
        ensure!(coding.eq_ignore_ascii_case("chunked"), "transfer coding {coding:?}");
        return Ok(Length::Chunked);
    }
    match (value(headers, "content-length"), first) {
        (Some(text), _) => Ok(Length::Exactly(text.parse().with_context(|| format!("content length {text:?}"))?)),
        (None, First::Request { .. }) => Ok(Length::None),
        (None, First::Response { .. }) => Ok(Length::ToEnd),
    }
}

/// The first value of a header, by its name in any case.
pub(super) fn value<'h>(headers: &'h Headers, name: &str) -> Option<&'h str> {
    let (_, value) = headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(value).ok()
}

pub(super) fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn parse_headers(block: &[u8]) -> Result<Headers> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
    match httparse::parse_headers(block, &mut fields)? {
        httparse::Status::Complete((_, headers)) => Ok(collect(headers)),
        httparse::Status::Partial => bail!("incomplete header block {:?}", lossy(block)),
    }
}

/// Told apart from bytes that are wrong.
fn ended(place: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the stream ended {place}"))
}

fn collect(fields: &[httparse::Header<'_>]) -> Headers {
    fields.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect()
}

fn find(bytes: &[u8], marker: &[u8]) -> Option<usize> {
    bytes.windows(marker.len()).position(|window| window == marker)
}
