//! b07: connections that go on in another protocol. The whole socket belongs to the side that answered the request.

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use sluice_tests::{
    Host, eventually, peers,
    peers::{
        http1::{Http1Caller, request},
        pattern,
        raw::{RawApp, RawCaller, Script},
    },
    stage::{MATCHING, OTHER},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, accept_async, client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{HTTP, Ruled, SOON, any};

const PORT: u16 = 8082;

/// A WebSocket server that says its name and sends each message back. It ends when this is dropped.
fn echo(host: &Host) -> Result<AbortOnDropHandle<()>> {
    peers::serve(host, any(PORT), |stream, name| async move { serve(stream, &name).await.ok() })
}

async fn serve(stream: TcpStream, name: &str) -> Result<()> {
    let mut socket = accept_async(stream).await?;
    socket.send(Message::text(name)).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Result<Message> {
    let message = tokio::time::timeout(SOON, socket.next()).await.context("no message")?;
    Ok(message.context("the socket was closed")??)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b07_the_whole_websocket_goes_to_the_side_that_its_request_is_for() -> Result<()> {
    let ruled = Ruled::set("b07_websocket", &[PORT]).await?;
    let _servers = [echo(&ruled.stage.pod)?, echo(&ruled.stage.laptop)?];
    let to = ruled.stage.pod.at(PORT);
    let mut sockets = Vec::new();
    for (header, by) in [(OTHER, "pod"), (MATCHING, "laptop"), (MATCHING, "laptop"), (OTHER, "pod")] {
        let mut ask = format!("ws://{to}/chat").into_client_request()?;
        ask.headers_mut().insert(header.0, header.1.parse()?);
        let (mut socket, answer) = Box::pin(client_async(ask, ruled.stage.caller.connect(to).await?)).await?;
        ensure!(answer.status() == 101, "{answer:?}");
        let greeting = next(&mut socket).await?;
        ensure!(greeting == Message::text(by), "{header:?}: {greeting} instead of {by}");
        sockets.push((socket, by));
    }
    // All at once, and in it what would be a request anywhere else, for the other side.
    for (number, (socket, by)) in sockets.iter_mut().enumerate() {
        let header = if *by == "pod" { MATCHING } else { OTHER };
        let messages = [
            Message::text("hello"),
            Message::binary(request("GET", "/hidden", &[header], b"")),
            Message::binary(pattern::body(u64::try_from(number)?, 300_000)),
            Message::binary(Vec::new()),
        ];
        for message in messages {
            socket.send(message.clone()).await?;
            let back = next(socket).await?;
            ensure!(back == message, "{by}: another message of {} bytes", back.len());
        }
        socket.send(Message::Ping(b"are you there".to_vec().into())).await?;
        let pong = next(socket).await?;
        ensure!(pong == Message::Pong(b"are you there".to_vec().into()), "{pong:?}");
    }
    for (mut socket, _) in sockets {
        socket.close(None).await?;
        let close = next(&mut socket).await?;
        ensure!(close.is_close(), "{close:?} instead of the other side's goodbye");
        ensure!(socket.next().await.is_none(), "the connection goes on");
    }
    ensure!(ruled.agent.counter("diverted").await? == 2, "diverted");
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b07_any_other_protocol_does_too_with_what_is_sent_before_it_is_agreed() -> Result<()> {
    const SWITCHED: &[u8] = b"HTTP/1.1 101 Go on\r\nConnection: Upgrade\r\nUpgrade: chat/2\r\n\r\n\0first";
    let ruled = Ruled::set("b07_other", &[PORT]).await?;
    let script = Script::new().read_until(b"\r\n\r\n").send(SWITCHED).read_to_end().send(b"last");
    let pod = RawApp::start(&ruled.stage.pod, any(PORT), script.clone())?;
    let laptop = RawApp::start(&ruled.stage.laptop, any(PORT), script)?;
    for (header, other, app) in [(OTHER, MATCHING, &pod), (MATCHING, OTHER, &laptop)] {
        let upgrade = request("GET", "/", &[("Connection", "Upgrade"), ("Upgrade", "chat/2"), header], b"");
        let hidden = request("GET", "/hidden", &[other], b"");
        let early = [&b"\x01\x00early"[..], &hidden].concat();
        let script =
            Script::new().send(&[&upgrade[..], &early].concat()).read(SWITCHED.len()).send(&hidden).half_close();
        let caller = RawCaller::connect(&ruled.stage.caller, ruled.stage.pod.at(PORT), script).await?;
        let seen = caller.ended(SOON).await?;
        ensure!(seen.bytes == [SWITCHED, b"last"].concat(), "the caller: {seen}");
        let what = "one side has all";
        let got = eventually(SOON, what, || async { app.connections().into_iter().find(|s| s.end.is_some()) }).await?;
        ensure!(got.bytes == [&upgrade[..], &early, &hidden].concat(), "the app: {got}");
    }
    let connections = pod.connections();
    ensure!(connections.len() == 2 && laptop.connections().len() == 1, "other connections");
    ensure!(connections[1].bytes.is_empty(), "the app has got what was taken: {}", connections[1]);
    ruled.works().await?;
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b07_where_the_upgrade_is_refused_every_request_is_decided_on() -> Result<()> {
    let ruled = Ruled::set("b07_refused", &[]).await?;
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
    let mut caller = Http1Caller::connect(&ruled.stage.caller, ruled.stage.pod.at(HTTP)).await?;
    let asks = [OTHER, MATCHING, MATCHING, OTHER, OTHER];
    // Pipelined: what is behind an upgrade may be one thing or another until it is answered.
    for (number, header) in asks.iter().enumerate() {
        let headers = if number % 2 == 0 { [&upgrade[..], &[*header]].concat() } else { vec![*header] };
        caller.send(&request("GET", &format!("/{number}"), &headers, b"")).await?;
    }
    for header in asks {
        let by = if header == MATCHING { "laptop" } else { "pod" };
        let answer = caller.response("GET").await?;
        ensure!(answer.answered_by() == Some(by), "{header:?}: by {:?}", answer.answered_by());
    }
    ruled.finish()
}
