//! Every way in which HTTP/1 says where a message ends: the next request is found where it begins, on either side, and
//! what was sent is what arrives.

use anyhow::{Context as _, Result, ensure};
use sluice_tests::peers::{
    ANSWERED_BY,
    http1::{Answer, Http1App, Http1Caller, Then},
    raw::{RawApp, Script},
};

use super::stage::{LAPTOP, POD, PORT, SECOND_PORT, Stage, on, on_stage, side};

/// Chunks with extensions, and trailers.
const CHUNKS: &str =
    "6;a=b;c=\"d;e\"\r\nhello \r\n05\r\nworld\r\n0;end\r\nX-Sum: 11\r\nX-Empty:\r\nx-sum: again\r\n\r\n";

/// Method, target, first lines of the head behind the request line, body: what a connection survives.
const LASTING: &[(&str, &str, &str, &str)] = &[
    ("POST", "/chunked", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", CHUNKS),
    ("HEAD", "/length", "", ""),
    ("PUT", "/length", "transfer-encoding:Chunked\r\n", "0\r\n\r\n"),
    ("HEAD", "/chunked", "", ""),
    ("GET", "/chunked", "TE: trailers\r\n", ""),
    ("GET", "/204", "", ""),
    ("DELETE", "/204", "Content-Length: 0\r\n", ""),
    ("GET", "/304", "If-None-Match: \"a\"\r\n", ""),
    ("HEAD", "/304", "", ""),
    ("POST", "/204", "content-length:  5 \r\n", "0\r\n\r\n"),
    ("GET", "/interim", "", ""),
    ("GET", "/length", "Content-Length: 3\r\n", "GET"),
    ("OPTIONS", "/empty", "", ""),
    ("POST", "/404", "Transfer-Encoding: chunked\r\n", CHUNKS),
    ("HEAD", "/404", "Connection: keep-alive\r\n", ""),
];

/// The same, but the connection ends with the answer: by the request, by the answer, or by its framing.
const LAST: &[(&str, &str, &str, &str)] = &[
    ("GET", "/length HTTP/1.1", "Connection: close\r\n", ""),
    ("GET", "/204 HTTP/1.1", "Connection: x, CLOSE\r\n", ""),
    ("HEAD", "/length HTTP/1.1", "connection:close\r\n", ""),
    ("POST", "/chunked HTTP/1.1", "Connection: close\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
    ("GET", "/length HTTP/1.0", "", ""),
    ("POST", "/length HTTP/1.0", "Content-Length: 2\r\n", "ok"),
    ("GET", "/closing HTTP/1.1", "", ""),
    ("HEAD", "/closing HTTP/1.1", "", ""),
    ("GET", "/to-the-end HTTP/1.1", "", ""),
    ("GET", "/to-the-end HTTP/1.0", "", ""),
    ("GET", "/old-to-the-end HTTP/1.1", "", ""),
    ("GET", "/old HTTP/1.1", "", ""),
];

/// The answer of the app with this name, byte for byte.
fn answer(name: &str, method: &str, target: &str) -> Answer {
    let by = format!("{ANSWERED_BY}: {name}");
    let (head, body, then) = match target {
        "/chunked" => (format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{by}\r\n"), CHUNKS, Then::KeepAlive),
        // Lengths that are claims only, for there is no body.
        "/204" => (format!("HTTP/1.1 204 No Content\r\n{by}\r\n"), "", Then::KeepAlive),
        "/304" => (format!("HTTP/1.1 304 Not Modified\r\n{by}\r\nContent-Length: 1234\r\n"), "", Then::KeepAlive),
        "/404" => (format!("HTTP/1.1 404 \r\n{by}\r\nCONTENT-LENGTH:\t3\r\n"), "no\n", Then::KeepAlive),
        "/empty" => (format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{by}\r\n"), "", Then::KeepAlive),
        "/interim" => {
            let hints =
                format!("HTTP/1.1 103 Early Hints\r\n{by}\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Wait\r\n{by}\r\n\r\n");
            (format!("{hints}HTTP/1.1 200 OK\r\n{by}\r\nContent-Length: 2\r\n"), "ok", Then::KeepAlive)
        }
        "/closing" => {
            (format!("HTTP/1.1 200 OK\r\nconnection: Close\r\n{by}\r\nContent-Length: 2\r\n"), "ok", Then::Close)
        }
        "/to-the-end" => (format!("HTTP/1.1 200 OK\r\n{by}\r\n"), "HTTP/1.1 200 OK\r\n\r\n to the end", Then::Close),
        "/old-to-the-end" => (format!("HTTP/1.0 200 OK\r\n{by}\r\n"), "to the end", Then::Close),
        "/old" => (format!("HTTP/1.0 200 OK\r\n{by}\r\nContent-Length: 2\r\n"), "ok", Then::Close),
        "/old-lasting" => (
            format!("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n{by}\r\nContent-Length: 2\r\n"),
            "ok",
            Then::KeepAlive,
        ),
        _ => (format!("HTTP/1.1 200 OK\r\n{by}\r\nContent-Length: 12\r\n"), "hello world\n", Then::KeepAlive),
    };
    let body = if method == "HEAD" { "" } else { body };
    Answer { raw: format!("{head}\r\n{body}").into_bytes(), then }
}

struct Apps {
    pod: Http1App,
    laptop: Http1App,
}

// === impl Apps ===

impl Apps {
    fn start(stage: &Stage) -> Result<Self> {
        let respond =
            |name: &str, request: &sluice_tests::peers::http1::Request| answer(name, &request.method, &request.target);
        let (pod, laptop) = (&stage.pod, &stage.laptop);
        Ok(Self {
            pod: Http1App::with(pod, on(PORT), POD, respond)?,
            laptop: Http1App::with(laptop, on(PORT), LAPTOP, respond)?,
        })
    }

    /// Sends one request and checks every byte that its side got and that came back.
    async fn exchange(&self, caller: &mut Http1Caller, ask: &Ask, half_close: bool) -> Result<()> {
        let (app, other) = if ask.taken { (&self.laptop, &self.pod) } else { (&self.pod, &self.laptop) };
        let before = (app.requests().len(), other.requests().len());
        caller.send(&ask.bytes).await?;
        if half_close {
            caller.half_close().await?;
        }
        let mut raw = Vec::new();
        let status = loop {
            let part = caller.response(ask.method).await?;
            raw.extend(part.raw);
            if part.status >= 200 {
                break part.status;
            }
        };
        let expected = answer(side(ask.taken).1, ask.method, ask.target).raw;
        ensure!(raw == expected, "{status}: the answer is {:?}", raw.escape_ascii().to_string());
        let seen = app.requests();
        ensure!(seen.len() == before.0 + 1 && other.requests().len() == before.1, "who got it?");
        let raw = &seen[before.0].raw;
        ensure!(*raw == ask.bytes, "it came as {:?}", raw.escape_ascii().to_string());
        Ok(())
    }
}

struct Ask {
    method: &'static str,
    target: &'static str,
    taken: bool,
    bytes: Vec<u8>,
}

// === impl Ask ===

impl Ask {
    /// `target` may end with a version.
    fn new(taken: bool, (method, target, fields, body): (&'static str, &'static str, &str, &str)) -> Self {
        let ((name, value), _) = side(taken);
        let (target, version) = target.split_once(' ').unwrap_or((target, "HTTP/1.1"));
        let head = format!("{method} {target} {version}\r\nHost: app.test\r\n{fields}{name}: {value}\r\n\r\n");
        Self { method, target, taken, bytes: [head, body.to_owned()].concat().into_bytes() }
    }

    fn what(&self) -> String {
        self.bytes.escape_ascii().to_string()
    }
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b06_lengths_chunks_trailers_and_answers_without_body() -> Result<()> {
    on_stage("b06_lasting", async |stage| {
        let apps = Apps::start(stage)?;
        let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
        // Both orders of the sides for each request, all over one connection.
        for taken in [false, true] {
            for &request in LASTING {
                for ask in [Ask::new(taken, request), Ask::new(!taken, request)] {
                    apps.exchange(&mut caller, &ask, false).await.with_context(|| ask.what())?;
                }
            }
        }
        ensure!(apps.pod.connections().len() == 1 && apps.laptop.connections().len() == 1);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b06_connections_end_where_they_should() -> Result<()> {
    on_stage("b06_last", async |stage| {
        let apps = Apps::start(stage)?;
        for &request in LAST {
            for (taken, half_close) in [(false, false), (true, false), (false, true), (true, true)] {
                let ask = Ask::new(taken, request);
                let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
                // One before it, for the other side: the end is told apart from an app that has given up waiting.
                let before = Ask::new(!taken, LASTING[0]);
                apps.exchange(&mut caller, &before, false).await.with_context(|| before.what())?;
                apps.exchange(&mut caller, &ask, half_close).await.with_context(|| ask.what())?;
                let more = caller.try_response("GET").await.with_context(|| ask.what())?;
                ensure!(more.is_none(), "{}: the connection goes on", ask.what());
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b06_http_1_0_with_and_without_keep_alive() -> Result<()> {
    on_stage("b06_old", async |stage| {
        let apps = Apps::start(stage)?;
        let lasting = ("GET", "/old-lasting HTTP/1.0", "Connection: keep-alive\r\n", "");
        let post = ("POST", "/old-lasting HTTP/1.0", "Connection: Keep-Alive\r\nContent-Length: 4\r\n", "GET ");
        for last_taken in [false, true] {
            let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
            for (taken, request) in [
                (false, lasting),
                (true, lasting),
                (true, post),
                (false, post),
                (false, lasting),
                (last_taken, lasting),
            ] {
                let ask = Ask::new(taken, request);
                apps.exchange(&mut caller, &ask, false).await.with_context(|| ask.what())?;
            }
            let last = Ask::new(last_taken, ("GET", "/old HTTP/1.0", "", ""));
            apps.exchange(&mut caller, &last, false).await.with_context(|| last.what())?;
            ensure!(caller.try_response("GET").await?.is_none(), "the connection goes on");
        }
        ensure!(apps.pod.connections().len() == 2);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b06_expect_100_continue_is_between_the_caller_and_its_side() -> Result<()> {
    /// It goes on only after the body has come: nobody else has said that it may.
    fn goes_on(name: &str) -> Script {
        let interim = format!("HTTP/1.1 100 Go ahead\r\n{ANSWERED_BY}: {name}\r\n\r\n");
        let answer = format!("HTTP/1.1 201 Created\r\n{ANSWERED_BY}: {name}\r\nContent-Length: 0\r\n\r\n");
        Script::new().read_until(b"\r\n\r\n").send(interim.as_bytes()).read(5).send(answer.as_bytes()).again()
    }
    fn refuses(name: &str) -> Script {
        let answer = format!("HTTP/1.1 417 No\r\n{ANSWERED_BY}: {name}\r\nContent-Length: 0\r\n\r\n");
        Script::new().read_until(b"\r\n\r\n").send(answer.as_bytes()).half_close()
    }
    on_stage("b06_expect", async |stage| {
        let apps = [(&stage.pod, POD), (&stage.laptop, LAPTOP)];
        let start = |(host, name), port, script: fn(&str) -> Script| RawApp::start(host, on(port), script(name));
        let [pod, laptop] = apps.map(|app| start(app, PORT, goes_on));
        let (pod, laptop) = (pod?, laptop?);
        let _refusing = apps.map(|app| start(app, SECOND_PORT, refuses));
        let ask = |taken| Ask::new(taken, ("PUT", "/upload", "Expect: 100-continue\r\nContent-Length: 5\r\n", ""));
        let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
        let turns = [false, true, true, false, false, true];
        for taken in turns {
            let (_, expected) = side(taken);
            caller.send(&ask(taken).bytes).await?;
            let interim = caller.response("PUT").await?;
            ensure!(interim.status == 100 && interim.answered_by() == Some(expected), "{interim:?}");
            caller.send(b"hello").await?;
            let answer = caller.response("PUT").await?;
            ensure!(answer.status == 201 && answer.answered_by() == Some(expected), "{answer:?}");
        }
        for (app, mine) in [(pod, false), (laptop, true)] {
            let request = [&ask(mine).bytes[..], b"hello"].concat();
            let seen = app.connections();
            ensure!(
                seen.len() == 1 && seen[0].bytes == request.repeat(3),
                "{:?}",
                seen[0].bytes.escape_ascii().to_string()
            );
        }

        for taken in [false, true] {
            let mut caller = Http1Caller::connect(&stage.caller, stage.second_app()).await?;
            caller.send(&ask(taken).bytes).await?;
            let answer = caller.response("PUT").await?;
            ensure!(answer.status == 417 && answer.answered_by() == Some(side(taken).1), "{answer:?}");
            ensure!(caller.try_response("PUT").await?.is_none(), "the connection goes on");
        }
        Ok(())
    })
    .await
}
