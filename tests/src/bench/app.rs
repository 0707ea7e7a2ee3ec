//! The benchmark's app: small answers over HTTP/1, HTTP/2 and gRPC, as quickly as common libraries give them.
//!
//! A process of its own inside the pod, and one on the laptop, with two threads that share the connections evenly. HTTP/1
//! and HTTP/2 are hyper's, gRPC is tonic's: what an efficient app of today is made of, and what Sluice's targets were
//! measured with. Besides, a responder that does nothing but write prepared bytes (`prepared`).

mod prepared;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    thread,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::{Request, Status, Streaming, transport::Server};

use super::{BODY, CEILING, Case};
use crate::peers::grpc::{
    Words,
    service::talk_server::{Talk, TalkServer},
};

/// Signature of the app in the pod.
pub const POD: &str = "pod";

/// Signature of the app on the laptop.
pub const LAPTOP: &str = "laptop";

/// The line by which it says that it listens.
pub(super) const READY: &str = "the app is ready";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Http2,
    Grpc,
    PreparedHttp1,
    PreparedHttp2,
}

/// What a thread serves connections with.
#[derive(Clone)]
struct Service {
    body: Bytes,
    /// this thread --connections--> tonic, which wants a stream of them. Unbounded: they have been accepted already.
    grpc_tx: mpsc::UnboundedSender<Result<TcpStream, Infallible>>,
}

/// The gRPC service.
struct Words64(String);

/// The body of an answer: begins with the signature.
pub(super) fn body(signed: &str) -> String {
    format!("{signed:.<BODY$}")
}

/// Serves until the process ends.
pub fn run(signed: &str) -> Result<()> {
    let ports = [(Case::Http1, Protocol::Http1), (Case::Http2, Protocol::Http2), (Case::Grpc, Protocol::Grpc)];
    let ports = ports.into_iter().flat_map(|(case, protocol)| {
        let ports = case.ports();
        [Some(ports.steered), Some(ports.direct), ports.inserted]
            .into_iter()
            .flatten()
            .map(move |port| (port, protocol))
    });
    let [(_, ceiling1), (_, ceiling2)] = CEILING;
    let ports = ports.chain([(ceiling1, Protocol::PreparedHttp1), (ceiling2, Protocol::PreparedHttp2)]);
    let listeners = ports.map(|(port, protocol)| Ok((listen(port)?, protocol))).collect::<Result<Vec<_>>>()?;
    let body = Bytes::from(body(signed));

    // this thread --connections of the other one--> the other one. Unbounded: they have been accepted already.
    let (other_tx, mut other_rx) = mpsc::unbounded_channel::<(StdStream, Protocol)>();
    let other_body = body.clone();
    let other = thread::Builder::new().name("app-2".to_owned()).spawn(move || {
        runtime()?.block_on(async {
            let service = Service::start(other_body);
            while let Some((stream, protocol)) = other_rx.recv().await {
                // Fails only for a connection that has broken, which its caller sees.
                if let Ok(stream) = TcpStream::from_std(stream) {
                    service.serve(stream, protocol);
                }
            }
            Ok::<_, anyhow::Error>(())
        })
    })?;
    runtime()?.block_on(async {
        let service = Service::start(body);
        for (listener, protocol) in listeners {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(accept(listener, protocol, service.clone(), other_tx.clone()));
        }
        drop(other_tx);
        eprintln!("{READY}");
        std::future::pending::<Result<()>>().await
    })?;
    other.join().map_err(|_| anyhow::anyhow!("the app's second thread panicked"))?
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A listener on all of the host's IPv4 addresses.
fn listen(port: u16) -> Result<StdListener> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(SocketProtocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("listening on {address}"))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts for ever and gives every second connection to the other thread: how they are shared is no matter of luck.
async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    service: Service,
    other_tx: mpsc::UnboundedSender<(StdStream, Protocol)>,
) {
    let mut own = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("cannot accept: {error}");
                tokio::task::yield_now().await;
                continue;
            }
        };
        // Both fail only for a connection that has broken, which its caller sees.
        let _ = stream.set_nodelay(true);
        own = !own;
        if own {
            service.serve(stream, protocol);
        } else if let Ok(stream) = stream.into_std() {
            let _ = other_tx.send((stream, protocol));
        }
    }
}

// === impl Service ===

impl Service {
    /// To be called inside a runtime.
    fn start(body: Bytes) -> Self {
        let (grpc_tx, grpc_rx) = mpsc::unbounded_channel();
        let words = Words64(String::from_utf8_lossy(&body).into_owned());
        let incoming = stream::unfold(grpc_rx, |mut grpc_rx| async move { Some((grpc_rx.recv().await?, grpc_rx)) });
        tokio::spawn(async move {
            let served = Server::builder().add_service(TalkServer::new(words)).serve_with_incoming(incoming).await;
            if let Err(error) = served {
                eprintln!("gRPC ended: {error}");
            }
        });
        Self { body, grpc_tx }
    }

    /// Serves a connection until it ends. That it may end in any way is the caller's business.
    fn serve(&self, stream: TcpStream, protocol: Protocol) {
        let body = self.body.clone();
        match protocol {
            Protocol::Http1 => {
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answers(body)));
            }
            Protocol::Http2 => {
                let server = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answers(body)));
            }
            Protocol::Grpc => drop(self.grpc_tx.send(Ok(stream))),
            Protocol::PreparedHttp1 => drop(tokio::spawn(prepared::http1(stream, body))),
            Protocol::PreparedHttp2 => drop(tokio::spawn(prepared::http2(stream, body))),
        }
    }
}

/// Answers every request with this body.
fn answers(
    body: Bytes,
) -> impl hyper::service::HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible, Future: Send> {
    service_fn(move |_| {
        let mut answer = Response::new(Full::new(body.clone()));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        std::future::ready(Ok(answer))
    })
}

// === impl Words64 ===

#[tonic::async_trait]
impl Talk for Words64 {
    type RepeatStream = stream::Empty<Result<Words, Status>>;
    type ChatStream = stream::Empty<Result<Words, Status>>;

    async fn say(&self, request: Request<Words>) -> Result<tonic::Response<Words>, Status> {
        let number = request.into_inner().number;
        Ok(tonic::Response::new(Words { text: self.0.clone(), number, by: String::new() }))
    }

    async fn gather(&self, _: Request<Streaming<Words>>) -> Result<tonic::Response<Words>, Status> {
        Err(Status::unimplemented("the benchmark makes unary calls"))
    }

    async fn repeat(&self, _: Request<Words>) -> Result<tonic::Response<Self::RepeatStream>, Status> {
        Err(Status::unimplemented("the benchmark makes unary calls"))
    }

    async fn chat(&self, _: Request<Streaming<Words>>) -> Result<tonic::Response<Self::ChatStream>, Status> {
        Err(Status::unimplemented("the benchmark makes unary calls"))
    }
}
