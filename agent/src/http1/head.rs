//! Reads a complete head: what it asks, how its body is framed, whether the connection goes on.
//!
//! `httparse` finds the parts; this module adds what RFC 9112 §§2.2, 5.1, 6 ask of a recipient that must agree with
//! every other recipient: no bare LF, one unambiguous length, no coding that we do not read.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig, Status};
use sluice_protocol::rules::matcher;

use super::{
    Doubt,
    body::Body,
    scan::{HeadScan, Scanned, is_method},
};

/// Most bytes of a head that is still decided; nginx, Node and Go accept 8 to 64 KiB, Java up to 8 KiB.
pub const MAX_HEAD: usize = 128 << 10;

/// Most headers of a head that is still decided.
pub const MAX_HEADERS: usize = 2048;

/// So many fit the stack; a head with more is read a second time with room for [`MAX_HEADERS`].
const USUAL_HEADERS: usize = 96;

/// What a read of the bytes so far has given.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// More bytes are needed.
    Partial,
    /// A head.
    Head(T),
    /// None that can be framed beyond doubt.
    Doubt(Doubt),
}

/// A request's head, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHead {
    /// Its bytes, the blank line and skipped empty lines before it included.
    pub len: usize,
    /// Its body.
    pub body: Body,
    /// What its answer's framing depends on.
    pub kind: RequestKind,
    /// The caller closes, or expects the server to close, after the answer.
    pub close: bool,
    /// It asks for another protocol.
    pub upgrade: Upgrade,
    /// Sending it twice does what sending it once does (RFC 9110 §9.2.2).
    pub idempotent: bool,
}

/// What the framing of an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// `HEAD`: the answer has no body, whatever it says.
    Head,
    /// Any other method.
    Other,
}

/// The protocol that a request asks to go on with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// None.
    #[default]
    None,
    /// HTTP/2 in clear text (`h2c`, RFC 7540 §3.2).
    H2c,
    /// Another, such as `websocket`.
    Other,
}

/// An answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseHead {
    /// Its bytes, the blank line included.
    pub len: usize,
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub body: Body,
    /// The server closes after it.
    pub close: bool,
}

/// The parts of a request that rules look at.
#[derive(Debug)]
pub struct RequestView<'a> {
    method: &'a str,
    target: &'a str,
    headers: &'a [Header<'a>],
}

#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    protocol: Option<Upgrade>,
    /// Why they do not say how long the body is.
    doubt: Option<Doubt>,
}

/// Reads the head at the beginning of `bytes` and asks `decide` about it.
pub fn parse_request<R>(bytes: &[u8], decide: impl FnOnce(&RequestView<'_>) -> R) -> Parsed<(RequestHead, R)> {
    let mut few = [const { MaybeUninit::uninit() }; USUAL_HEADERS];
    let mut many;
    let mut request = httparse::Request::new(&mut []);
    let config = ParserConfig::default();
    let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
    let mut parsed = config.parse_request_with_uninit_headers(&mut request, bytes, &mut few);
    if parsed == Err(httparse::Error::TooManyHeaders) {
        many = vec![MaybeUninit::uninit(); MAX_HEADERS];
        request = httparse::Request::new(&mut []);
        parsed = config.parse_request_with_uninit_headers(&mut request, bytes, &mut many);
    }
    let len = match parsed {
        Ok(Status::Partial) if bytes.len() == MAX_HEAD => return Parsed::Doubt(Doubt::TooLarge),
        Ok(Status::Partial) => return Parsed::Partial,
        Ok(Status::Complete(len)) => len,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Doubt(Doubt::TooLarge),
        Err(_) => return no_head(bytes),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return no_head(bytes);
    };
    if !is_method(method) || has_bare_lf(&bytes[..len]) {
        return no_head(bytes);
    }
    if method == "CONNECT" {
        return Parsed::Doubt(Doubt::Connect);
    }
    let fields = Fields::read(request.headers, minor);
    if let Some(doubt) = fields.doubt {
        return Parsed::Doubt(doubt);
    }
    let head = RequestHead {
        len,
        body: if fields.chunked { Body::CHUNKED } else { Body::Length(fields.length.unwrap_or(0)) },
        kind: if method == "HEAD" { RequestKind::Head } else { RequestKind::Other },
        close: fields.closes(minor),
        upgrade: if fields.upgrade { fields.protocol.unwrap_or(Upgrade::None) } else { Upgrade::None },
        idempotent: matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"),
    };
    let decision = decide(&RequestView { method, target, headers: request.headers });
    Parsed::Head((head, decision))
}

/// Reads the head at the beginning of `bytes`, the answer to a request of `kind`.
#[must_use]
pub fn parse_response(bytes: &[u8], kind: RequestKind) -> Parsed<ResponseHead> {
    let mut few = [const { MaybeUninit::uninit() }; USUAL_HEADERS];
    let mut many;
    let mut response = httparse::Response::new(&mut []);
    let config = ParserConfig::default();
    let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
    let mut parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut few);
    if parsed == Err(httparse::Error::TooManyHeaders) {
        many = vec![MaybeUninit::uninit(); MAX_HEADERS];
        response = httparse::Response::new(&mut []);
        parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut many);
    }
    let len = match parsed {
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Parsed::Partial,
        Ok(Status::Complete(len)) => len,
        _ => return Parsed::Doubt(Doubt::Response),
    };
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Parsed::Doubt(Doubt::Response);
    };
    let bodiless = kind == RequestKind::Head || matches!(status, 100..=199 | 204 | 304);
    let fields = Fields::read(response.headers, minor);
    // Without a body there is nothing to disagree about; a HEAD's or 304's lengths are only claims.
    if fields.doubt.is_some() && !bodiless {
        return Parsed::Doubt(Doubt::Response);
    }
    let body = match fields.length {
        _ if bodiless => Body::EMPTY,
        _ if fields.chunked => Body::CHUNKED,
        Some(length) => Body::Length(length),
        None => Body::UntilClose,
    };
    if has_bare_lf(&bytes[..len]) {
        return Parsed::Doubt(Doubt::Response);
    }
    Parsed::Head(ResponseHead { len, status, body, close: fields.closes(minor) || body == Body::UntilClose })
}

/// What `bytes` are that the parser refuses: what [`HeadScan`] says of them, which is the same however they arrive.
fn no_head<T>(bytes: &[u8]) -> Parsed<T> {
    match HeadScan::default().advance(bytes) {
        Scanned::Doubt(doubt) => Parsed::Doubt(doubt),
        Scanned::Partial if bytes.len() < MAX_HEAD => Parsed::Partial,
        Scanned::Partial => Parsed::Doubt(Doubt::TooLarge),
        // A target that is not UTF-8.
        Scanned::Complete => Parsed::Doubt(Doubt::Grammar),
    }
}

/// `tchar` of RFC 9110 §5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn has_bare_lf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

// === impl Fields ===

impl Fields {
    fn read(headers: &[Header<'_>], minor: u8) -> Self {
        let mut fields = Self::default();
        for header in headers {
            // By length first: nearly every header is none of these.
            match header.name.len() {
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let length = parse_length(header.value);
                    if length.is_none() || fields.length.is_some() {
                        fields.doubt = Some(Doubt::Length);
                    }
                    fields.length = length;
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if fields.chunked || minor == 0 || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        fields.doubt = Some(Doubt::Coding);
                    }
                    fields.chunked = true;
                }
                10 if header.name.eq_ignore_ascii_case("connection") => fields.connection(header.value),
                7 if header.name.eq_ignore_ascii_case("upgrade") => {
                    let h2c = header.value.trim_ascii().eq_ignore_ascii_case(b"h2c");
                    // Of several the server takes one, and only its answer says which.
                    let only = fields.protocol.is_none();
                    fields.protocol = Some(if h2c && only { Upgrade::H2c } else { Upgrade::Other });
                }
                _ => {}
            }
        }
        if fields.chunked && fields.length.is_some() {
            fields.doubt.get_or_insert(Doubt::Length);
        }
        fields
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }

    /// RFC 9112 §9.3.
    fn closes(&self, minor: u8) -> bool {
        self.close || (minor == 0 && !self.keep_alive)
    }
}

// === impl RequestView ===

impl RequestView<'_> {
    /// The values of each occurrence of a header, without the blanks around them.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let named = self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    }
}

impl matcher::Request for RequestView<'_> {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn path(&self) -> &[u8] {
        path_of(self.target).as_bytes()
    }

    fn headers(&self, seen: &mut matcher::Seen<'_>) {
        self.headers.iter().for_each(|header| seen.header(header.name, header.value.trim_ascii()));
    }
}

/// The path of a request target, in origin form or absolute form (RFC 9112 §3.2), without its query.
fn path_of(target: &str) -> &str {
    let from_path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find(['/', '?', '#']).map_or("/", |at| &rest[at..]),
        _ => target,
    };
    match from_path.split(['?', '#']).next() {
        Some("") | None => "/",
        Some(path) => path,
    }
}

/// A `Content-Length`: digits only; a list of equal values is refused as well, since others may read it otherwise.
fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
