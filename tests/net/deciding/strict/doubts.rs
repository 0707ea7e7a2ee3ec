//! Published ways of making two readers disagree. The agent does not choose between them.

use super::{HIDDEN, MARK, Text};

/// Header lines that say how long a body is, more or less, and why they are doubted. `{n}` is a length.
const LENGTHS: &[(&str, &str)] = &[
    // CL.TE and TE.CL (RFC 9112, 6.3).
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked", "length"),
    ("Transfer-Encoding: chunked\r\nContent-Length: {n}", "length"),
    ("Content-Length: {n}\r\nTransfer-Encoding:\tchunked", "length"),
    ("Content-Length: {n}\r\ntRANSFER-eNCODING:chunked", "length"),
    // TE.TE: one of two readers does not know what it reads.
    ("Content-Length: {n}\r\nTransfer-Encoding: xchunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunkedx", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked, identity", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: identity, chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked, chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: identity", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: gzip, chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: \"chunked\"", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: 'chunked'", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked;q=1", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: ,chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunk", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked\u{a0}", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding:", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding: x\r\ntransfer-encoding: chunked", "coding"),
    ("Content-Length: {n}\r\nTransfer-Encoding : chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding\t: chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding:\u{b}chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: \u{c}chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked\u{b}", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: \0chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked\u{7f}", "grammar"),
    ("Content-Length: {n}\r\nTransfer\0-Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding:\r\n chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chun\r\n ked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: x,\r\n\tchunked", "grammar"),
    ("Content-Length: {n}\r\nX: a\r\n Transfer-Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\nX: a\nTransfer-Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\nX: a\rTransfer-Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\nX:\nTransfer-Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked\r", "grammar"),
    ("Content-Length: {n}\r\nTransfer-Encoding\r\n: chunked", "grammar"),
    ("Content-Length: {n}\r\n\u{a0}Transfer-Encoding: chunked", "grammar"),
    ("Content-Length: {n}\r\n\u{ef}\u{bb}\u{bf}Transfer-Encoding: chunked", "grammar"),
    // CL.CL.
    ("Content-Length: {n}\r\nContent-Length: {n}", "length"),
    ("Content-Length: {n}\r\nContent-Length: 0", "length"),
    ("Content-Length: 0\r\ncontent-length: {n}", "length"),
    ("Content-Length: {n}, {n}", "length"),
    ("Content-Length: 0, {n}", "length"),
    ("Content-Length: {n},", "length"),
    // Numbers that some read, and read differently.
    ("Content-Length: +{n}", "length"),
    ("Content-Length: -{n}", "length"),
    ("Content-Length: 0x{n}", "length"),
    ("Content-Length: {n}.0", "length"),
    ("Content-Length: {n}e0", "length"),
    ("Content-Length: {n};", "length"),
    ("Content-Length: {n} {n}", "length"),
    ("Content-Length: {n}\tx", "length"),
    ("Content-Length: \"{n}\"", "length"),
    ("Content-Length: 1_0", "length"),
    ("Content-Length: \u{b2}", "length"),
    ("Content-Length:", "length"),
    ("Content-Length: \t ", "length"),
    ("Content-Length: 9223372036854775808", "length"),
    ("Content-Length: 18446744073709551616", "length"),
    ("Content-Length: 18446744073709551621", "length"),
    ("Content-Length: 99999999999999999999999999999999999999", "length"),
    ("Content-Length: 000000000000000000000{n}", "length"),
    ("Content-Length : {n}", "grammar"),
    ("Content-Length\t: {n}", "grammar"),
    ("Content-Length: {n}\u{b}", "grammar"),
    ("Content-Length:\r\n {n}", "grammar"),
    ("Content-Length: 0\r\n {n}", "grammar"),
    ("Content Length: {n}", "grammar"),
];

/// Whole heads, without the blank line.
const HEADS: &[(&str, &str)] = &[
    ("GET / HTTP/1.1\nHost: app.test\n{mark}\n", "grammar"),
    ("GET / HTTP/1.1\nHost: app.test\r\n{mark}\r", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\n{mark}\r", "grammar"),
    ("GET / HTTP/1.1\rHost: app.test\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\rHost: app.test\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\n Host: app.test\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\n\tX: a\r\nHost: app.test\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\n {mark}\r\nHost: app.test", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n {mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX: \0\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX\0: a\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX : a\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\n: a\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\n[X]: a\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX\u{e4}: a\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nX: \u{1b}[2J\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nExpect : 100-continue\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\nExpect:\r\n 100-continue\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1 \r\nHost: app.test\r\n{mark}", "grammar"),
    ("GET / HTTP/1.1x\r\nHost: app.test\r\n{mark}", "grammar"),
    ("GET /\u{e4} HTTP/1.1\r\nHost: app.test\r\n{mark}", "grammar"),
    ("\nGET / HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("\r\r\nGET / HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    (" GET / HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("get / HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("G\0ET / HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET  / HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET /  HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET\t/\tHTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET /a b HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET /\0 HTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET / HTTP/1.2\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET / HTTP/2.0\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET / HTTP/01.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET / HTTP/1,1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET / http/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET / XTTP/1.1\r\nHost: app.test\r\n{mark}", "not_http"),
    ("GET /\r\nHost: app.test\r\n{mark}", "not_http"),
    ("CONNECT app.test:80 HTTP/1.1\r\nHost: app.test:80\r\n{mark}", "connect"),
    ("POST / HTTP/1.0\r\nHost: app.test\r\n{mark}\r\nTransfer-Encoding: chunked", "coding"),
    (
        "POST / HTTP/1.0\r\nConnection: keep-alive\r\n{mark}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        "coding",
    ),
];

/// Bodies that say `Transfer-Encoding: chunked` and are not, or not to everybody.
const CHUNKS: &[&str] = &[
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffb\r\nhello\r\n0\r\n\r\n",
    "0000000000000000005\r\nhello\r\n0\r\n\r\n",
    "5;a\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "5\rhello\r\n0\r\n\r\n",
    "5\r\rhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5 ;a\r\nhello\r\n0\r\n\r\n",
    "5,\r\nhello\r\n0\r\n\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    ";a\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "5\r\nhelloo\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\r0\r\n\r\n",
    "0\r\n\r\r\n",
    "0\r\n\n",
    "0\r\nX: a\n\r\n",
    "0\r\n folded\r\n\r\n",
    "0\r\n: a\r\n\r\n",
    "0\n\r\n",
];

/// Each of [`LENGTHS`], with a body in which one reading or another finds a second request.
pub(super) fn of_lengths() -> Vec<Text> {
    let ended_by_chunks = format!("0\r\n\r\n{HIDDEN}");
    let size = format!("{:x}\r\n", HIDDEN.len());
    let ended_by_length = format!("{size}{HIDDEN}\r\n0\r\n\r\n");
    let bodies = [(&ended_by_chunks, ended_by_chunks.len()), (&ended_by_length, size.len()), (&ended_by_chunks, 0)];
    let mut texts = Vec::new();
    for (lines, why) in LENGTHS {
        for (number, (body, length)) in bodies.into_iter().enumerate() {
            let lines = lines.replace("{n}", &length.to_string());
            let text = format!("POST / HTTP/1.1\r\nHost: app.test\r\n{lines}\r\n{MARK}\r\n\r\n{body}");
            // The last body is for the side whose reading would take the request itself.
            texts.push(Text::new(&text, number == 2).wire(why));
        }
    }
    texts
}

/// Each of [`HEADS`], for both sides, with a request behind it.
pub(super) fn of_heads() -> Vec<Text> {
    let mut texts = Vec::new();
    for (head, why) in HEADS {
        let text = format!("{head}\r\n\r\n{HIDDEN}");
        texts.extend([false, true].map(|fits| Text::new(&text, fits).wire(why)));
    }
    texts
}

/// Each of [`CHUNKS`], for both sides, with a request behind it. The head is beyond doubt and decides: what follows it
/// goes the same way.
pub(super) fn of_chunks() -> Vec<Text> {
    let mut texts = Vec::new();
    for body in CHUNKS {
        let text =
            format!("POST / HTTP/1.1\r\nHost: app.test\r\n{MARK}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{HIDDEN}");
        texts.push(Text::new(&text, false).wire("chunk"));
        texts.push(Text { wire: Some("chunk"), ..Text::new(&text, true) });
    }
    texts
}
