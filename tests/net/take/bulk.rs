//! a09: large bodies arrive byte by byte as they were sent, and streams of any length take no more memory than short
//! ones, however slowly they are read.

mod stream;

use anyhow::{Result, ensure};
use bytes::Bytes;
use sluice_tests::{
    Agent, Client,
    peers::{
        http1::{Http1App, Http1Caller, request},
        http2::{Http2App, Http2Caller},
        pattern,
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::any;

const MIB: u64 = 1 << 20;

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a09_bodies_of_twelve_mebibytes_each_way() -> Result<()> {
    let stage = Stage::new("a09_bodies")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _apps = (Http1App::start(pod, any(1), "pod")?, Http2App::start(pod, any(2), "pod")?);
    let _locals =
        (Http1App::start(&stage.laptop, any(1), "laptop")?, Http2App::start(&stage.laptop, any(2), "laptop")?);
    let agent = Agent::start(pod, &Rule::file(&[stage.header("a09", &[1, 2])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["1", "2"]).await?;

    let mut http1 = Http1Caller::connect(caller, pod.at(1)).await?;
    let http2 = Http2Caller::connect(caller, pod.at(2)).await?;
    for (seed, (header, by)) in [(OTHER, "pod"), (MATCHING, "laptop")].into_iter().enumerate() {
        let body = pattern::body(u64::try_from(seed)?, 12 * MIB);
        for request in [request("POST", "/", &[header], &body), chunked(header, &body)] {
            http1.send(&request).await?;
            let response = http1.response("POST").await?;
            ensure!(response.answered_by() == Some(by), "{header:?}: {:?}", response.answered_by());
            ensure!(response.request_seen() == request, "{header:?}: not the bytes that were sent");
        }
        let response = http2.call("POST", "/", &[header], Bytes::from(body.clone())).await?;
        ensure!(response.answered_by() == Some(by), "HTTP/2, {header:?}: {:?}", response.answered_by());
        ensure!(response.content_seen() == body, "HTTP/2, {header:?}: not the bytes that were sent");
    }
    stage.finish()
}

/// Chunks of all sizes, in the spelling of a server nobody knows.
fn chunked(header: (&str, &str), body: &[u8]) -> Vec<u8> {
    let (name, value) = header;
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\n{name}: {value}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut request = head.into_bytes();
    let (mut rest, mut size) = (body, 1);
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(size.min(rest.len()));
        request.extend_from_slice(format!("{:06X};x=y\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
        (rest, size) = (behind, (size * 3 + 1) % 300_000);
    }
    request.extend_from_slice(b"0\r\nX-Trailer: end\r\n\r\n");
    request
}
