//! Servers that many apps are made with, in front of what the tests need: they send back what a request has in its body.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, Process, eventually,
    peers::http1::{Answer, Http1App, Request},
};

use crate::{SOON, any};

/// Where they listen.
pub(crate) const PORT: u16 = 8086;

/// Where nginx finds what it is in front of.
const BEHIND: u16 = 8087;

/// Sends a request's body back, and closes connections now and then.
const PYTHON: &str = include_str!("server.py");
const NODE: &str = include_str!("server.js");
const GO: &str = include_str!("server.go");

/// Where Go keeps what it has compiled, its own library above all: beside cargo's files, for all runs.
const GO_CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/go");

/// Long enough for Go to compile its own library first, on a busy machine.
const BUILT_WITHIN: Duration = Duration::from_secs(200);

/// One at a time: who comes second finds compiled what the first one needed too.
static BUILDING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What the servers answer, from an app of the tests: the request's body, in chunks or with a length.
pub(crate) fn echo(name: &str, request: &Request) -> Answer {
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

/// nginx, and the app that it asks.
pub(crate) async fn nginx(host: &Host) -> Result<(Process, Http1App)> {
    let behind = Http1App::with(host, any(BEHIND), "pod", echo)?;
    let folder = host.folder().join("nginx");
    fs::create_dir(&folder)?;
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};"));
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
    Ok((listening(host, command).await?, behind))
}

/// Python's server: a thread that blocks for each connection.
pub(crate) async fn python(host: &Host) -> Result<Process> {
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &PORT.to_string()]);
    saying(host, command).await
}

/// Node's server.
pub(crate) async fn node(host: &Host) -> Result<Process> {
    let mut command = Command::new("node");
    command.args(["-e", NODE, &PORT.to_string()]);
    saying(host, command).await
}

/// Go's server.
pub(crate) async fn go(host: &Host) -> Result<Process> {
    let mut command = Command::new(go_program(host.folder(), "server", GO).await?);
    command.arg(PORT.to_string());
    saying(host, command).await
}

/// Compiles a program of one file into a folder, with nothing but Go's own library.
pub(crate) async fn go_program(folder: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let (file, program) = (folder.join(format!("{name}.go")), folder.join(format!("go-{name}")));
    fs::write(&file, source)?;
    let _turn = BUILDING.lock().await;
    let mut command = tokio::process::Command::new("go");
    command.args(["build", "-o"]).arg(&program).arg(&file).current_dir(folder);
    // Nothing of a person's own settings, and nothing from elsewhere.
    command.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOTOOLCHAIN", "local").env("GOPROXY", "off");
    command.env("GOCACHE", GO_CACHE).env("GOPATH", folder.join("go-path")).env("CGO_ENABLED", "0");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let built = tokio::time::timeout(BUILT_WITHIN, command.output()).await;
    let built = built.with_context(|| format!("`go build` of {name}.go takes longer than {BUILT_WITHIN:?}"))?;
    let built = built.context("running `go` (package golang-go)")?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "`go build` of {name}.go failed with {}: {said}", built.status);
    Ok(program)
}

/// A server that says when it listens.
async fn saying(host: &Host, command: Command) -> Result<Process> {
    let server = host.spawn(command)?;
    server.printed("listening", SOON).await?;
    Ok(server)
}

/// A server that says nothing when it listens.
async fn listening(host: &Host, command: Command) -> Result<Process> {
    let server = host.spawn(command)?;
    // Asked of the kernel: a connection from here would be the agent's.
    eventually(SOON, "the server listens", || async {
        let listed = host.tool("ss", &["-tlnH", "sport", "=", &format!(":{PORT}")]).unwrap_or_default();
        if listed.is_empty() { Err(server.output()) } else { Ok(()) }
    })
    .await
    .context("the server")?;
    Ok(server)
}
