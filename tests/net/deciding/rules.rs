//! Which requests a rule fits, the same over HTTP/1 and HTTP/2. All requests of a table go over one connection of each
//! version, those that fit and those that do not in turn.

mod tables;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::HeaderValue;
use sluice_tests::peers::{
    ANSWERED_BY,
    http1::{Http1App, Http1Caller, request},
    http2::{Http2App, Http2Caller, read_all},
};

use self::tables::{Ask, BAGGAGE, BAGGAGE_HTTP1, HEADERS, HEADERS_HTTP1, PATHS, PATHS_HTTP1, Raw, Table};
use super::stage::{LAPTOP, POD, PORT, SECOND_PORT, Stage, on, on_stage};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b01_headers_decide() -> Result<()> {
    on_stage("b01", async |stage| {
        judge(stage, HEADERS, &HEADERS_HTTP1).await?;
        // A value that can never arrive is no rule that silently takes nothing.
        for impossible in ["\" adam\"", "\"adam \"", "\"adam\\t\"", "\"a\\nb\""] {
            let said = stage.refused_match(&format!("headers: [{{name: x-user, value: {impossible}}}]")).await?;
            ensure!(said.contains("can never arrive"), "{impossible}: {said}");
        }
        let said = stage.refused_match("headers: [{type: RegularExpression, name: x-user, value: \"a)|(b\"}]").await?;
        ensure!(said.contains("a)|(b"), "{said}");
        // What would take up the agent's memory is named, with what to do.
        let large = "headers: [{type: RegularExpression, name: x-user, value: \"(a{99}){999}\"}]";
        let said = stage.refused_match(large).await?;
        ensure!(said.contains("(a{99}){999}") && said.contains("make its repetitions smaller"), "{said}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b02_path_and_method_decide() -> Result<()> {
    on_stage("b02", async |stage| judge(stage, PATHS, &PATHS_HTTP1).await).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b18_a_baggage_member_decides() -> Result<()> {
    on_stage("b18", async |stage| judge(stage, BAGGAGE, &BAGGAGE_HTTP1).await).await
}

async fn judge(stage: &Stage, tables: &[Table], raw: &Raw) -> Result<()> {
    let _http1 = [Http1App::start(&stage.pod, on(PORT), POD)?, Http1App::start(&stage.laptop, on(PORT), LAPTOP)?];
    let _http2 =
        [Http2App::start(&stage.pod, on(SECOND_PORT), POD)?, Http2App::start(&stage.laptop, on(SECOND_PORT), LAPTOP)?];
    for Table { matching, fit, other } in tables {
        stage.set_match(matching).await?;
        let mut http1 = Http1Caller::connect(&stage.caller, stage.app()).await?;
        let http2 = Http2Caller::connect(&stage.caller, stage.second_app()).await?;
        for (ask, expected) in in_turn(fit, other) {
            let (method, target, headers) = ask;
            over_http1(&mut http1, &request(method, target, headers, b""), expected).await.context(*matching)?;
            let by = over_http2(&http2, ask).await.with_context(|| format!("{matching}: {ask:?} over HTTP/2"))?;
            ensure!(by == expected, "{matching}: {ask:?} over HTTP/2: answered by {by}, not by {expected}");
        }
    }
    stage.set_match(raw.matching).await?;
    let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
    for (bytes, expected) in in_turn(raw.fit, raw.other) {
        over_http1(&mut caller, bytes.as_bytes(), expected).await.context(raw.matching)?;
    }
    Ok(())
}

/// The requests with those who must answer, alternating as long as there are both.
fn in_turn<T>(fit: &'static [T], other: &'static [T]) -> impl Iterator<Item = (&'static T, &'static str)> {
    (0..fit.len().max(other.len())).flat_map(move |at| {
        [fit.get(at).map(|ask| (ask, LAPTOP)), other.get(at).map(|ask| (ask, POD))].into_iter().flatten()
    })
}

async fn over_http1(caller: &mut Http1Caller, request: &[u8], expected: &str) -> Result<()> {
    let what = || String::from_utf8_lossy(request).into_owned();
    caller.send(request).await?;
    let answer = caller.response("GET").await.with_context(what)?;
    ensure!(answer.answered_by() == Some(expected), "{:?} answered by {:?}", what(), answer.answered_by());
    ensure!(answer.request_seen() == request, "{:?} came as {:?}", what(), answer.request_seen().escape_ascii());
    Ok(())
}

async fn over_http2(caller: &Http2Caller, ask: &Ask) -> Result<String> {
    let (method, target, headers) = *ask;
    let mut request = http::Request::builder().method(method).uri(format!("http://app.test{target}"));
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    let (answer, _) = caller.open(request.body(())?, true).await?;
    let (parts, mut body) = answer.await?.into_parts();
    let (content, _): (Bytes, _) = read_all(&mut body).await?;
    let by = parts.headers.get(ANSWERED_BY).context("nobody says who answered")?.to_str()?;
    ensure!(content == format!("{by}\n"), "the content is not {by}'s");
    Ok(by.to_owned())
}
