//! b10 with the real thing: PostgreSQL and Redis on a port with a rule for requests, and their own clients.

use std::{fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, Process,
    peers::raw::{RawApp, Script},
};

use crate::{Ruled, SOON, any};

const POSTGRES: u16 = 5432;
const REDIS: u16 = 6379;

/// Server programs may not run as root.
const AS_POSTGRES: [&str; 7] = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--pdeathsig", "KILL"];

/// A database server with no data, in a folder of the lab.
async fn postgres(host: &Host) -> Result<Process> {
    let folder = host.folder().join("postgres");
    let data = folder.to_str().context("the lab's folder is not UTF-8")?.to_owned();
    fs::create_dir(&folder)?;
    host.tool("chown", &["postgres", &data])?;
    let initdb = program("initdb")?;
    let initdb = initdb.to_str().context("not UTF-8")?;
    let made = ["-D", &data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "--locale", "C"];
    host.tool("setpriv", &[&AS_POSTGRES[..], &["--", initdb], &made].concat())?;
    fs::write(folder.join("pg_hba.conf"), "host all all all trust\nlocal all all trust\n")?;
    let mut command = Command::new("setpriv");
    command.args(AS_POSTGRES).arg("--").arg(program("postgres")?).args(["-D", &data, "-k", &data, "-h", "*"]);
    command.args(["-p", &POSTGRES.to_string(), "-c", "fsync=off"]);
    let process = host.spawn(command)?;
    process.printed("ready to accept connections", SOON).await?;
    Ok(process)
}

/// Where Debian keeps it: each version has a folder of its own.
fn program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("package postgresql is missing")?;
    let found = versions.flatten().map(|version| version.path().join("bin").join(name)).find(|path| path.exists());
    found.with_context(|| format!("no {name} under /usr/lib/postgresql"))
}

async fn redis(host: &Host) -> Result<Process> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &REDIS.to_string(), "--save", "", "--protected-mode", "no", "--bind", "*", "-::*"]);
    command.arg("--dir").arg(host.folder());
    let process = host.spawn(command)?;
    process.printed("Ready to accept connections", SOON).await?;
    Ok(process)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b10_postgresql_under_a_rule_for_requests() -> Result<()> {
    let ruled = Ruled::set("b10_postgres", &[POSTGRES]).await?;
    let laptop = RawApp::start(&ruled.stage.laptop, any(POSTGRES), Script::echo())?;
    let _server = postgres(&ruled.stage.pod).await?;
    let (host, port) = (ruled.stage.pod.address().to_string(), POSTGRES.to_string());
    let query = |sql: &str| {
        let connect = ["-X", "-h", &host, "-p", &port, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-Atc"];
        ruled.stage.caller.tool("psql", &[&connect[..], &[sql]].concat())
    };
    let begin = Instant::now();
    ensure!(query("select 6 * 7")? == "42\n");
    ensure!(begin.elapsed() < SOON / 5, "it took {:?}", begin.elapsed());
    // In a statement, what would be a request that fits the rule.
    let text = "GET / HTTP/1.1\r\nHost: app.test\r\nx-user: adam\r\n\r\n";
    ensure!(query(&format!("select '{text}'"))? == format!("{text}\n"));
    query("create table numbers as select n, repeat('x', 100) as filler from generate_series(1, 100000) n")?;
    let copied = query("copy numbers to stdout")?;
    ensure!(copied.lines().count() == 100_000 && copied.ends_with(&format!("100000\t{}\n", "x".repeat(100))));
    ensure!(query("select sum(n) from numbers")? == "5000050000\n");
    ensure!(laptop.connections().is_empty(), "the laptop has got something");
    ruled.works().await?;
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b10_redis_under_a_rule_for_requests() -> Result<()> {
    let ruled = Ruled::set("b10_redis", &[REDIS]).await?;
    let laptop = RawApp::start(&ruled.stage.laptop, any(REDIS), Script::echo())?;
    let _server = redis(&ruled.stage.pod).await?;
    let (host, port) = (ruled.stage.pod.address().to_string(), REDIS.to_string());
    let ask = |words: &[&str]| {
        ruled.stage.caller.tool("redis-cli", &[&["-h", &host, "-p", &port, "--no-raw"], words].concat())
    };
    let begin = Instant::now();
    ensure!(ask(&["PING"])? == "PONG\n");
    ensure!(begin.elapsed() < SOON / 5, "it took {:?}", begin.elapsed());
    let text = "GET / HTTP/1.1\r\nHost: app.test\r\nx-user: adam\r\n\r\n";
    ensure!(ask(&["SET", "request", text])? == "OK\n");
    ensure!(ask(&["STRLEN", "request"])? == format!("(integer) {}\n", text.len()));
    let large = "x".repeat(100_000);
    ensure!(ask(&["SET", "large", &large])? == "OK\n");
    ensure!(ask(&["GET", "large"])? == format!("\"{large}\"\n"));
    ensure!(ask(&["-r", "500", "INCR", "count"])?.ends_with("(integer) 500\n"));
    ensure!(laptop.connections().is_empty(), "the laptop has got something");
    ruled.works().await?;
    ruled.finish()
}
