//! Health, metrics and status over HTTP on a loopback port.
//!
//! Runs as one task in the agent's thread. It only tells; nothing can be changed through it. [`await_rules`] asks it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use sluice_protocol::{control::PortWay, key::KeyHash};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

use crate::{
    connection::Shared,
    existing::Existing,
    hub::ClientStatus,
    insertion::{Insertion, Look},
    kernel::{Held, Kernel, KernelCounters, PortKey, ReadError},
    metrics::{Decision, Outcome},
};

/// Pause between two questions whether an agent is ready.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What the admin endpoint tells about.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) kernel: Arc<Mutex<Kernel>>,
    pub(crate) insertion: Arc<Insertion>,
    pub(crate) existing: Arc<Mutex<Existing>>,
    pub(crate) key_hash: KeyHash,
    pub(crate) tunnel: SocketAddr,
    pub(crate) rules: Arc<Mutex<RulesStatus>>,
    /// Whether it serves by rules: those of the file, or the first ones of the controller.
    pub(crate) ready: Arc<AtomicBool>,
}

/// Which rules are in force.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RulesStatus {
    /// How many versions have come into force.
    pub(crate) generation: u64,
    /// Why the newest version is not in force.
    pub(crate) error: Option<String>,
    /// Which way each port is intercepted.
    pub(crate) ways: Vec<PortWay>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: &'static str,
    key_hash: KeyHash,
    tunnel: SocketAddr,
    rules: RulesStatus,
    kernel: KernelStatus,
    insertion: InsertionStatus,
    clients: Vec<ClientStatus>,
    counters: Counters,
}

/// Ports at which the agent is inserted when it is needed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InsertionStatus {
    attached: bool,
    ports: Vec<u16>,
    devices: Vec<String>,
    passed: u64,
    held: u64,
    full: u64,
    late: u64,
    steered: u64,
    returned: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KernelStatus {
    attached: bool,
    ports: Vec<PortStatus>,
    exempt: Vec<ipnet::IpNet>,
    /// Why connections from before were not reset although a rule asks for it.
    reset_error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortStatus {
    port: u16,
    protocol: String,
    /// Open since before it was steered, and so not taken.
    existing_connections: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Counters {
    steered: u64,
    exempt: u64,
    own: u64,
    no_listener: u64,
    accepted: u64,
    open: i64,
    passed: u64,
    diverted: u64,
    unavailable_passed: u64,
    rejected: u64,
    failed: u64,
    wires: u64,
    copied: u64,
    lost: u64,
    keys_refused: u64,
}

// === impl Admin ===

impl Admin {
    /// Answers until dropped. Every task it starts is in `tasks`.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, tasks: TaskTracker) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors, most likely: give others a chance to free some.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let admin = self.clone();
            tasks.spawn(async move {
                let service = service_fn(|request| {
                    let response = admin.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                if let Err(error) = served.await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "an admin connection broke");
                }
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no rules yet, or stopping\n"),
            "/metrics" => self.metrics().unwrap_or_else(|error| failed(&error)),
            "/status" => self.status().unwrap_or_else(|error| failed(&error)),
            _ => text(StatusCode::NOT_FOUND, "/healthz /readyz /metrics /status\n"),
        }
    }

    /// What both kernel parts hold, with the counters of each.
    fn kernel(&self) -> Result<(Held, KernelCounters, Look), ReadError> {
        let flows = |source| ReadError::Map { map: sluice_ebpf_common::insertion::FLOWS_MAP, source };
        let look = self.insertion.look().map_err(flows)?;
        let kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = kernel.held()?;
        held.attached |= look.attached;
        held.ports.extend(look.ports.iter().copied().map(PortKey::tcp));
        Ok((held, kernel.counters()?, look))
    }

    /// Connections from before, as they are now.
    fn existing(&self) -> MutexGuard<'_, Existing> {
        let mut existing = self.existing.lock().unwrap_or_else(PoisonError::into_inner);
        existing.look();
        existing
    }

    fn metrics(&self) -> Result<Response<Full<Bytes>>, ReadError> {
        let (held, kernel, look) = self.kernel()?;
        let mut body = String::new();
        if self.shared.metrics.encode(&mut body).is_err() {
            return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"));
        }
        let mut add = |name: &str, kind: &str, help: &str, value: u64| {
            let suffix = if kind == "counter" { "_total" } else { "" };
            body += &format!(
                "# HELP sluice_agent_{name} {help}.\n# TYPE sluice_agent_{name} {kind}\nsluice_agent_{name}{suffix} {value}\n"
            );
        };
        add("kernel_steered", "counter", "Listener lookups that the kernel handed to the agent", kernel.steered);
        add("kernel_exempt", "counter", "Listener lookups from exempt sources", kernel.exempt);
        add("kernel_own", "counter", "Listener lookups of the agent's own connections to the app", kernel.own);
        add(
            "kernel_no_listener",
            "counter",
            "Listener lookups that found no listener of the agent",
            kernel.no_listener,
        );
        let flows = &look.counters;
        add("flows_passed", "counter", "Requests that the kernel proved to fit no rule", flows.passed);
        add("flows_held", "counter", "Requests that the kernel held for the agent", flows.held);
        add("flows_full", "counter", "Connections for which the kernel had no room", flows.full);
        add("flows_late", "counter", "Held requests that the kernel let go, as nobody took them", flows.late);
        add("flows_steered", "counter", "Connections steered because their beginning was not seen", flows.steered);
        add("flows_returned", "counter", "Inserted connections that went back", flows.returned);
        add("kernel_attached", "gauge", "Whether the kernel program is attached", u64::from(held.attached));
        add("kernel_ports", "gauge", "Ports that the kernel steers", held.ports.len() as u64);
        let (existing, ports) = (self.existing(), &held.ports);
        let existing = ports.iter().map(|port| existing.count(port.port) as u64).sum();
        add("kernel_existing", "gauge", "Connections from before their port was steered", existing);
        add("clients", "gauge", "Clients that are connected", self.shared.hub.clients().len() as u64);
        // The encoder ends its text with this line; what was added must come before it.
        let mut body = body.replace("# EOF\n", "");
        body.push_str("# EOF\n");
        let mut response = Response::new(Full::new(Bytes::from(body)));
        let kind = header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    fn status(&self) -> Result<Response<Full<Bytes>>, ReadError> {
        let (held, kernel, look) = self.kernel()?;
        let metrics = &self.shared.metrics;
        let existing = self.existing();
        let ports = held.ports.iter().map(|p| PortStatus {
            port: p.port,
            protocol: p.protocol.to_string(),
            existing_connections: existing.count(p.port),
        });
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            key_hash: self.key_hash,
            tunnel: self.tunnel,
            rules: self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            kernel: KernelStatus {
                attached: held.attached,
                ports: ports.collect(),
                exempt: held.exempt.into_iter().collect(),
                reset_error: existing.reset_error().map(str::to_owned),
            },
            insertion: InsertionStatus {
                attached: look.attached,
                ports: look.ports.into_iter().collect(),
                devices: look.devices,
                passed: look.counters.passed,
                held: look.counters.held,
                full: look.counters.full,
                late: look.counters.late,
                steered: look.counters.steered,
                returned: look.counters.returned,
            },
            clients: self.shared.hub.clients(),
            counters: Counters {
                steered: kernel.steered,
                exempt: kernel.exempt,
                own: kernel.own,
                no_listener: kernel.no_listener,
                accepted: metrics.accepted(),
                open: metrics.open_now(),
                passed: metrics.requests(Decision::Passed),
                diverted: metrics.requests(Decision::Diverted),
                unavailable_passed: metrics.requests(Decision::UnavailablePassed),
                rejected: metrics.requests(Decision::Rejected),
                failed: metrics.requests(Decision::Failed),
                wires: metrics.wires(),
                copied: metrics.copies(Outcome::Sent),
                lost: metrics.copies(Outcome::Lost),
                keys_refused: metrics.keys_refused(),
            },
        };
        let body = serde_json::to_vec(&status).unwrap_or_default();
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// Waits until the agent whose admin endpoint is `address` has rules. False when it has none after `limit`.
pub async fn await_rules(address: SocketAddr, limit: Duration) -> bool {
    let ready = async {
        while !matches!(is_ready(address).await, Ok(true)) {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    tokio::time::timeout(limit, ready).await.is_ok()
}

async fn is_ready(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

fn failed(error: &ReadError) -> Response<Full<Bytes>> {
    tracing::error!(error = error as &dyn std::error::Error, "the kernel's maps cannot be read");
    text(StatusCode::INTERNAL_SERVER_ERROR, "the kernel's maps cannot be read: see the log\n")
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}
