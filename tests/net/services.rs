//! Tests of the demo's services.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};
use sluice_tests::{Host, Lab, Process, binaries, peers::http1::Http1Caller};

const SOON: Duration = Duration::from_secs(10);

async fn start(host: &Host, name: &str, arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new(binaries::find(name)?);
    command.args(arguments);
    let process = host.spawn(command)?;
    process.printed("is ready", SOON).await?;
    Ok(process)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn tictac_counts_through_add_and_hands_on_who_added() -> Result<()> {
    let lab = Lab::new("services")?;
    let (caller, pod, other) =
        (lab.host("caller").build()?, lab.host("tictac").build()?, lab.host("add").v4("10.88.0.1").build()?);
    lab.connect(&caller, &pod)?;
    lab.connect(&pod, &other)?;
    let add = start(&other, "add", &["--signed", "laptop"]).await?;
    let url = format!("http://{}", other.at(9090));
    let tictac = start(&pod, "tictac", &["--add", &url]).await?;

    let mut http = Http1Caller::connect(&caller, pod.at(8080)).await?;
    ensure!(http.get("/tac", &[]).await?.body == br#"{"value":0}"#);
    for value in 1..4 {
        let tic = http.call("POST", "/tic", &[("x-user", "adam")], b"").await?;
        ensure!(tic.status == 200 && tic.answered_by() == Some("laptop"), "{tic:?}");
        ensure!(tic.body == format!(r#"{{"value":{value}}}"#).as_bytes());
    }
    ensure!(http.get("/tic", &[]).await?.status == 405);
    ensure!(http.get("/", &[]).await?.status == 404);

    let mut http_to_add = Http1Caller::connect(&pod, other.at(8080)).await?;
    let sum = http_to_add.call("POST", "/sum", &[], br#"{"a": 1, "b": 2}"#).await?;
    ensure!(sum.body == br#"{"sum":3}"# && sum.answered_by() == Some("laptop"), "{sum:?}");
    ensure!(http_to_add.call("POST", "/sum", &[], b"1+2").await?.status == 400);

    // With a caller's connection still open.
    ensure!(add.terminate(SOON).await?.success(), "add: {}", add.output());
    let tic = http.call("POST", "/tic", &[], b"").await?;
    ensure!(tic.status == 502 && String::from_utf8_lossy(&tic.body).contains("connecting to add"), "{tic:?}");
    ensure!(http.get("/tac", &[]).await?.body == br#"{"value":3}"#, "counted without add");
    ensure!(tictac.terminate(SOON).await?.success(), "tictac: {}", tictac.output());
    lab.finish()
}
