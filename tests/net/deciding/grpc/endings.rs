//! Calls end with the status, in the time and with the cancellation with which they would end without the agent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sluice_tests::peers::{
    ANSWERED_BY,
    grpc::{GrpcCaller, Words, with_metadata},
    http2::Http2Caller,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Status};

use super::moody::MoodyApp;
use crate::stage::{LAPTOP, POD, SOON, on_stage, side};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_status_and_trailers_arrive() -> Result<()> {
    on_stage("b09_status", async |stage| {
        let _apps = [MoodyApp::start(&stage.pod, POD)?, MoodyApp::start(&stage.laptop, LAPTOP)?];
        let caller = GrpcCaller::connect(&stage.caller, stage.app()).await?;
        for taken in [false, true, true, false] {
            let (mark, expected) = side(taken);
            let check = |status: &Status| {
                let metadata = status.metadata();
                ensure!(
                    status.code() == Code::FailedPrecondition && status.message() == "no: 100 % of \u{fc}",
                    "{status}"
                );
                ensure!(status.details() == b"\x08\x09\x00", "{:?}", status.details());
                ensure!(metadata.get(ANSWERED_BY).is_some_and(|by| by == expected), "{metadata:?}");
                ensure!(metadata.get_all("x-why").iter().eq(["one", "two"]), "{metadata:?}");
                let bytes = metadata.get_bin("x-why-bin").context("no bytes")?.to_bytes()?;
                ensure!(bytes == b"\x00\xff\r\n"[..], "{bytes:?}");
                Ok(())
            };
            // An answer that is nothing but trailers.
            let request = with_metadata(Request::new(Words::said("fail", 0)), &[mark])?;
            check(&caller.client().say(request).await.err().context("an answer")?)?;
            // Trailers behind messages.
            let request = with_metadata(Request::new(Words::said("x", 5)), &[mark])?;
            let mut answers = caller.client().repeat(request).await?.into_inner();
            for number in 0..5 {
                let words = answers.message().await?.context("no answer")?;
                ensure!(words.number == number && words.by == expected, "{words:?}");
            }
            check(&answers.message().await.err().context("another answer")?)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_calls_that_are_given_up_end_at_the_app_as_well() -> Result<()> {
    on_stage("b09_cancel", async |stage| {
        let apps = [MoodyApp::start(&stage.pod, POD)?, MoodyApp::start(&stage.laptop, LAPTOP)?];
        let caller = GrpcCaller::connect(&stage.caller, stage.app()).await?;
        for taken in [false, true] {
            let (app, (mark, expected)) = (&apps[usize::from(taken)], side(taken));
            let request = with_metadata(Request::new(Words::said("unary", 0)), &[mark])?;
            let mut client = caller.client();
            let call = AbortOnDropHandle::new(tokio::spawn(async move { client.say(request).await }));
            app.begun("unary").await?;
            drop(call);
            app.given_up("unary").await?;

            let uploading = stream::iter([Words::said("uploading", 1)]).chain(stream::pending());
            let request = with_metadata(Request::new(uploading), &[mark])?;
            let mut client = caller.client();
            let call = AbortOnDropHandle::new(tokio::spawn(async move { client.gather(request).await }));
            app.begun("uploading").await?;
            drop(call);
            app.given_up("uploading").await?;

            let (words_tx, words_rx) = tokio::sync::mpsc::channel(1);
            words_tx.send(Words::said("talking", 1)).await?;
            let words = stream::unfold(words_rx, |mut rx| async move { Some((rx.recv().await?, rx)) });
            let request = with_metadata(Request::new(words), &[mark])?;
            let mut answers = caller.client().chat(request).await?.into_inner();
            ensure!(answers.message().await?.context("no answer")?.by == expected);
            app.begun("talking").await?;
            drop((answers, words_tx));
            app.given_up("talking").await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_deadlines_pass_on() -> Result<()> {
    on_stage("b09_deadline", async |stage| {
        let apps = [MoodyApp::start(&stage.pod, POD)?, MoodyApp::start(&stage.laptop, LAPTOP)?];
        let caller = GrpcCaller::connect(&stage.caller, stage.app()).await?;
        for taken in [false, true] {
            let (app, (mark, _)) = (&apps[usize::from(taken)], side(taken));
            // The caller keeps the time: its call is over for the app, too.
            let mut request = with_metadata(Request::new(Words::said("caller", 0)), &[mark])?;
            request.set_timeout(Duration::from_millis(300));
            let began = Instant::now();
            let status = caller.client().say(request).await.err().context("an answer")?;
            let lasted = began.elapsed();
            ensure!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
            ensure!(lasted >= Duration::from_millis(300) && lasted < SOON, "{lasted:?}");
            let metadata = app.begun("caller").await?;
            ensure!(metadata.get("grpc-timeout").is_some_and(|timeout| timeout == "300000u"), "{metadata:?}");
            app.given_up("caller").await?;

            // The app does: its status arrives, in time, at a caller that would have waited longer.
            let raw = Http2Caller::connect(&stage.caller, stage.app()).await?;
            let call = [mark, ("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "200m")];
            let message = Bytes::from_static(b"\0\0\0\0\x05\x0a\x03app");
            let began = Instant::now();
            let answer = raw.call("POST", "/sluice.test.Talk/Say", &call, message).await?;
            let lasted = began.elapsed();
            let status = answer.headers.get("grpc-status").or_else(|| answer.trailers.as_ref()?.get("grpc-status"));
            let status = status.with_context(|| format!("{answer:?}"))?.to_str()?;
            let codes = [Code::Cancelled, Code::DeadlineExceeded].map(|code| i32::from(code).to_string());
            ensure!(codes.iter().any(|code| code == status), "{answer:?}");
            ensure!(lasted >= Duration::from_millis(200) && lasted < SOON, "{lasted:?}");
            app.given_up("app").await?;
        }
        Ok(())
    })
    .await
}
