//! Requests that can be read in one way only, whatever they look like.

use super::{HIDDEN, MARK, Text, both_sides};

/// Lines before the blank one and the body; `{n}` is the length of a body that is [`HIDDEN`], `{x}` the same in
/// hexadecimal.
const BODIES: &[(&str, &str)] = &[
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("POST / HTTP/1.1\r\nContent-Length:{n}\r\n{mark}\r\nHost: app.test", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: \t {n} \t", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\ncONTENT-lENGTH: 000{n}", "{hidden}"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("HEAD / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("DELETE / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("TRACE / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("OPTIONS * HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("\r\n\r\nPOST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("POST http://other.test/?x-user:adam HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\nHost: other.test\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("POST / HTTP/1.1\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("POST / HTTP/1.0\r\n{mark}\r\nContent-Length: {n}", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nTransfer_Encoding: chunked", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nX-Transfer-Encoding: chunked", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nContent-Encoding: chunked", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nTE: chunked", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nConnection: Content-Length", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nContent-Length2: 0", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nUpgrade: h2c", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nExpect: 100-continue", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nExpect: 100-CONTINUE", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nExpect: y 100-continue", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nExpect: 100-continue, x", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: {n}\r\nExpect:", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nTransfer-Encoding: chunked", "{x}\r\n{hidden}\r\n0\r\n\r\n"),
    ("GET / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nTransfer-Encoding: chunked", "{x}\r\n{hidden}\r\n0\r\n\r\n"),
    ("HEAD / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\ntransfer-encoding:\t CHUNKED ", "000{x}\r\n{hidden}\r\n0\r\n\r\n"),
    (
        "POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nTransfer-Encoding: chunked",
        "{x};x-user: adam;a=\"GET / HTTP/1.1\"\r\n{hidden}\r\n0;0\r\nX: a\r\nx-user: adam\r\nTransfer-Encoding: x\r\n\r\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nTransfer-Encoding: chunked\r\nConnection: Transfer-Encoding",
        "1\r\n0\r\n{x}\r\n{hidden}\r\n0\r\n\r\n",
    ),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: 13", "0\r\n\r\nGET / HT"),
    // One that never comes in full.
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nContent-Length: 999999999999999999", "{hidden}"),
    ("POST / HTTP/1.1\r\nHost: app.test\r\n{mark}\r\nTransfer-Encoding: chunked", "fffffffffffffff\r\n{hidden}"),
];

/// Heads behind whose answer the connection ends.
const LAST: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nx-user: eva",
    "GET / HTTP/1.1\r\nHost: app.test\r\nconnection: keep-alive, CLOSE\r\nx-user: eva",
    "POST / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nContent-Length: 0\r\nx-user: eva",
    "GET / HTTP/1.0\r\nx-user: eva",
    "GET / HTTP/1.0\r\nConnection: x\r\nx-user: eva",
];

/// Each of [`BODIES`], for both sides.
pub(super) fn texts() -> Vec<Text> {
    let text = |(head, body): &(&str, &str)| {
        let text = format!("{head}\r\n\r\n{body}").replace("{hidden}", HIDDEN);
        text.replace("{n}", &HIDDEN.len().to_string()).replace("{x}", &format!("{:x}", HIDDEN.len()))
    };
    let texts: Vec<_> = BODIES.iter().map(text).collect();
    assert!(texts.iter().all(|text| text.contains(MARK)), "each is for a side");
    both_sides(texts.iter().map(String::as_str))
}

/// Each of [`LAST`], with a request behind it that nobody answers: not the app, and not the laptop in its place.
pub(super) fn behind_the_end() -> Vec<Text> {
    let behind = |head: &&str| Text::new(&format!("{head}\r\n\r\n{HIDDEN}"), false).wire("closing");
    let alone = |head: &&str| Text::new(&format!("{}\r\n\r\n", head.replace("eva", "adam")), true);
    LAST.iter().map(behind).chain(LAST.iter().map(alone)).collect()
}
