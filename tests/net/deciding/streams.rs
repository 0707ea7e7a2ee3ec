//! HTTP/2 streams, one by one: how they are broken off, and when they end early.

mod goodbye;
mod stalling;

use std::future::poll_fn;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{Reason, SendStream, client::ResponseFuture};
use sluice_tests::{
    eventually,
    peers::{
        ANSWERED_BY,
        http2::{Http2Caller, read_all, send_all},
        pattern,
    },
};
use tokio::time::timeout;

use super::{
    acting::ActingApp,
    stage::{PORT, SOON, Stage, on_stage, side},
};

/// Codes of all kinds: with a meaning, without an error, and one that no specification has.
const CODES: [Reason; 5] = [
    Reason::CANCEL,
    Reason::INTERNAL_ERROR,
    Reason::REFUSED_STREAM,
    Reason::ENHANCE_YOUR_CALM,
    Reason::HTTP_1_1_REQUIRED,
];

struct Apps {
    pod: ActingApp,
    laptop: ActingApp,
}

// === impl Apps ===

impl Apps {
    fn start(stage: &Stage) -> Result<Self> {
        Ok(Self { pod: ActingApp::start(&stage.pod, PORT)?, laptop: ActingApp::start(&stage.laptop, PORT)? })
    }

    fn of(&self, taken: bool) -> &ActingApp {
        if taken { &self.laptop } else { &self.pod }
    }
}

async fn connect(stage: &Stage) -> Result<Http2Caller> {
    let mut builder = h2::client::Builder::new();
    // As of a caller for whom no stream is in the way of another one.
    builder.initial_connection_window_size(1 << 30);
    let stream = stage.caller.connect(stage.app()).await?;
    stream.set_nodelay(true)?;
    Http2Caller::with(stream, &builder).await
}

/// Begins a request for one of the sides; with `end`, that is all of it.
async fn open(caller: &Http2Caller, taken: bool, path: &str, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    let ((name, value), _) = side(taken);
    let uri = format!("http://app.test{path}");
    let request = http::Request::post(uri).header(name, value).body(())?;
    caller.open(request, end).await
}

/// Waits for an answer and checks that it is the right side's.
async fn answered(answer: ResponseFuture, taken: bool) -> Result<h2::RecvStream> {
    let (parts, body) = timeout(SOON, answer).await.context("no answer")??.into_parts();
    let by = parts.headers.get(ANSWERED_BY).context("nobody says who answered")?;
    ensure!(by == side(taken).1, "answered by {by:?}");
    Ok(body)
}

/// An ordinary exchange.
async fn echo(caller: &Http2Caller, taken: bool, path: &str, content: &Bytes) -> Result<()> {
    let (answer, mut send) = open(caller, taken, path, false).await?;
    send_all(&mut send, content.clone()).await?;
    send.send_data(Bytes::new(), true)?;
    let (back, _) = read_all(&mut answered(answer, taken).await?).await?;
    ensure!(back == content, "{path}: {} bytes came back of {}", back.len(), content.len());
    Ok(())
}

/// The code with which the other side has reset a stream.
fn code_of(error: &h2::Error) -> Result<Reason> {
    ensure!(error.is_reset() && error.is_remote(), "no reset by the other side: {error}");
    error.reason().context("no code")
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_a_caller_that_resets_a_stream_is_heard_at_once() -> Result<()> {
    on_stage("b09_caller_resets", async |stage| {
        let apps = Apps::start(stage)?;
        let caller = connect(stage).await?;
        for (number, code) in CODES.into_iter().enumerate() {
            for taken in [false, true] {
                let app = apps.of(taken);
                // While the request is being sent, and while its answer is awaited.
                for (end, what) in [(false, "sending"), (true, "waiting")] {
                    let path = format!("/hold/{what}/{number}");
                    let (_answer, mut send) = open(&caller, taken, &path, end).await?;
                    app.has(&path).await?;
                    send.send_reset(code);
                    app.told(&path, code).await?;
                }
                // In the middle of the answer.
                for (end, what) in [(false, "both"), (true, "reading")] {
                    let path = format!("/stream/{what}/{number}");
                    let (answer, mut send) = open(&caller, taken, &path, end).await?;
                    let mut body = answered(answer, taken).await?;
                    ensure!(body.data().await.context("no content")?? == "piece");
                    send.send_reset(code);
                    app.told(&path, code).await?;
                }
                // A caller that is not interested any more says so by itself.
                let path = format!("/hold/dropped/{number}");
                drop(open(&caller, taken, &path, true).await?);
                if app.seen(&path).times == 1 {
                    app.told(&path, Reason::CANCEL).await?;
                }
                echo(&caller, taken, &format!("/echo/{number}"), &Bytes::from_static(b"still there")).await?;
            }
        }
        ensure!(apps.pod.connections() == 1 && apps.laptop.connections() == 1);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_an_app_that_resets_a_stream_is_heard_with_its_code() -> Result<()> {
    on_stage("b09_app_resets", async |stage| {
        let apps = Apps::start(stage)?;
        let caller = connect(stage).await?;
        apps.pod.release();
        apps.laptop.release();
        for code in CODES {
            for taken in [false, true] {
                for end in [false, true] {
                    let number = u32::from(code);
                    let (answer, _send) = open(&caller, taken, &format!("/reset/{number}/{end}"), end).await?;
                    let error = timeout(SOON, answer).await?.err().context("an answer")?;
                    ensure!(code_of(&error)? == code, "{error} instead of {code:?}");
                    let (answer, _send) = open(&caller, taken, &format!("/cut/{number}/{end}"), end).await?;
                    // The reset may overtake content, and even the head.
                    let error = match timeout(SOON, answer).await? {
                        Ok(response) => timeout(SOON, read_all(&mut response.into_body())).await?.err(),
                        Err(error) => Some(error.into()),
                    };
                    let error = error.context("an answer with an end")?.downcast::<h2::Error>()?;
                    ensure!(code_of(&error)? == code, "{error} instead of {code:?}");
                }
                echo(&caller, taken, "/echo", &Bytes::from_static(b"still there")).await?;
            }
        }
        ensure!(apps.pod.connections() == 1 && apps.laptop.connections() == 1);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_an_answer_may_end_before_its_request() -> Result<()> {
    on_stage("b09_early", async |stage| {
        let apps = Apps::start(stage)?;
        let caller = connect(stage).await?;
        let content = Bytes::from(pattern::body(9, 1_000_000));
        for taken in [false, true] {
            let app = apps.of(taken);
            // The rest is wanted: it arrives.
            let (answer, mut send) = open(&caller, taken, "/early", false).await?;
            let (nothing, _) = read_all(&mut answered(answer, taken).await?).await?;
            ensure!(nothing.is_empty());
            timeout(SOON, send_all(&mut send, content.clone())).await.context("stuck")??;
            send.send_data(Bytes::new(), true)?;
            let body = eventually(SOON, "the request ends", || async { app.seen("/early").body }).await?;
            ensure!(body == content, "other content, {} bytes", body.len());
            // It is not: the caller is told, and keeps its answer.
            let (answer, mut send) = open(&caller, taken, "/enough", false).await?;
            let mut body = answered(answer, taken).await?;
            ensure!(read_all(&mut body).await?.0.is_empty());
            app.release();
            let code = timeout(SOON, poll_fn(|context| send.poll_reset(context))).await.context("not told")??;
            ensure!(code == Reason::NO_ERROR, "{code:?}");
        }
        Ok(())
    })
    .await
}
