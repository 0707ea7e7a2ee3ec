//! The same over HTTP/2, where frames say what ends where: answers without content, interim answers, trailers.

use std::future::poll_fn;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use sluice_tests::peers::{
    ANSWERED_BY,
    http2::{Http2Caller, read_all},
};
use tokio::time::timeout;

use super::{
    acting::ActingApp,
    stage::{PORT, SOON, on_stage, side},
};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b06_answers_without_content_over_http2() -> Result<()> {
    on_stage("b06_claims", async |stage| {
        let _apps = [ActingApp::start(&stage.pod, PORT)?, ActingApp::start(&stage.laptop, PORT)?];
        let caller = Http2Caller::connect(&stage.caller, stage.app()).await?;
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404), ("DELETE", 204)] {
            for taken in [false, true] {
                let (mark, expected) = side(taken);
                let answer = caller.call(method, &format!("/claim/{status}"), &[mark], Bytes::new()).await?;
                ensure!(answer.status == status && answer.answered_by() == Some(expected), "{method}: {answer:?}");
                ensure!(
                    answer.headers["content-length"] == "1234" && answer.headers.len() == 2,
                    "{method}: {answer:?}"
                );
                ensure!(answer.body.is_empty() && answer.trailers.is_none(), "{method}: {answer:?}");
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b06_interim_answers_and_trailers_over_http2() -> Result<()> {
    on_stage("b06_interim", async |stage| {
        let _apps = [ActingApp::start(&stage.pod, PORT)?, ActingApp::start(&stage.laptop, PORT)?];
        let caller = Http2Caller::connect(&stage.caller, stage.app()).await?;
        for taken in [false, true, true, false] {
            let ((name, value), expected) = side(taken);
            let request = http::Request::put("http://app.test/continue").header(name, value);
            let (mut answer, mut send) = caller.open(request.header("expect", "100-continue").body(())?, false).await?;
            for status in [103, 100] {
                let interim = timeout(SOON, poll_fn(|context| answer.poll_informational(context))).await;
                let interim = interim.with_context(|| format!("no {status}"))?.context("the final answer")??;
                ensure!(interim.status() == status && interim.headers()[ANSWERED_BY] == expected, "{interim:?}");
            }
            // Only now, as a caller does that was asked to wait.
            send.send_data(Bytes::from_static(b"hello"), false)?;
            let trailers = HeaderMap::from_iter([("x-sum".parse()?, HeaderValue::from_static("5"))]);
            send.send_trailers(trailers.clone())?;
            let (head, mut body) = answer.await?.into_parts();
            ensure!(head.status == 200 && head.headers[ANSWERED_BY] == expected, "{head:?}");
            let (content, back) = read_all(&mut body).await?;
            ensure!(content == "hello" && back == Some(trailers), "{content:?} {back:?}");
        }
        Ok(())
    })
    .await
}
