//! HTTP/2 in clear text: with prior knowledge, and as an upgrade of HTTP/1 (RFC 7540, 3.2). Each request is decided on
//! its own, and nobody is spoken to in another version than the caller's.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http::HeaderMap;
use sluice_tests::{
    Host, Process, eventually,
    peers::{
        ANSWERED_BY,
        http1::{Http1App, Http1Caller, request},
        http2::{Http2App, Http2Caller, read_all},
        pattern,
        raw::{RawApp, Script},
    },
};

use super::stage::{LAPTOP, MINE, OTHER, POD, PORT, SOON, Stage, on, on_stage, side};

/// Where `nghttpd` listens when `nghttpx` is before it.
const BEHIND: u16 = 9000;

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Fields of an HTTP/1 request that asks to go on in HTTP/2.
const UPGRADE: [(&str, &str); 3] =
    [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")];

/// `nghttpd`: HTTP/2 with prior knowledge only. Its file `/who` has the host's name, and a POST is sent back.
async fn nghttpd(host: &Host, port: u16) -> Result<Process> {
    let files = host.folder().join(format!("{}-files", host.name()));
    fs::create_dir(&files)?;
    fs::write(files.join("who"), format!("{}\n", host.name()))?;
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "--echo-upload", "--htdocs"]).arg(&files).arg(port.to_string());
    listening(host, host.spawn(command)?, port).await
}

/// `nghttpx` before an `nghttpd`: a server that knows `Upgrade: h2c`.
async fn nghttpx(host: &Host, port: u16) -> Result<[Process; 2]> {
    let behind = nghttpd(host, BEHIND).await?;
    let mut command = Command::new("nghttpx");
    command.args(["--conf=/dev/null", "--errorlog-file=/dev/stderr", "--no-server-rewrite"]);
    command.args([format!("-f*,{port};no-tls"), format!("-b127.0.0.1,{BEHIND};;proto=h2")]);
    Ok([listening(host, host.spawn(command)?, port).await?, behind])
}

async fn listening(host: &Host, process: Process, port: u16) -> Result<Process> {
    eventually(Duration::from_secs(10), "it listens", || async {
        ensure!(process.is_running(), "it has ended: {}", process.output());
        // Not by connecting: the agent would be asked.
        let table = host.tool("ss", &["-tlnH", &format!("sport = :{port}")])?;
        ensure!(table.contains("LISTEN"), "nobody does");
        Ok(())
    })
    .await?;
    Ok(process)
}

/// What one `curl` gets: for each request the content, the version it was answered in, and the connections it took.
async fn curl(stage: &Stage, version: &str, asks: &[(bool, &[&str])]) -> Result<Vec<(String, String, String)>> {
    let url = format!("http://{}", stage.app());
    let mut command = Command::new("curl");
    for (number, (taken, arguments)) in asks.iter().enumerate() {
        let ((name, value), _) = side(*taken);
        if number > 0 {
            command.arg("--next");
        }
        command.args([
            version,
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--header",
            &format!("{name}: {value}"),
        ]);
        command.args(["--write-out", "|%{http_version}|%{num_connects}|", &format!("{url}/who")]).args(*arguments);
    }
    let process = stage.caller.spawn(command)?;
    let status = process.exited(Duration::from_secs(30)).await?;
    let output = process.output();
    ensure!(status.success(), "curl: {status}: {output}");
    let mut words = output.split('|').map(|word| word.trim().to_owned());
    let mut answers = Vec::new();
    while let (Some(content), Some(version), Some(connects)) = (words.next(), words.next(), words.next()) {
        answers.push((content, version, connects));
    }
    ensure!(answers.len() == asks.len(), "{output}");
    Ok(answers)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_prior_knowledge_decides_request_by_request() -> Result<()> {
    on_stage("b08_prior", async |stage| {
        // Both speak HTTP/2 and nothing else.
        let app = Http2App::start(&stage.pod, on(PORT), POD)?;
        let local = Http2App::start(&stage.laptop, on(PORT), LAPTOP)?;
        let caller = Http2Caller::connect(&stage.caller, stage.app()).await?;
        try_join_all((0..60).map(async |number: u64| {
            let (mark, expected) = side(number.is_multiple_of(2));
            let body = Bytes::from(pattern::body(number, (number % 7) * 20_000));
            let path = format!("/{number}?a=b");
            let answer = caller.call("POST", &path, &[mark, ("x-empty", ""), ("te", "trailers")], body.clone()).await?;
            ensure!(answer.status == 200 && answer.answered_by() == Some(expected), "{path}: {:?}", answer.headers);
            ensure!(answer.content_seen() == body, "{path}: other content");
            // Neither has been added to, nor taken from.
            let by = |headers: &HeaderMap| headers.len() == 1 && headers[ANSWERED_BY] == expected;
            ensure!(by(&answer.headers), "{path}: {:?}", answer.headers);
            ensure!(answer.trailers.as_ref().is_some_and(by), "{path}: {:?}", answer.trailers);
            Ok(())
        }))
        .await?;
        for (app, mark) in [(&app, OTHER), (&local, MINE)] {
            let requests = app.requests();
            ensure!(app.connections().len() == 1 && requests.len() == 30, "{:?}", app.connections());
            for request in requests {
                let headers = &request.headers;
                ensure!(
                    headers.len() == 3 && headers["x-empty"].is_empty() && headers["te"] == "trailers",
                    "{headers:?}"
                );
                ensure!(headers[mark.0] == mark.1 && request.trailers.is_none(), "{headers:?}");
                ensure!(request.uri.to_string().starts_with("http://app.test/") && request.uri.query() == Some("a=b"));
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_a_local_server_gets_the_callers_version() -> Result<()> {
    on_stage("b08_version", async |stage| {
        let records = [
            RawApp::start(&stage.pod, on(PORT), Script::new())?,
            RawApp::start(&stage.laptop, on(PORT), Script::new())?,
        ];
        // Neither ever answers; what they were sent is the point.
        for mark in [OTHER, MINE] {
            let caller = Http2Caller::connect(&stage.caller, stage.app()).await?;
            let request = http::Request::get("http://app.test/").header(mark.0, mark.1).body(())?;
            let _waiting = caller.open(request, true).await?;
            let record = &records[usize::from(mark == MINE)];
            eventually(SOON, "the preface is there", || async {
                record.connections().last().is_some_and(|seen| seen.bytes.len() > PREFACE.len())
            })
            .await?;
            let seen = &record.connections()[0].bytes;
            ensure!(seen.starts_with(PREFACE), "{mark:?}: {}", seen.escape_ascii());
        }
        let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
        let bytes = request("GET", "/", &[MINE], b"");
        caller.send(&bytes).await?;
        eventually(SOON, "the request is there", || async { records[1].connections().len() == 2 }).await?;
        eventually(SOON, "the request is complete", || async { records[1].connections()[1].bytes == bytes }).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_a_server_may_greet_before_its_caller() -> Result<()> {
    on_stage("b08_greeting", async |stage| {
        let _servers = [nghttpd(&stage.pod, PORT).await?, nghttpd(&stage.laptop, PORT).await?];
        let stream = stage.caller.connect(stage.app()).await?;
        // nghttpd sends its settings when it has accepted; here the agent has them before the caller says a word.
        eventually(SOON, "the app's greeting is with the agent", || async {
            let table = stage.pod.tool("ss", &["-tinH", &format!("sport = :{PORT}")])?;
            let mut lines = table.lines();
            let of_app = lines.find(|line| line.contains("127.0.0.1]:8080") || line.contains("127.0.0.1:8080"));
            let details = of_app.and(lines.next()).context("no connection to the app")?;
            ensure!(details.contains("bytes_acked:"), "{details}");
            Ok(())
        })
        .await?;
        ensure!(stream.try_read(&mut [0]).is_err(), "the greeting came before the version is known");
        stream.set_nodelay(true)?;
        let caller = Http2Caller::over(stream).await?;
        for mark in [OTHER, MINE, MINE, OTHER] {
            let expected = if mark == MINE { LAPTOP } else { POD };
            let answer = caller.get("/who", &[mark]).await?;
            ensure!(answer.body == format!("{expected}\n"), "{:?}", answer.body);
        }
        // And with a caller of another make. It uses a connection once: not all its versions can do more this way.
        for ask in [(false, &[][..]), (true, &[]), (true, &["--data", "up there"]), (false, &["--data", "up there"])] {
            let answers = curl(stage, "--http2-prior-knowledge", &[ask]).await?;
            check(&answers, &[ask], "2", "up there")?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_an_upgraded_connection_is_decided_request_by_request() -> Result<()> {
    on_stage("b08_upgrade", async |stage| {
        let _servers = [nghttpx(&stage.pod, PORT).await?, nghttpx(&stage.laptop, PORT).await?];
        let upload: &[&str] = &["--data", "up there"];
        // Whoever gets the request with the upgrade: those behind it go where they belong.
        for first in [false, true] {
            let asks = [(first, &[][..]), (!first, &[]), (first, &[]), (first, upload), (!first, upload), (first, &[])];
            let answers = curl(stage, "--http2", &asks).await?;
            check(&answers, &asks, "2", "up there").with_context(|| format!("{answers:?}"))?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_a_server_may_ignore_the_upgrade() -> Result<()> {
    on_stage("b08_ignored", async |stage| {
        let app = Http1App::start(&stage.pod, on(PORT), POD)?;
        let local = Http1App::start(&stage.laptop, on(PORT), LAPTOP)?;
        for first in [false, true] {
            let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
            for taken in [first, !first, !first, first, first] {
                // The next one is sent without waiting whether the first is answered in HTTP/2.
                let fields = [&UPGRADE[..], &[side(taken).0]].concat();
                let requests = [request("GET", "/a", &fields, b""), request("GET", "/b", &[side(!taken).0], b"")];
                caller.send(&requests.concat()).await?;
                for (request, expected) in requests.iter().zip([side(taken).1, side(!taken).1]) {
                    let answer = caller.response("GET").await?;
                    ensure!(answer.answered_by() == Some(expected) && answer.request_seen() == request, "{answer:?}");
                }
            }
            let asks = [(first, &[][..]), (!first, &[]), (first, &[])];
            let answers = curl(stage, "--http2", &asks).await?;
            ensure!(answers.iter().all(|(_, version, _)| version == "1.1"), "{answers:?}");
            let by = answers.iter().map(|(content, ..)| content.split('\n').next().unwrap_or_default());
            ensure!(by.eq(asks.map(|(taken, _)| side(taken).1)), "{answers:?}");
        }
        ensure!(app.connections().len() == 4 && local.connections().len() == 4);
        Ok(())
    })
    .await
}

/// Whether each request was answered by its side, in this version, and all of them over one connection.
fn check(answers: &[(String, String, String)], asks: &[(bool, &[&str])], version: &str, uploaded: &str) -> Result<()> {
    for (number, ((content, answered_in, connects), (taken, arguments))) in answers.iter().zip(asks).enumerate() {
        // What is uploaded comes back from whoever it was: the next download says who that is.
        let expected = if arguments.is_empty() { side(*taken).1 } else { uploaded };
        ensure!(content == expected, "request {number}: {content:?} instead of {expected:?}");
        ensure!(answered_in == version, "request {number}: answered in HTTP/{answered_in}");
        ensure!(connects == if number == 0 { "1" } else { "0" }, "request {number}: {connects} connections");
    }
    Ok(())
}

/// For requests of HTTP/2 only: what the wire has in pieces is one header.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_cookies_in_pieces_are_one_header() -> Result<()> {
    on_stage("b08_cookies", async |stage| {
        let _apps = [Http2App::start(&stage.pod, on(PORT), POD)?, Http2App::start(&stage.laptop, on(PORT), LAPTOP)?];
        stage.set_match("headers: [{name: cookie, value: \"a=1; user=adam\"}]").await?;
        let caller = Http2Caller::connect(&stage.caller, stage.app()).await?;
        for (pieces, expected) in [
            (&["a=1; user=adam"][..], LAPTOP),
            (&["a=1", "user=adam"], LAPTOP),
            (&["user=adam", "a=1"], POD),
            (&["a=1"], POD),
            (&["a=1", "user=adam", "b=2"], POD),
        ] {
            let mut request = http::Request::get("http://app.test/");
            for piece in pieces {
                request = request.header("cookie", *piece);
            }
            let (answer, _) = caller.open(request.body(())?, true).await?;
            let (parts, mut body) = answer.await?.into_parts();
            read_all(&mut body).await?;
            ensure!(parts.headers[ANSWERED_BY] == expected, "{pieces:?}: answered by {:?}", parts.headers[ANSWERED_BY]);
        }
        Ok(())
    })
    .await
}
