//! `call`: a caller inside a cluster, for tests and the demo: sends requests and tells who answered.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use http::Uri;
use serde::Serialize;
use sluice_tests::{demo, peers::http1::Http1Caller};
use tokio::net::TcpStream;

/// No request takes longer, or it has failed.
const LIMIT: Duration = Duration::from_secs(30);

/// Errors that are told word for word.
const TOLD: usize = 5;

/// Sends `POST` requests and prints one JSON document: who answered how many, how many failed, the slowest, and when the
/// one who answers changed
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Where to, `http://HOST:PORT/PATH`
    #[arg(required_unless_present = "idle")]
    to: Option<Uri>,
    /// A header, `NAME: VALUE`; may be repeated. `{n}` stands for the number of the request, modulo `--spread`
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// See `--header`
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    spread: u32,
    /// Who must answer, with `{n}` as in `--header`; other answers count as failed
    #[arg(long)]
    expect: Option<String>,
    /// How many requests
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// How many at a time
    #[arg(long, default_value_t = 1)]
    parallel: u32,
    /// Instead of a number of requests: as many as fit into so many seconds
    #[arg(long, value_name = "SECONDS")]
    during: Option<f32>,
    /// Pause between two requests, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    every: u64,
    /// All requests over one connection for each of `--parallel`, instead of one for each request
    #[arg(long)]
    keep_alive: bool,
    /// Do nothing until SIGTERM: keeps a pod alive, in which others are started
    #[arg(long)]
    idle: bool,
}

/// What is told.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    answers: BTreeMap<String, u32>,
    failed: u32,
    errors: Vec<String>,
    slowest_ms: u128,
    /// Milliseconds since the start, and who answered from then on.
    changes: Vec<(u128, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.idle {
        demo::stop_on_signal()?.cancelled().await;
        return Ok(());
    }
    let to = arguments.to.clone().context("no address")?;
    let authority = to.authority().context("the address has no host")?.clone();
    let address = tokio::net::lookup_host((authority.host(), authority.port_u16().unwrap_or(80))).await?.next();
    let address = address.context("the host has no address")?;
    let shared = Arc::new(Shared { arguments, host: authority.to_string(), path: to.path().to_owned(), address });
    let (told, left) = (Arc::new(Mutex::new(Told::default())), Arc::new(Mutex::new(shared.arguments.count)));
    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..shared.arguments.parallel.max(1) {
        let (shared, told, left) = (shared.clone(), told.clone(), left.clone());
        callers.spawn(async move { shared.call(&told, &left, began).await });
    }
    callers.join_all().await;
    let told = told.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{}", serde_json::to_string(&*told)?);
    Ok(())
}

struct Shared {
    arguments: Arguments,
    host: String,
    path: String,
    address: SocketAddr,
}

// === impl Shared ===

impl Shared {
    async fn call(&self, told: &Mutex<Told>, left: &Mutex<u32>, began: Instant) {
        let mut kept = None;
        while let Some(number) = self.next(left, began) {
            let start = Instant::now();
            let outcome = tokio::time::timeout(LIMIT, self.request(number % self.arguments.spread, &mut kept)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {} s", LIMIT.as_secs())));
            if outcome.is_err() {
                kept = None;
            }
            told.lock().unwrap_or_else(PoisonError::into_inner).add(outcome, start.elapsed(), began.elapsed());
            tokio::time::sleep(Duration::from_millis(self.arguments.every)).await;
        }
    }

    /// The number of the next request, if there is one more.
    fn next(&self, left: &Mutex<u32>, began: Instant) -> Option<u32> {
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let (more, next) = match self.arguments.during {
            Some(seconds) => (began.elapsed().as_secs_f32() < seconds, left.wrapping_sub(1)),
            None => (*left > 0, left.saturating_sub(1)),
        };
        *left = next;
        more.then_some(next)
    }

    async fn request(&self, number: u32, kept: &mut Option<Http1Caller>) -> Result<String> {
        let number = number.to_string();
        let mut caller = match kept.take() {
            Some(caller) => caller,
            None => Http1Caller::over(TcpStream::connect(self.address).await.context("connecting")?)?,
        };
        let numbered: Vec<_> = self.arguments.headers.iter().map(|header| header.replace("{n}", &number)).collect();
        let pairs = numbered.iter().filter_map(|header| header.split_once(": "));
        let mut headers: Vec<_> = [("host", self.host.as_str())].into_iter().chain(pairs).collect();
        if !self.arguments.keep_alive {
            headers.push(("connection", "close"));
        }
        let response = caller.call("POST", &self.path, &headers, br#"{"a":1,"b":2}"#).await?;
        let status = response.status;
        let who = response.answered_by().map(str::to_owned);
        ensure!(status == 200, "status {status}: {}", String::from_utf8_lossy(&response.body).trim());
        if self.arguments.keep_alive {
            *kept = Some(caller);
        }
        let who = who.context("an answer without signature")?;
        let expected = self.arguments.expect.as_ref().map(|expected| expected.replace("{n}", &number));
        ensure!(expected.as_ref().is_none_or(|expected| *expected == who), "answered by {who} instead of {expected:?}");
        Ok(who)
    }
}

// === impl Told ===

impl Told {
    fn add(&mut self, outcome: Result<String>, took: Duration, now: Duration) {
        self.slowest_ms = self.slowest_ms.max(took.as_millis());
        match outcome {
            Ok(who) => {
                *self.answers.entry(who.clone()).or_default() += 1;
                if self.changes.last().is_none_or(|(_, last)| *last != who) {
                    self.changes.push((now.as_millis(), who));
                }
            }
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < TOLD {
                    self.errors.push(format!("at {} ms: {error:#}", now.as_millis()));
                }
            }
        }
    }
}
