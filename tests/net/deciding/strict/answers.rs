//! b05: answers that could be read in two ways. They pass as they are, and so does what is left of their requests; nothing
//! behind those goes anywhere but where it would without the agent.

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, eventually,
    peers::raw::{End, RawApp, RawCaller, Script},
};

use super::{
    super::stage::{PORT, SOON, on, on_stage, side},
    HIDDEN, same, wires,
};

const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
    "HTTP/1.1 200 OK\r\nX: \0\r\n\r\nabc",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: unasked\r\n\r\nabc",
    "HTTP/2 200 OK\r\n\r\nabc",
    "220 mail.test ESMTP\r\n",
    "\0\0\0",
];

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_answers_in_doubt_lose_nothing() -> Result<()> {
    on_stage("b05_answers", async |stage| {
        let mut seen_wires = 0;
        for answer in ANSWERS {
            for fits in [false, true] {
                let ((name, value), _) = side(fits);
                let request =
                    format!("POST / HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\nContent-Length: 10\r\n\r\n");
                let begun = format!("{request}begin").into_bytes();
                let whole = format!("{request}beginend..").into_bytes();
                let last = b"and more";
                // The answer begins before the request has ended, and goes on behind that.
                let app = Script::new().read(begun.len()).send(answer.as_bytes()).read(5).send(last).half_close();
                let (host, other) = if fits { (&stage.laptop, &stage.pod) } else { (&stage.pod, &stage.laptop) };
                let app = start(host, app).await?;
                let other = start(other, Script::new()).await?;
                let caller = Script::new().send(&begun).read(answer.len()).send(b"end..").read(last.len());
                let caller = caller.send(HIDDEN.as_bytes()).half_close();
                let caller = RawCaller::connect(&stage.caller, stage.app(), caller).await?;
                let seen = caller.ended(SOON).await.with_context(|| format!("{answer:?}, fits: {fits}"))?;
                let expected = [answer.as_bytes(), last].concat();
                ensure!(
                    seen.bytes == expected && seen.end == Some(End::Closed),
                    "{answer:?}, {fits}: the caller: {seen}"
                );
                let got = app.ended(0, SOON).await?;
                // What is hidden behind a request that was taken was not decided, so nobody gets it.
                let expected = if fits { whole } else { [&whole[..], HIDDEN.as_bytes()].concat() };
                same(&got, &expected).with_context(|| format!("{answer:?}, fits: {fits}"))?;
                let others = other.connections();
                ensure!(others.iter().all(|other| other.bytes.is_empty()), "{answer:?}, {fits}: {others:?}");
                seen_wires += u64::from(!fits);
                ensure!(wires(stage).await?["response"] == seen_wires, "{answer:?}: {:?}", wires(stage).await?);
            }
        }
        Ok(())
    })
    .await
}

/// The port is free again a moment after the one before has gone.
async fn start(host: &Host, script: Script) -> Result<RawApp> {
    eventually(SOON, "the port is free", || async { RawApp::start(host, on(PORT), script.clone()) }).await
}
