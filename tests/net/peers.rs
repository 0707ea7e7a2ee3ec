//! Tests of those who talk in the other tests: what they report is what went over the wire.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use sluice_tests::{
    Host, Lab, eventually,
    peers::{
        grpc::{GrpcApp, GrpcCaller},
        http1,
        http1::{Answer, Http1App, Http1Caller, Then},
        http2::{Http2App, Http2Caller},
        pattern,
        raw::{End, RawApp, Script},
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080);
const SOON: Duration = Duration::from_secs(5);

fn pair(lab: &Lab) -> Result<(Host, Host)> {
    let (left, right) = (lab.host("left").build()?, lab.host("right").build()?);
    lab.connect(&left, &right)?;
    Ok((left, right))
}

async fn end_of_first(app: &RawApp) -> Result<End> {
    eventually(SOON, "the connection ends", || async { app.connections().first()?.end }).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_raw_app_follows_its_script() -> Result<()> {
    let lab = Lab::new("raw_script")?;
    let (left, right) = pair(&lab)?;
    let script = Script::new().send(b"220 hello\r\n").read_until(b"\r\n").send(b"250 ok\r\n").read(3).half_close();
    let app = RawApp::start(&right, ANY, script)?;
    let mut stream = left.connect(right.at(8080)).await?;
    stream.write_all(b"HELO\r\nabc").await?;
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).await?;
    ensure!(answers == b"220 hello\r\n250 ok\r\n");
    stream.write_all(b"after your FIN").await?;
    stream.shutdown().await?;
    ensure!(end_of_first(&app).await? == End::Closed);
    ensure!(app.connections()[0].bytes == b"HELO\r\nabcafter your FIN");
    ensure!(app.connections()[0].peer.ip().to_canonical() == left.address());
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_raw_app_resets_sees_resets_and_holds() -> Result<()> {
    let lab = Lab::new("raw_reset")?;
    let (left, right) = pair(&lab)?;
    let resets = RawApp::start(&right, (Ipv6Addr::UNSPECIFIED, 1).into(), Script::new().read(1).reset())?;
    let mut stream = left.connect(right.at(1)).await?;
    stream.write_all(b"x").await?;
    let error = stream.read(&mut [0]).await.map_err(|error| error.kind());
    ensure!(error == Err(std::io::ErrorKind::ConnectionReset), "{error:?}");
    ensure!(end_of_first(&resets).await? == End::ByScript);

    let reads = RawApp::start(&right, (Ipv6Addr::UNSPECIFIED, 2).into(), Script::new())?;
    let mut stream = left.connect(right.at(2)).await?;
    stream.write_all(b"x").await?;
    eventually(SOON, "the byte arrives", || async { reads.connections().first()?.bytes.first().copied() }).await?;
    stream.set_zero_linger()?;
    drop(stream);
    ensure!(end_of_first(&reads).await? == End::Reset);

    let holds = RawApp::start(&right, (Ipv6Addr::UNSPECIFIED, 3).into(), Script::new().hold())?;
    let mut stream = left.connect(right.at(3)).await?;
    let sent = tokio::spawn(async move {
        pattern::send(&mut stream, 7, 20_000_000).await?;
        stream.shutdown().await?;
        anyhow::Ok(())
    });
    eventually(SOON, "the app has a connection", || async { holds.connections().len() == 1 }).await?;
    ensure!(!sent.is_finished() && holds.connections()[0].bytes.is_empty(), "it reads while it holds");
    holds.release();
    sent.await??;
    ensure!(end_of_first(&holds).await? == End::Closed);
    ensure!(holds.connections()[0].bytes == pattern::body(7, 20_000_000));
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_http1_app_shows_what_it_got() -> Result<()> {
    let lab = Lab::new("http1_identity")?;
    let (left, right) = pair(&lab)?;
    let app = Http1App::start(&right, ANY, "app")?;
    let mut caller = Http1Caller::connect(&left, right.at(8080)).await?;
    let first = http1::request("GET", "/a?b=c", &[("X-User", "adam"), ("x-user", "eva")], b"");
    let chunked = b"POST /p HTTP/1.1\r\nhost:h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n";
    let head = b"HEAD / HTTP/1.1\r\n\r\n";
    // Pipelined.
    caller.send(&[&first, &chunked[..], &head[..]].concat()).await?;
    let answer = caller.response("GET").await?;
    ensure!(answer.status == 200 && answer.answered_by() == Some("app") && answer.request_seen() == first);
    ensure!(caller.response("POST").await?.request_seen() == chunked);
    let answer = caller.response("HEAD").await?;
    ensure!(answer.body.is_empty() && answer.header("content-length").is_some());
    let seen = app.requests();
    ensure!(seen.len() == 3 && app.connections().len() == 1);
    ensure!(seen[0].header("x-USER") == Some("adam") && seen[0].target == "/a?b=c");
    ensure!(seen[1].body == b"abc");

    caller.send(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await?;
    ensure!(caller.response("POST").await?.status == 100);
    caller.send(b"ok").await?;
    ensure!(caller.response("POST").await?.request_seen().ends_with(b"\r\n\r\nok"));
    let last = caller.get("/", &[("connection", "close")]).await?;
    ensure!(last.status == 200 && caller.try_response("GET").await?.is_none(), "not closed");

    let mut http_1_0 = Http1Caller::connect(&left, right.at(8080)).await?;
    http_1_0.send(b"GET / HTTP/1.0\r\n\r\n").await?;
    ensure!(http_1_0.response("GET").await?.status == 200 && http_1_0.try_response("GET").await?.is_none());
    ensure!(app.requests().last().is_some_and(|request| request.connection == 1));
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_http1_app_gives_the_answers_it_is_told() -> Result<()> {
    let lab = Lab::new("http1_answers")?;
    let (left, right) = pair(&lab)?;
    let _app = Http1App::with(&right, ANY, "app", |_, request| match request.target.as_str() {
        "/chunked" => {
            Answer::new(*b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-t: 1\r\n\r\n")
        }
        "/204" => Answer::new(*b"HTTP/1.1 204 No Content\r\n\r\n"),
        "/upgrade" => Answer {
            raw: b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n".to_vec(),
            then: Then::Echo,
        },
        _ => Answer { raw: b"HTTP/1.1 200 OK\r\n\r\nto the end".to_vec(), then: Then::Close },
    })?;
    let mut caller = Http1Caller::connect(&left, right.at(8080)).await?;
    let chunked = caller.get("/chunked", &[]).await?;
    ensure!(chunked.body == b"a" && chunked.trailers == [("x-t".to_owned(), b"1".to_vec())]);
    ensure!(caller.get("/204", &[]).await?.body.is_empty());
    ensure!(caller.get("/close", &[]).await?.body == b"to the end");

    let mut caller = Http1Caller::connect(&left, right.at(8080)).await?;
    ensure!(caller.get("/upgrade", &[]).await?.status == 101);
    let (mut stream, rest) = caller.into_parts();
    ensure!(rest.is_empty());
    stream.write_all(b"\x81\x05hello").await?;
    let mut back = [0; 7];
    stream.read_exact(&mut back).await?;
    ensure!(&back == b"\x81\x05hello");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_http2_app_shows_what_it_got() -> Result<()> {
    let lab = Lab::new("http2")?;
    let (left, right) = pair(&lab)?;
    let app = Http2App::start(&right, ANY, "app")?;
    let caller = Http2Caller::connect(&left, right.at(8080)).await?;
    let answer = caller.get("/path", &[("x-user", "adam")]).await?;
    ensure!(answer.status == 200 && answer.answered_by() == Some("app") && answer.content_seen().is_empty());
    ensure!(answer.trailers.is_some_and(|trailers| trailers["x-answered-by"] == "app"));

    // Larger than all windows.
    let body = pattern::body(3, 3_000_000);
    let (first, second) = tokio::join!(
        caller.call("POST", "/big", &[], body.clone().into()),
        caller.call("POST", "/big", &[], body.clone().into()),
    );
    ensure!(first?.content_seen() == body && second?.content_seen() == body);
    let seen = app.requests();
    ensure!(app.connections().len() == 1 && seen.len() == 3);
    ensure!(seen[0].headers["x-user"] == "adam" && seen[0].uri.path() == "/path" && seen[1].body == body);
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_grpc_app_answers_all_kinds_of_calls() -> Result<()> {
    let lab = Lab::new("grpc")?;
    let (left, right) = pair(&lab)?;
    let app = GrpcApp::start(&right, ANY, "app")?;
    let caller = GrpcCaller::connect(&left, right.at(8080)).await?;
    let said = caller.say("hello", &[("x-user", "adam")]).await?;
    ensure!((said.text.as_str(), said.by.as_str()) == ("hello", "app"));
    let gathered = caller.gather(&["a", "b", "c"], &[]).await?;
    ensure!((gathered.text.as_str(), gathered.number, gathered.by.as_str()) == ("abc", 3, "app"));
    let repeated = caller.repeat("echo", 3, &[]).await?;
    ensure!(repeated.iter().map(|words| words.number).eq(0..3) && repeated.iter().all(|words| words.by == "app"));
    let chatted = caller.chat(&["one", "two", "three"], &[("x-user", "eva")]).await?;
    ensure!(chatted.iter().map(|words| words.text.as_str()).eq(["one", "two", "three"]));

    let calls = app.calls();
    ensure!(calls.iter().map(|call| call.method).eq(["Say", "Gather", "Repeat", "Chat"]));
    ensure!(calls.iter().all(|call| call.peer == calls[0].peer && call.peer.is_some()), "not one connection");
    let users: Vec<_> = calls.iter().map(|call| call.metadata.get("x-user")).collect();
    ensure!(users[0].is_some_and(|user| user == "adam") && users[1].is_none() && users[3].is_some_and(|u| u == "eva"));
    lab.finish()
}
