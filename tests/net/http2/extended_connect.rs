//! b07 for HTTP/2: WebSockets and other protocols within a stream, by extended CONNECT (RFC 8441), decided by their request.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{client::SendRequest, ext::Protocol, server::SendResponse};
use http::{Method, Request, Response};
use sluice_tests::{
    Agent, Client, Host, eventually,
    peers::{
        ANSWERED_BY,
        http2::{read_all, send_all},
        pattern,
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{PORT, SOON, any};

/// An app that says back what comes in a stream of CONNECT. It ends when this is dropped.
fn echo(host: &Host, name: &'static str, offers: bool) -> Result<AbortOnDropHandle<Result<()>>> {
    let listener: TcpListener = host.listen(any(PORT))?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            connections.spawn(serve(stream, name, offers));
        }
    })))
}

async fn serve(stream: TcpStream, name: &'static str, offers: bool) -> Result<()> {
    let mut settings = h2::server::Builder::new();
    if offers {
        settings.enable_connect_protocol();
    }
    let mut connection = settings.handshake::<_, Bytes>(stream).await?;
    let mut streams = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        streams.spawn(answer(request, respond, name));
    }
    Ok(())
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, name: &str) -> Result<()> {
    let protocol = request.extensions().get::<Protocol>().map_or("none", Protocol::as_str).to_owned();
    let response = Response::builder().header(ANSWERED_BY, name).header("x-protocol", protocol);
    if request.method() != Method::CONNECT {
        respond.send_response(response.body(())?, true)?;
        return Ok(());
    }
    let mut to = respond.send_response(response.body(())?, false)?;
    let mut from = request.into_body();
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        send_all(&mut to, data).await?;
    }
    to.send_data(Bytes::new(), true)?;
    Ok(())
}

async fn connect(stage: &Stage) -> Result<(SendRequest<Bytes>, AbortOnDropHandle<Result<(), h2::Error>>)> {
    let stream = stage.caller.connect(stage.pod.at(PORT)).await?;
    let (requests, connection) = h2::client::handshake(stream).await?;
    Ok((requests, AbortOnDropHandle::new(tokio::spawn(connection))))
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b07_a_websocket_within_a_stream_goes_where_its_request_goes() -> Result<()> {
    let stage = Stage::new("b07_rfc8441")?;
    let _apps = [echo(&stage.pod, "pod", true)?, echo(&stage.laptop, "laptop", true)?];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b07", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let (requests, _connection) = connect(&stage).await?;
    eventually(SOON, "what the app offers is offered to the caller", || async {
        ensure!(requests.is_extended_connect_protocol_enabled());
        Ok(())
    })
    .await?;
    let content = pattern::body(7, 1 << 20);
    // All at the same time, on one connection.
    let mut sockets = JoinSet::new();
    for number in 0..8 {
        let (header, by) = if number % 2 == 0 { (MATCHING, "laptop") } else { (OTHER, "pod") };
        let (mut requests, content) = (requests.clone(), content.clone());
        sockets.spawn(async move {
            let request = Request::builder().method(Method::CONNECT).uri("http://app.test/chat");
            let request = request.header(header.0, header.1).extension(Protocol::from_static("websocket")).body(())?;
            let (answer, mut to) = requests.send_request(request, false)?;
            // The server agrees before anything is said, and says back what it hears at once: both ways are open.
            let answer = tokio::time::timeout(SOON, answer).await.context("not answered")??;
            ensure!(answer.headers()[ANSWERED_BY] == by && answer.headers()["x-protocol"] == "websocket", "{answer:?}");
            let mut from = answer.into_body();
            to.send_data("hello".into(), false)?;
            let hello = from.data().await.context("no greeting")??;
            from.flow_control().release_capacity(hello.len())?;
            ensure!(hello == "hello", "{hello:?}");
            let sending = async {
                send_all(&mut to, content.clone().into()).await?;
                to.send_data(Bytes::new(), true)?;
                Ok::<_, anyhow::Error>(())
            };
            let ((), (heard, _)) = tokio::try_join!(sending, read_all(&mut from))?;
            ensure!(heard == content, "{} bytes came back, or others", heard.len());
            Ok(())
        });
    }
    while let Some(socket) = sockets.join_next().await {
        socket??;
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b07_what_the_app_does_not_offer_the_agent_does_not_offer() -> Result<()> {
    let stage = Stage::new("b07_not_offered")?;
    let _apps = [echo(&stage.pod, "pod", false)?, echo(&stage.laptop, "laptop", true)?];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b07", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let (mut requests, _connection) = connect(&stage).await?;
    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
        let request = Request::get("http://app.test/").header(header.0, header.1).body(())?;
        let (answer, _) = requests.send_request(request, true)?;
        ensure!(answer.await?.headers()[ANSWERED_BY] == by);
    }
    ensure!(!requests.is_extended_connect_protocol_enabled(), "offered, and the app does not know it");
    stage.finish()
}
