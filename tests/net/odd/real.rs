//! b12 with servers that many apps are made with: nginx, Python's and Node's. A pool of callers sends them requests of all
//! kinds through a rule that one in five fits, and keeps its connections as long as the servers let it.

mod callers;

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, Process,
    peers::http1::{Answer, Http1App, Request},
};

use crate::{Ruled, SOON, any};

const PORT: u16 = 8086;

/// Where nginx finds what it is in front of.
const BEHIND: u16 = 8087;

/// Sends a request's body back, and closes connections now and then.
const PYTHON: &str = include_str!("real/server.py");
const NODE: &str = include_str!("real/server.js");

/// What the servers answer, from an app of the tests: the request's body, in chunks or with a length.
fn echo(name: &str, request: &Request) -> Answer {
    let body = &request.body[..];
    let (framing, body) = if body.len() % 2 == 1 {
        let size = format!("{:x}\r\n", body.len());
        ("Transfer-Encoding: chunked".to_owned(), [size.as_bytes(), body, b"\r\n0\r\n\r\n"].concat())
    } else {
        (format!("Content-Length: {}", body.len()), body.to_vec())
    };
    let target = &request.target;
    let head = format!("HTTP/1.1 200 OK\r\nX-Answered-By: {name}\r\nX-Target: {target}\r\n{framing}\r\n\r\n");
    let body = if request.method == "HEAD" { Vec::new() } else { body };
    Answer::new([head.into_bytes(), body].concat())
}

async fn play(name: &str, start: impl AsyncFnOnce(&Host) -> Result<Process>) -> Result<()> {
    let ruled = Box::pin(Ruled::set(name, &[PORT])).await?;
    let local = Http1App::with(&ruled.stage.laptop, any(PORT), "laptop", echo)?;
    let server = Box::pin(start(&ruled.stage.pod)).await?;
    let taken = Box::pin(callers::call(&ruled.stage.caller, ruled.stage.pod.at(PORT))).await?;
    ensure!(local.requests().len() == taken, "{} requests at the laptop, {taken} fit", local.requests().len());
    ensure!(server.is_running(), "the server has ended");
    let complaints = server.output();
    ensure!(!complaints.contains("rror"), "the server complains: {complaints}");
    Box::pin(ruled.works()).await?;
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_nginx_under_a_rule_for_requests() -> Result<()> {
    let mut behind = None;
    play("b12_nginx", async |host| {
        behind = Some(Http1App::with(host, any(BEHIND), "pod", echo)?);
        let folder = host.folder().join("nginx");
        fs::create_dir(&folder)?;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};"));
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr warn; events {{ worker_connections 512; }}\n\
             http {{ access_log off; client_max_body_size 0; {}\n\
             server {{ listen [::]:{PORT} ipv6only=off; keepalive_requests 100;\n\
             location / {{ proxy_pass http://127.0.0.1:{BEHIND}; proxy_http_version 1.1; proxy_set_header Connection '';\n\
             client_body_buffer_size 256k; proxy_buffers 16 64k; proxy_buffer_size 64k; }} }} }}\n",
            temporary.join(" ")
        );
        fs::write(folder.join("nginx.conf"), config)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&folder).args(["-c", "nginx.conf", "-e", "stderr"]);
        listening(host, command).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_a_blocking_python_server_under_a_rule_for_requests() -> Result<()> {
    play("b12_python", async |host| {
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON, &PORT.to_string()]);
        let server = host.spawn(command)?;
        server.printed("listening", SOON).await?;
        Ok(server)
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_nodes_server_under_a_rule_for_requests() -> Result<()> {
    play("b12_node", async |host| {
        let mut command = Command::new("node");
        command.args(["-e", NODE, &PORT.to_string()]);
        let server = host.spawn(command)?;
        server.printed("listening", SOON).await?;
        Ok(server)
    })
    .await
}

/// A server that says nothing when it listens.
async fn listening(host: &Host, command: Command) -> Result<Process> {
    let server = host.spawn(command)?;
    // Asked of the kernel: a connection from here would be the agent's.
    sluice_tests::eventually(SOON, "the server listens", || async {
        let listed = host.tool("ss", &["-tlnH", "sport", "=", &format!(":{PORT}")]).unwrap_or_default();
        if listed.is_empty() { Err(server.output()) } else { Ok(()) }
    })
    .await
    .context("the server")?;
    Ok(server)
}
