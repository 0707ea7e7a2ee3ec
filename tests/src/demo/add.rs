//! The service `add`: `POST /sum` over HTTP/1 and `Sum` over gRPC, on a port each. It signs what it answers.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use http::{HeaderValue, Method, Request as HttpRequest, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    metadata::AsciiMetadataValue,
    transport::{Server, server::TcpIncoming},
};

use super::{
    ANSWERED_BY, DRAIN,
    messages::{Adder, AdderServer, Summands, Total},
    web,
};

/// Where `add` listens and how it signs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of `POST /sum`.
    pub http: SocketAddr,
    /// Address of the gRPC service.
    pub grpc: SocketAddr,
    /// Signature of its answers.
    pub signed: String,
}

/// Serves until `stop`.
pub async fn run(options: &Options, stop: CancellationToken) -> Result<()> {
    let http_listener = listen(options.http).await?;
    let grpc_listener = listen(options.grpc).await?;
    eprintln!("add ({}) is ready: http {}, grpc {}", options.signed, options.http, options.grpc);
    let signature = HeaderValue::from_str(&options.signed).context("the signature is not fit for a header")?;
    let over_http = web::serve(http_listener, stop.clone(), move |request| answer(request, signature.clone()));
    let over_grpc = serve_grpc(grpc_listener, stop, &options.signed);
    tokio::try_join!(over_http, over_grpc)?;
    Ok(())
}

async fn answer(request: HttpRequest<Incoming>, signature: HeaderValue) -> web::Answer {
    if request.uri().path() == "/healthz" {
        return web::text(StatusCode::OK, "ok");
    }
    if request.uri().path() != "/sum" {
        return web::text(StatusCode::NOT_FOUND, "POST /sum is all there is");
    }
    if request.method() != Method::POST {
        return web::text(StatusCode::METHOD_NOT_ALLOWED, "POST, please");
    }
    let content = match web::content(request).await {
        Ok(content) => content,
        Err(refusal) => return refusal,
    };
    let summands: Summands = match serde_json::from_slice(&content) {
        Ok(summands) => summands,
        Err(error) => return web::text(StatusCode::BAD_REQUEST, &format!("not {{\"a\": 1, \"b\": 2}}: {error}")),
    };
    match add(summands) {
        Some(total) => web::json(&total, Some(signature)),
        None => web::text(StatusCode::BAD_REQUEST, "the sum is too large"),
    }
}

async fn serve_grpc(listener: TcpListener, stop: CancellationToken, signed: &str) -> Result<()> {
    let signature = signed.parse().context("the signature is not fit for metadata")?;
    let stopped = stop.clone();
    // For probes of Kubernetes, which ask by gRPC's own protocol for that.
    let (_health, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .add_service(health)
        .add_service(AdderServer::new(Service { signature }))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stopped.cancelled_owned());
    tokio::select! {
        served = server => served.context("serving gRPC"),
        // A caller that keeps its connection open does not keep the service alive.
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

#[derive(Debug)]
struct Service {
    signature: AsciiMetadataValue,
}

#[tonic::async_trait]
impl Adder for Service {
    async fn sum(&self, request: Request<Summands>) -> Result<Response<Total>, Status> {
        let total = add(request.into_inner()).ok_or_else(|| Status::out_of_range("the sum is too large"))?;
        let mut response = Response::new(total);
        response.metadata_mut().insert(ANSWERED_BY, self.signature.clone());
        Ok(response)
    }
}

fn add(summands: Summands) -> Option<Total> {
    summands.a.checked_add(summands.b).map(|sum| Total { sum })
}

async fn listen(on: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(on).await.with_context(|| format!("listening on {on}"))
}
