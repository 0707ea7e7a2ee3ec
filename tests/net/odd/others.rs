//! b10: bytes that are no HTTP, on a port with a rule for requests. They reach the app at once and untouched, and so do
//! its own; a server that speaks first is heard first.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    peers::raw::{End, RawApp, RawCaller, Script},
    stage::MATCHING,
};

use crate::{Ruled, SOON, any};

const PORT: u16 = 8083;

/// What a request would look like that fits the rule.
fn hidden() -> Vec<u8> {
    let (name, value) = MATCHING;
    format!("GET /hidden HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\n\r\n").into_bytes()
}

/// What callers say first in other protocols. A request that fits the rule follows each of them.
fn openings() -> Vec<(&'static str, Vec<u8>)> {
    let hello = [&b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"[..], &[0x5a; 194]].concat();
    let noise: Vec<u8> = (0..70_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23).to_le_bytes()[0]).collect();
    let all: [(&str, &[u8]); 24] = [
        ("CONNECT", b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n"),
        ("CONNECT that fits", b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test\r\nx-user: adam\r\n\r\n"),
        ("HTTP/0.9", b"GET /\r\n"),
        ("HTTP/0.9, bare line", b"GET /index.html\n"),
        ("HTTP/2 in words", b"GET / HTTP/2\r\nx-user: adam\r\n\r\n"),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nx-user: adam\r\n\r\n"),
        ("RTSP", b"DESCRIBE rtsp://cam.test/1 RTSP/1.0\r\nCSeq: 2\r\n\r\n"),
        ("SIP", b"INVITE sip:bob@host.test SIP/2.0\r\nVia: x\r\n\r\n"),
        ("TLS", &hello),
        ("PROXY, text", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"),
        ("PROXY, binary", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x10\0\x20\0"),
        ("PostgreSQL", b"\0\0\0\x08\x04\xd2\x16\x2f"),
        ("Redis", b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"),
        ("Redis, by hand", b"SET key value\r\n"),
        ("Memcached", b"get key\r\n"),
        ("SMTP", b"EHLO client.test\r\n"),
        ("POP3", b"USER adam\r\n"),
        ("FTP", b"USER adam\r\nPASS x\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("MQTT", b"\x10\x12\0\x04MQTT\x04\x02\0\x3c\0\x06client"),
        ("Kafka", b"\0\0\0\x17\0\x12\0\0\0\0\0\x01\0\x0dsarama-client"),
        ("one byte", b"\0"),
        ("a line's end", b"\n"),
        ("noise", &noise),
    ];
    all.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b10_what_is_no_http_is_passed_on_untouched() -> Result<()> {
    let ruled = Ruled::set("b10_others", &[PORT]).await?;
    let pod = RawApp::start(&ruled.stage.pod, any(PORT), Script::echo())?;
    let laptop = RawApp::start(&ruled.stage.laptop, any(PORT), Script::echo())?;
    for (number, (name, opening)) in openings().into_iter().enumerate() {
        let begin = Instant::now();
        // Only when the opening has come back does the caller go on: nothing was waited for.
        let script = Script::new().send(&opening).read(opening.len()).send(&hidden()).read(hidden().len()).half_close();
        let caller = RawCaller::connect(&ruled.stage.caller, ruled.stage.pod.at(PORT), script).await?;
        let seen = caller.ended(SOON).await.with_context(|| name.to_owned())?;
        let expected = [opening, hidden()].concat();
        ensure!(seen.bytes == expected && seen.end == Some(End::Closed), "{name}: the caller has got {seen}");
        let got = pod.ended(number, SOON).await.with_context(|| name.to_owned())?;
        ensure!(got.bytes == expected && got.end == Some(End::Closed), "{name}: the app has got {got}");
        ensure!(laptop.connections().is_empty(), "{name}: the laptop has got something");
        ensure!(begin.elapsed() < SOON / 5, "{name}: it took {:?}", begin.elapsed());
    }
    let wires = i64::try_from(openings().len())?;
    ensure!(ruled.agent.counter("wires").await? == wires, "{:?}", ruled.agent.status().await?.counters);
    ruled.works().await?;
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b10_a_server_that_greets_is_heard_at_once() -> Result<()> {
    /// SMTP, MySQL, prompts, and one that begins like the settings of HTTP/2 for as long as it can.
    const GREETINGS: [&[u8]; 6] = [
        b"220 mail.test ESMTP ready\r\n",
        b"J\0\0\0\n8.0.36\0\x08\0\0\0abcdefgh\0",
        b"> ",
        b"#",
        b"OK\n",
        b"\0\0\x12\x05",
    ];
    const REPLY: &[u8] = b"250-mail.test\r\n250 8BITMIME\r\n";
    let ports: Vec<u16> = (8100..).take(GREETINGS.len()).collect();
    let ruled = Ruled::set("b10_greeting", &ports).await?;
    for (&port, greeting) in ports.iter().zip(GREETINGS) {
        let script = Script::new().send(greeting).read_until(b"\r\n").send(REPLY).read_to_end().send(b"221 bye\r\n");
        let pod = RawApp::start(&ruled.stage.pod, any(port), script)?;
        let laptop = RawApp::start(&ruled.stage.laptop, any(port), Script::echo())?;
        for number in 0..5 {
            let begin = Instant::now();
            let talk = Script::new().read(greeting.len()).send(b"EHLO client.test\r\n").read(REPLY.len());
            let caller = talk.send(&hidden()).half_close();
            let caller = RawCaller::connect(&ruled.stage.caller, ruled.stage.pod.at(port), caller).await?;
            let seen = caller.ended(SOON).await.with_context(|| greeting.escape_ascii().to_string())?;
            ensure!(seen.bytes == [greeting, REPLY, b"221 bye\r\n"].concat(), "the caller has got {seen}");
            let got = pod.ended(number, SOON).await?;
            ensure!(got.bytes == [b"EHLO client.test\r\n", &hidden()[..]].concat(), "the app has got {got}");
            // A detector that waits for the caller's first bytes takes seconds.
            ensure!(begin.elapsed() < SOON / 5, "it took {:?}", begin.elapsed());
        }
        ensure!(laptop.connections().is_empty(), "the laptop has got something");
    }
    ruled.works().await?;
    ruled.finish()
}
