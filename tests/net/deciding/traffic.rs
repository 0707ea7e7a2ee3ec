//! Random HTTP/1 traffic of the odd kind that is valid all the same: nobody can tell the agent is there, byte by byte.
//!
//! What is not taken reaches the app exactly as it was sent while requests of another connection are taken, and those
//! reach the laptop as they were sent, too.

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    Host,
    peers::http1::{Answer, Http1App, Http1Caller, Request},
    random::Random,
};

use super::stage::{LAPTOP, POD, PORT, Stage, on, on_stage};

/// Connections whose requests are not taken, and such whose requests are.
const CALLERS: [(u64, bool); 5] = [(1, false), (2, false), (3, false), (4, true), (5, true)];

const REQUESTS: u64 = 200;

/// By which an app knows which of its answers is expected.
const NUMBER: &str = "x-NUMBER";

const METHODS: [&str; 10] = ["GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "PROPFIND", "M-SEARCH"];

const TARGETS: [&str; 10] = [
    "/",
    "/a/b?c=d&e",
    "/%41%fF/%2e%2e/.././/",
    "//host/a",
    "/?",
    "/a?b?c#d",
    "http://other.test/a?x-user=adam",
    "/{a}|b\"<>^`\\",
    "/\u{fc}ber/\u{20ac}",
    "/x-user:adam",
];

/// None of them changes how a message is framed. The rule's is among them, with values that it does not fit.
const FIELDS: [&str; 16] = [
    "Accept: */*",
    "accept:text/html , text/plain;q=0.5",
    "ACCEPT-language:\t de",
    "Cookie: a=1; b=\"2\"; c",
    "cookie: a=1",
    "X-Empty:",
    "x-empty: \t ",
    "X-Dup: 1",
    "X-DUP: 1",
    "x-user: eva",
    "X-User: Adam",
    "X-USER:",
    "!#$%&'*+-.^_`|~09aZ: token",
    "Forwarded: for=\"[2001:db8::1]:80\";by=_x, for=1",
    "Connection: keep-alive",
    "Via: 1.0 a, 1.1 b (c)",
];

const CODINGS: [&str; 3] =
    ["Transfer-Encoding: chunked", "transfer-encoding:CHUNKED", "TRANSFER-ENCODING: \tChunked  "];

const EXTENSIONS: [&str; 5] = ["", "", ";a", ";a=b;c=\"d ; e\"", "; x = y"];

/// A message's fields and body, behind its first line.
fn rest(random: &mut Random, extra: &str, body: bool) -> Vec<u8> {
    let mut fields: Vec<Vec<u8>> = (0..random.below(14)).map(|_| random.pick(&FIELDS).into()).collect();
    if random.once_in(4) {
        fields.push([b"X-Bytes: ", &obs_text(random, 40)[..]].concat());
    }
    if random.once_in(8) {
        let length = random.below(12_000);
        fields.push(format!("X-Long: {}", "long ".repeat(length / 5)).trim_end().into());
    }
    let at = random.below(fields.len() + 1);
    fields.insert(at, extra.into());
    let length = random.pick(&[0, 0, 1, 17, 1_000, 20_000]);
    let content = random.bytes(length);
    let body = match body.then(|| random.below(3)) {
        None | Some(0) => Vec::new(),
        Some(1) => {
            let at = random.below(fields.len() + 1);
            let name = random.pick(&["Content-Length: ", "content-length:", "CONTENT-LENGTH:\t "]);
            fields.insert(at, format!("{name}{length}").into());
            content
        }
        Some(_) => {
            let at = random.below(fields.len() + 1);
            fields.insert(at, random.pick(&CODINGS).into());
            chunks(random, &content)
        }
    };
    let head = fields.into_iter().flat_map(|field| [&field[..], b"\r\n"].concat());
    head.chain(*b"\r\n").chain(body).collect()
}

fn chunks(random: &mut Random, mut content: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while !content.is_empty() {
        let size = 1 + random.below(content.len().min(9_000));
        let (chunk, behind) = content.split_at(size);
        let zeros = random.pick(&["", "", "0", "000"]);
        let size = if random.once_in(2) { format!("{size:x}") } else { format!("{size:X}") };
        body.extend(format!("{zeros}{size}{}\r\n", random.pick(&EXTENSIONS)).into_bytes());
        body.extend(chunk);
        body.extend(b"\r\n");
        content = behind;
    }
    body.extend(format!("{}{}\r\n", random.pick(&["0", "0", "00000"]), random.pick(&EXTENSIONS)).into_bytes());
    for _ in 0..random.pick(&[0, 0, 1, 3]) {
        body.extend(random.pick(&["X-Sum: 1", "x-sum:", "x-user: adam", "X-T: \t\u{e4} "]).bytes().chain(*b"\r\n"));
    }
    body.extend(b"\r\n");
    body
}

/// Bytes of which a header's value may consist, but which are no ASCII.
fn obs_text(random: &mut Random, most: usize) -> Vec<u8> {
    let length = 1 + random.below(most);
    random.bytes(length).into_iter().map(|byte| byte | 0x80).collect()
}

/// The request with this number: its method and its bytes.
fn request(caller: u64, number: u64, taken: bool) -> (&'static str, Vec<u8>) {
    let mut random = Random::new(caller << 32 | number);
    let method = random.pick(&METHODS);
    // An empty line before a request is to be ignored (RFC 9112, 2.2); it is passed on nevertheless.
    let before = if random.once_in(10) { "\r\n" } else { "" };
    let long = "/long".repeat(random.below(2_000));
    let target = if random.once_in(12) && !long.is_empty() { &long } else { random.pick(&TARGETS) };
    let mine = if taken { random.pick(&["x-user: adam\r\n", "X-User:adam\r\n", "X-USER: \tadam \t\r\n"]) } else { "" };
    let head = format!("{before}{method} {target} HTTP/1.1\r\n");
    let rest = rest(&mut random, &format!("{mine}{NUMBER}: {caller}-{number}"), true);
    (method, [head.into_bytes(), rest].concat())
}

/// What the app of this name answers to the request with this number.
fn answer(name: &str, method: &str, number: &str) -> Vec<u8> {
    let seed = name.bytes().chain(number.bytes()).fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
    let mut random = Random::new(seed);
    let mut bytes = Vec::new();
    while random.once_in(6) {
        bytes.extend(b"HTTP/1.1 103 Early Hints\r\n");
        bytes.extend(rest(&mut random, "Link: </a>", false));
    }
    let status = random.pick(&[200, 200, 200, 201, 204, 299, 304, 404, 500, 599]);
    let reason = random.pick(&["OK", "", "Not  \t quite", "\u{dc}bel"]);
    bytes.extend(format!("HTTP/1.1 {status} {reason}\r\n").into_bytes());
    let bodiless = method == "HEAD" || [204, 304].contains(&status);
    // Without a length an answer goes on until the connection ends.
    let extra = format!("{NUMBER}: {number}\r\nServer: {name}");
    if bodiless {
        bytes.extend(rest(&mut random, &extra, false));
    } else {
        let body = chunks(&mut random, name.repeat(1_000).as_bytes());
        let head = rest(&mut random, &format!("{extra}\r\n{}", CODINGS[0]), false);
        bytes.extend(head.into_iter().chain(body));
    }
    bytes
}

fn start(host: &Host, name: &str) -> Result<Http1App> {
    Http1App::with(host, on(PORT), name, |name, request: &Request| {
        let number = request.header(NUMBER).unwrap_or_default();
        Answer::new(answer(name, &request.method, number))
    })
}

/// Sends the requests of a caller, in pieces, and checks each answer.
async fn call(stage: &Stage, caller: u64, taken: bool) -> Result<()> {
    let name = if taken { LAPTOP } else { POD };
    let mut random = Random::new(!caller);
    let mut connection = Http1Caller::connect(&stage.caller, stage.app()).await?;
    for number in 0..REQUESTS {
        let (method, bytes) = request(caller, number, taken);
        let what = || format!("request {caller}-{number}: {}", bytes[..bytes.len().min(500)].escape_ascii());
        let mut unsent = &bytes[..];
        while !unsent.is_empty() {
            let size = if random.once_in(3) { 1 + random.below(unsent.len()) } else { unsent.len() };
            connection.send(&unsent[..size]).await?;
            tokio::task::yield_now().await;
            unsent = &unsent[size..];
        }
        let expected = answer(name, method, &format!("{caller}-{number}"));
        let mut got = Vec::new();
        while got.len() < expected.len() {
            let part = connection.response(method).await.with_context(what)?;
            got.extend(part.raw);
        }
        ensure!(got == expected, "{}\nanswered with {:?}", what(), got.escape_ascii().to_string());
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_nobody_can_tell_the_agent_is_there() -> Result<()> {
    on_stage("b12", async |stage| {
        let apps = [(start(&stage.pod, POD)?, false), (start(&stage.laptop, LAPTOP)?, true)];
        try_join_all(CALLERS.map(|(caller, taken)| call(stage, caller, taken))).await?;
        for (app, mine) in &apps {
            let requests = app.requests();
            let callers = CALLERS.iter().filter(|(_, taken)| taken == mine);
            let mut count = 0;
            for &(caller, taken) in callers {
                let sent: Vec<u8> = (0..REQUESTS).flat_map(|number| request(caller, number, taken).1).collect();
                let marks = format!("{caller}-");
                let of_caller = |request: &&Request| request.header(NUMBER).is_some_and(|n| n.starts_with(&marks));
                let got: Vec<u8> = requests.iter().filter(of_caller).flat_map(|r| r.raw.iter().copied()).collect();
                let differ = sent.iter().zip(&got).position(|(a, b)| a != b);
                ensure!(got == sent, "caller {caller}: {} bytes of {}, first other {differ:?}", got.len(), sent.len());
                count += REQUESTS;
            }
            ensure!(u64::try_from(requests.len())? == count, "{} requests instead of {count}", requests.len());
        }
        // Each of them was understood: none was passed on for being beyond the agent.
        ensure!(stage.agent.counter("wires").await? == 0, "{:?}", stage.agent.status().await?.counters);
        let expected =
            |mine| i64::try_from(CALLERS.iter().filter(|(_, taken)| *taken == mine).count()).unwrap_or(0) * 200;
        let (passed, diverted) = (stage.agent.counter("passed").await?, stage.agent.counter("diverted").await?);
        ensure!(
            (passed, diverted) == (expected(false), expected(true)),
            "{passed} {diverted}: {}",
            stage
                .agent
                .metrics()
                .await?
                .lines()
                .filter(|l| l.contains("not_inserted")
                    || l.contains("flows_")
                    || l.contains("late")
                    || l.contains("_count"))
                .filter(|l| !l.starts_with('#'))
                .collect::<Vec<_>>()
                .join("\n")
        );
        Ok(())
    })
    .await
}
