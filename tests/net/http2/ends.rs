//! b09: how streams and connections end: resets with their reason in both directions, and the app's GOAWAY.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{Reason, client::SendRequest, server::SendResponse};
use http::{Request, Response};
use sluice_tests::{
    Agent, Client, Host,
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::{PORT, SOON, any};

/// What an app has noticed: its name, and the reason with which a caller gave a request up.
type Noticed = (&'static str, Reason);

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_resets_pass_with_their_reason_in_both_directions() -> Result<()> {
    let stage = Stage::new("b09_reset")?;
    let (noticed_tx, mut noticed_rx) = mpsc::unbounded_channel();
    let _apps = [
        app(stage.pod.listen(any(PORT))?, "pod", noticed_tx.clone()),
        app(stage.laptop.listen(any(PORT))?, "laptop", noticed_tx),
    ];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b09", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let (mut requests, _connection) = connect(&stage.caller, &stage).await?;
    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
        // The server resets: the caller sees its reason.
        let (answer, _) = requests.send_request(request("/reset", header)?, true)?;
        let error = tokio::time::timeout(SOON, answer).await?.err().context("an answer instead of a reset")?;
        ensure!(error.is_reset() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM), "{by}: {error:?}");

        // The caller gives up while it waits: the server sees it, at once and with the reason.
        let (answer, mut send) = requests.send_request(request("/wait", header)?, false)?;
        ensure!(noticed_rx.recv().await == Some((by, Reason::NO_ERROR)), "the request did not arrive at {by}");
        send.send_reset(Reason::CANCEL);
        let noticed = tokio::time::timeout(SOON, noticed_rx.recv()).await.context("the server did not notice")?;
        ensure!(noticed == Some((by, Reason::CANCEL)), "{noticed:?} instead of {by}");
        drop(answer);

        let (answer, _) = requests.send_request(request("/", header)?, true)?;
        ensure!(named(&answer.await?) == Some(by), "the connection is the worse for it");
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_after_the_apps_goaway_a_new_connection_serves() -> Result<()> {
    let stage = Stage::new("b09_goaway")?;
    let (noticed_tx, _noticed_rx) = mpsc::unbounded_channel();
    let _apps = [
        app(stage.pod.listen(any(PORT))?, "pod", noticed_tx.clone()),
        app(stage.laptop.listen(any(PORT))?, "laptop", noticed_tx),
    ];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b09", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    for _ in 0..3 {
        let (mut requests, connection) = connect(&stage.caller, &stage).await?;
        let (mine, _) = requests.send_request(request("/", MATCHING)?, true)?;
        ensure!(named(&mine.await?) == Some("laptop"));
        // The app answers this one, and says that it is the last.
        let (last, _) = requests.send_request(request("/bye", OTHER)?, true)?;
        ensure!(named(&last.await?) == Some("pod"));
        drop(requests);
        let closed = tokio::time::timeout(SOON, connection).await.context("the connection goes on for ever")?;
        closed.context("the connection's task")?.context("not an orderly end")?;
    }
    stage.finish()
}

type Connection = AbortOnDropHandle<Result<(), h2::Error>>;

async fn connect(from: &Host, stage: &Stage) -> Result<(SendRequest<Bytes>, Connection)> {
    let (requests, connection) = h2::client::handshake(from.connect(stage.pod.at(PORT)).await?).await?;
    Ok((requests, AbortOnDropHandle::new(tokio::spawn(connection))))
}

fn request(path: &str, (name, value): (&str, &str)) -> Result<Request<()>> {
    Ok(Request::get(format!("http://app.test{path}")).header(name, value).body(())?)
}

fn named<B>(response: &Response<B>) -> Option<&str> {
    response.headers().get("x-by")?.to_str().ok()
}

/// An app that does what the path says. It ends when this is dropped.
fn app(
    listener: TcpListener,
    name: &'static str,
    noticed_tx: mpsc::UnboundedSender<Noticed>,
) -> AbortOnDropHandle<Result<()>> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            connections.spawn(serve(stream, name, noticed_tx.clone()));
        }
    }))
}

async fn serve(
    stream: tokio::net::TcpStream,
    name: &'static str,
    noticed_tx: mpsc::UnboundedSender<Noticed>,
) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    let mut waiting = tokio::task::JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        match request.uri().path() {
            "/reset" => respond.send_reset(Reason::ENHANCE_YOUR_CALM),
            "/wait" => {
                noticed_tx.send((name, Reason::NO_ERROR))?;
                waiting.spawn(wait(request, respond, name, noticed_tx.clone()));
            }
            path => {
                respond.send_response(Response::builder().header("x-by", name).body(())?, true)?;
                if path == "/bye" {
                    connection.graceful_shutdown();
                }
            }
        }
    }
    Ok(())
}

async fn wait(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &'static str,
    noticed_tx: mpsc::UnboundedSender<Noticed>,
) {
    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
    drop(request);
    // Nobody listens any more when the test has failed already.
    let _ = noticed_tx.send((name, reason.unwrap_or(Reason::INTERNAL_ERROR)));
}
