//! HTTP/2: an app that says who it is, and a caller with one connection, both on the `h2` crate.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_util::task::AbortOnDropHandle;

use super::ANSWERED_BY;
use crate::Host;

/// An HTTP/2 app (prior knowledge). It answers each request with its name, in a header, in the first line of the body
/// and in a trailer; the rest of the body is the request's. It ends when this is dropped.
#[derive(Debug)]
pub struct Http2App {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    connections: Arc<Mutex<Vec<SocketAddr>>>,
    _task: AbortOnDropHandle<()>,
}

/// A request as an app got it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which of the app's connections it came over, from 0.
    pub connection: usize,
    /// `:method`.
    pub method: Method,
    /// `:scheme`, `:authority` and `:path`.
    pub uri: Uri,
    /// Fields.
    pub headers: HeaderMap,
    /// Content.
    pub body: Bytes,
    /// Trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

/// A caller with one connection; clones share it.
#[derive(Clone, Debug)]
pub struct Http2Caller {
    send: SendRequest<Bytes>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// A response as a caller got it.
#[derive(Clone, Debug)]
pub struct Response {
    /// `:status`.
    pub status: u16,
    /// Fields.
    pub headers: HeaderMap,
    /// Content.
    pub body: Bytes,
    /// Trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

// === impl Http2App ===

impl Http2App {
    /// Listens inside a host.
    pub fn start(host: &Host, on: SocketAddr, name: &str) -> Result<Self> {
        Self::with(host, on, name, h2::server::Builder::new())
    }

    /// The same with settings of its own.
    pub fn with(host: &Host, on: SocketAddr, name: &str, settings: h2::server::Builder) -> Result<Self> {
        let listener = host.listen(on)?;
        let address = listener.local_addr()?;
        let name = HeaderValue::from_str(name)?;
        let app = Arc::new(App { name, settings, seen: Arc::default(), connections: Arc::default() });
        let (seen, connections) = (Arc::clone(&app.seen), Arc::clone(&app.connections));
        let task = AbortOnDropHandle::new(tokio::spawn(app.accept(listener)));
        Ok(Self { address, seen, connections, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, in the order in which they were complete.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.seen).clone()
    }

    /// The other ends of all connections so far, in the order in which they came.
    pub fn connections(&self) -> Vec<SocketAddr> {
        lock(&self.connections).clone()
    }
}

#[derive(Debug)]
struct App {
    name: HeaderValue,
    settings: h2::server::Builder,
    seen: Arc<Mutex<Vec<Request>>>,
    connections: Arc<Mutex<Vec<SocketAddr>>>,
}

// === impl App ===

impl App {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = tokio::task::JoinSet::new();
        while let Ok((stream, peer)) = listener.accept().await {
            while tasks.try_join_next().is_some() {}
            let number = {
                let mut connections = lock(&self.connections);
                connections.push(peer);
                connections.len() - 1
            };
            let app = Arc::clone(&self);
            tasks.spawn(async move {
                let _ = stream.set_nodelay(true);
                // A caller that breaks off is none of the app's business; what it got is in the record.
                let _ = app.serve(stream, number).await;
            });
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self: Arc<Self>, stream: S, connection: usize) -> Result<()> {
        let mut server = self.settings.handshake::<_, Bytes>(stream).await?;
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(accepted) = server.accept().await {
            let (request, respond) = accepted?;
            let app = Arc::clone(&self);
            tasks.spawn(async move { app.answer(request, respond, connection).await });
        }
        Ok(())
    }

    async fn answer(
        &self,
        request: http::Request<RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
        connection: usize,
    ) -> Result<()> {
        let (parts, mut stream) = request.into_parts();
        let (body, trailers) = read_all(&mut stream).await?;
        let record = Request {
            connection,
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            body: body.clone(),
            trailers,
        };
        lock(&self.seen).push(record);
        let response = http::Response::builder().header(ANSWERED_BY, &self.name).body(())?;
        let mut send = respond.send_response(response, false)?;
        send_all(&mut send, [self.name.as_bytes(), b"\n", &body].concat().into()).await?;
        send.send_trailers(HeaderMap::from_iter([(ANSWERED_BY.parse()?, self.name.clone())]))?;
        Ok(())
    }
}

// === impl Http2Caller ===

impl Http2Caller {
    /// Connects from inside a host, with prior knowledge.
    pub async fn connect(host: &Host, to: SocketAddr) -> Result<Self> {
        let stream = host.connect(to).await?;
        stream.set_nodelay(true)?;
        Self::over(stream).await
    }

    /// Speaks HTTP/2 over a connection that exists.
    pub async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Self> {
        Self::with(stream, &h2::client::Builder::new()).await
    }

    /// The same with settings of its own.
    pub async fn with<S>(stream: S, settings: &h2::client::Builder) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = settings.handshake(stream).await?;
        let task = tokio::spawn(async move {
            // Its errors reach the caller through the requests.
            let _ = connection.await;
        });
        Ok(Self { send, _task: Arc::new(AbortOnDropHandle::new(task)) })
    }

    /// Sends a request without a body and waits for the response.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.call("GET", path, headers, Bytes::new()).await
    }

    /// Sends a request and waits for the whole response.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Response> {
        let mut request = http::Request::builder().method(method).uri(format!("http://app.test{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, mut send) = self.open(request.body(())?, body.is_empty()).await?;
        if !body.is_empty() {
            send_all(&mut send, body).await?;
            send.send_data(Bytes::new(), true)?;
        }
        let (parts, mut stream) = response.await.context("waiting for the response")?.into_parts();
        let (body, trailers) = read_all(&mut stream).await?;
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
    }

    /// Opens a stream and leaves everything else to the test.
    pub async fn open(
        &self,
        request: http::Request<()>,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>)> {
        let mut send = self.send.clone().ready().await.context("waiting for a free stream")?;
        Ok(send.send_request(request, end)?)
    }
}

// === impl Response ===

impl Response {
    /// Who answered: the app's name, or nothing when no app of the tests did.
    pub fn answered_by(&self) -> Option<&str> {
        self.headers.get(ANSWERED_BY)?.to_str().ok()
    }

    /// The request's content as [`Http2App`] got it.
    pub fn content_seen(&self) -> &[u8] {
        let newline = self.body.iter().position(|&byte| byte == b'\n');
        newline.map_or(&[], |at| &self.body[at + 1..])
    }
}

/// Reads a message's content and trailers, giving back what the flow control took.
pub async fn read_all(stream: &mut RecvStream) -> Result<(Bytes, Option<HeaderMap>)> {
    let mut content = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        content.extend_from_slice(&data);
    }
    Ok((content.into(), stream.trailers().await?))
}

/// Sends content as fast as the other side's flow control allows, without ending the stream.
pub async fn send_all(send: &mut h2::SendStream<Bytes>, mut content: Bytes) -> Result<()> {
    while !content.is_empty() {
        send.reserve_capacity(content.len());
        let room = std::future::poll_fn(|context| send.poll_capacity(context)).await;
        let room = room.context("the stream was closed")??;
        send.send_data(content.split_to(room.min(content.len())), false)?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
