//! An app that takes its time, and callers that do not wait for it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use sluice_tests::{
    Host, peers,
    peers::{
        ANSWERED_BY,
        http1::{Http1Caller, request},
        pattern,
    },
    stage::{MATCHING, OTHER},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::any;

/// How many milliseconds the app thinks about a request.
const SLOWNESS: &str = "x-slowness";

/// A request, and who is to answer it.
pub(crate) struct Ask {
    bytes: Vec<u8>,
    method: &'static str,
    by: &'static str,
    body: Vec<u8>,
}

// === impl Ask ===

impl Ask {
    pub(crate) fn new(number: usize, method: &'static str, taken: bool, slowness: usize, size: u64) -> Result<Self> {
        let (header, by) = if taken { (MATCHING, "laptop") } else { (OTHER, "pod") };
        let body = pattern::body(u64::try_from(number)?, size);
        let (slowness, target) = (slowness.to_string(), format!("/{number}"));
        Ok(Self { bytes: request(method, &target, &[header, (SLOWNESS, &slowness)], &body), method, by, body })
    }
}

/// A server that takes its time for each request, and sends its body back. It ends when this is dropped.
pub(crate) fn slow_app(host: &Host, port: u16) -> Result<AbortOnDropHandle<()>> {
    peers::serve(host, any(port), |stream, name| async move {
        let answer = service_fn(move |request| slowly(Arc::clone(&name), request));
        http1::Builder::new().pipeline_flush(true).serve_connection(TokioIo::new(stream), answer).await.ok()
    })
}

async fn slowly(name: Arc<str>, request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let slowness = request.headers().get(SLOWNESS).and_then(|value| value.to_str().ok()?.parse().ok());
    let target = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(slowness.unwrap_or_default())).await;
    let answer =
        hyper::Response::builder().header(ANSWERED_BY, &*name).header("x-target", target).body(Full::new(body));
    Ok(answer.unwrap_or_default())
}

/// Sends all requests at once, and reads the answers.
pub(crate) async fn pipeline(from: &Host, to: SocketAddr, asks: &[Ask]) -> Result<()> {
    let stream = from.connect(to).await?.into_std()?;
    let mut sender = TcpStream::from_std(stream.try_clone()?)?;
    let mut caller = Http1Caller::over(TcpStream::from_std(stream)?)?;
    let all = asks.iter().map(|ask| &ask.bytes[..]).collect::<Vec<_>>().concat();
    let sending = tokio::spawn(async move { sender.write_all(&all).await });
    for (number, ask) in asks.iter().enumerate() {
        let answer = caller.response(ask.method).await.with_context(|| format!("answer {number}"))?;
        ensure!(answer.answered_by() == Some(ask.by), "answer {number}: by {:?}, not {}", answer.answered_by(), ask.by);
        ensure!(answer.header("x-target") == Some(&format!("/{number}")), "answer {number} is that of another request");
        ensure!(answer.body == ask.body || ask.method == "HEAD", "answer {number}: another body");
    }
    Ok(sending.await??)
}
