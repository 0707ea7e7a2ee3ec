//! b08: HTTP/2 with prior knowledge and after `Upgrade: h2c`, decided request by request, with servers of others.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, Host, Process, eventually,
    peers::{http1::Http1App, http1::Http1Caller, http2::Http2App, http2::Http2Caller},
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{PORT, SOON, any};

/// Where `nghttpd` is, behind an `nghttpx` that accepts upgrades on [`PORT`].
const BEHIND: u16 = 8083;

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_prior_knowledge_is_decided_request_by_request_and_stays_http2() -> Result<()> {
    let stage = Stage::new("b08_prior")?;
    // Both speak nothing but HTTP/2: had the agent downgraded a request, nobody would have answered it.
    let app = Http2App::start(&stage.pod, any(PORT), "pod")?;
    let local = Http2App::start(&stage.laptop, any(PORT), "laptop")?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b08", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    for to in [stage.pod.at(PORT), stage.pod.at_v6(PORT)?] {
        let caller = Http2Caller::connect(&stage.caller, to).await?;
        for _ in 0..10 {
            for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
                let response = caller.get("/path?query", &[header, ("x-empty", "")]).await?;
                ensure!(response.answered_by() == Some(by), "{response:?} instead of {by}");
            }
        }
    }
    ensure!(app.connections().len() == 2 && local.connections().len() == 2, "one connection became several");
    ensure!(app.requests().len() == 20 && local.requests().len() == 20);
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_a_server_that_greets_before_its_caller_is_still_http2() -> Result<()> {
    let stage = Stage::new("b08_greets")?;
    let _servers = [serve(&stage, &stage.pod, "pod", PORT).await?, serve(&stage, &stage.laptop, "laptop", PORT).await?];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b08", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod"), (MATCHING, "laptop")] {
        let (body, version) = curl(&stage, "--http2-prior-knowledge", &[header])?;
        ensure!(body == [by] && version == ["2"], "{body:?} over HTTP/{version:?} instead of {by}");
    }
    ensure!(agent.counter("wires").await? == 0, "taken for another protocol");
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_an_upgraded_connection_is_decided_request_by_request() -> Result<()> {
    let stage = Stage::new("b08_h2c")?;
    let mut servers = Vec::new();
    for (host, name) in [(&stage.pod, "pod"), (&stage.laptop, "laptop")] {
        servers.push(serve(&stage, host, name, BEHIND).await?);
        servers.push(upgrading(host).await?);
    }
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b08", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    // Whoever answers the request that upgrades: the others of the connection go their own ways.
    for headers in [[OTHER, MATCHING, OTHER, MATCHING], [MATCHING, OTHER, MATCHING, OTHER]] {
        let before = agent.counter("accepted").await?;
        let (bodies, versions) = curl(&stage, "--http2", &headers)?;
        let wanted = headers.map(|header| if header == MATCHING { "laptop" } else { "pod" });
        ensure!(bodies == wanted, "{bodies:?} instead of {wanted:?}");
        ensure!(versions == ["2"; 4], "HTTP/{versions:?}: not upgraded");
        ensure!(agent.counter("accepted").await? == before + 1, "curl has used more than one connection");
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b08_an_app_that_ignores_the_upgrade_goes_on_in_http1() -> Result<()> {
    let stage = Stage::new("b08_ignored")?;
    let _app = Http1App::start(&stage.pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b08", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let upgrade =
        [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA")];
    let mut caller = Http1Caller::connect(&stage.caller, stage.pod.at(PORT)).await?;
    for (header, by) in [(OTHER, "pod"), (MATCHING, "laptop"), (OTHER, "pod")] {
        let response = caller.get("/", &[&upgrade[..], &[header]].concat()).await?;
        ensure!(response.answered_by() == Some(by), "{response:?} instead of {by}");
        ensure!(
            String::from_utf8_lossy(response.request_seen()).contains("HTTP2-Settings: AAMA"),
            "the request was changed"
        );
    }
    stage.finish()
}

/// `nghttpd`, which has one file that says its name. It greets each caller with `SETTINGS` before it has heard anything.
async fn serve(stage: &Stage, host: &Host, name: &str, port: u16) -> Result<Process> {
    let folder = stage.lab.folder().join(format!("{name}-files"));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("index.html"), format!("{name}\n"))?;
    let mut command = Command::new("nghttpd");
    command.arg("--no-tls").arg("-d").arg(Path::new(&folder)).arg(port.to_string());
    listening(host, command, port).await
}

/// `nghttpx` on [`PORT`], which takes HTTP/1 and upgrades, in front of the server on [`BEHIND`].
async fn upgrading(host: &Host) -> Result<Process> {
    let mut command = Command::new("nghttpx");
    command.arg(format!("--frontend=*,{PORT};no-tls")).arg(format!("--backend=127.0.0.1,{BEHIND};;proto=h2"));
    command.args(["--no-server-rewrite", "--workers=1", "--conf=/dev/null"]);
    listening(host, command, PORT).await
}

async fn listening(host: &Host, command: Command, port: u16) -> Result<Process> {
    let process = host.spawn(command)?;
    eventually(SOON, "the server listens", || async { host.connect(host.at(port)).await.is_ok() }).await?;
    Ok(process)
}

/// Requests with these headers, one after the other over one connection if curl can; bodies and versions in order.
fn curl(stage: &Stage, how: &str, headers: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>)> {
    let url = format!("http://{}/index.html", stage.pod.at(PORT));
    let fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let mut arguments = Vec::new();
    for (number, field) in fields.iter().enumerate() {
        if number > 0 {
            arguments.push("--next");
        }
        arguments.extend(["--silent", "--show-error", "--max-time", "10", how, "--header", field.as_str()]);
        arguments.extend(["--write-out", "HTTP/%{http_version}\n", url.as_str()]);
    }
    let printed = stage.caller.tool("curl", &arguments).context("curl")?;
    let (versions, bodies): (Vec<_>, Vec<_>) = printed.lines().partition(|line| line.starts_with("HTTP/"));
    let versions = versions.iter().filter_map(|line| line.strip_prefix("HTTP/")).map(str::to_owned).collect();
    Ok((bodies.into_iter().map(str::to_owned).collect(), versions))
}
