//! HTTP/1: an app that says who it is and shows what it got, and a caller that sends what it is given.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ANSWERED_BY, framing,
    framing::{Buffer, First, Length},
};
use crate::Host;

type Responder = dyn Fn(&str, &Request) -> Answer + Send + Sync;

/// An HTTP/1 app. It ends when this is dropped.
#[derive(Debug)]
pub struct Http1App {
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
    /// Method as sent.
    pub method: String,
    /// Target as sent.
    pub target: String,
    /// Fields in order and spelling as sent.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Every byte of the request, head and body.
    pub raw: Vec<u8>,
    /// The body without framing.
    pub body: Vec<u8>,
}

/// What an app does upon a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The response, every byte of it.
    pub raw: Vec<u8>,
    /// What becomes of the connection.
    pub then: Then,
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// The next request is awaited.
    KeepAlive,
    /// It is closed.
    Close,
    /// It is no HTTP any more (101): each piece of bytes is sent back.
    Echo,
}

/// A caller with one connection.
#[derive(Debug)]
pub struct Http1Caller {
    stream: TcpStream,
    buffer: Buffer,
}

/// A response as a caller got it.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Fields in order and spelling as they came.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body without framing.
    pub body: Vec<u8>,
    /// Trailers of a chunked body.
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Every byte of the response.
    pub raw: Vec<u8>,
}

// === impl Http1App ===

impl Http1App {
    /// An app that answers each request with its name, in a header and in the first line of the body, followed by the
    /// request's bytes.
    pub fn start(host: &Host, on: SocketAddr, name: &str) -> Result<Self> {
        Self::with(host, on, name, Answer::identity)
    }

    /// An app with answers of its own.
    pub fn with<R>(host: &Host, on: SocketAddr, name: &str, respond: R) -> Result<Self>
    where
        R: Fn(&str, &Request) -> Answer + Send + Sync + 'static,
    {
        Self::over(host.listen(on)?, name, respond)
    }

    /// The same on a listener that exists.
    pub fn over<R>(listener: TcpListener, name: &str, respond: R) -> Result<Self>
    where
        R: Fn(&str, &Request) -> Answer + Send + Sync + 'static,
    {
        let address = listener.local_addr()?;
        let app = Arc::new(App {
            name: name.to_owned(),
            respond: Box::new(respond),
            seen: Arc::default(),
            connections: Arc::default(),
        });
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

struct App {
    name: String,
    respond: Box<Responder>,
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
                // A caller that breaks off is none of the app's business; what it got is in the record.
                let _ = app.serve(stream, number).await;
            });
        }
    }

    async fn serve(&self, mut stream: TcpStream, connection: usize) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Buffer::default();
        while let Some(mut raw) = buffer.head(&mut stream).await? {
            let (first, headers) = framing::parse_request(&raw)?;
            let length = framing::length(&first, &headers, "")?;
            if length != Length::None && framing::value(&headers, "expect").is_some() {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            let body = buffer.body(&mut stream, length).await?;
            raw.extend_from_slice(&body.raw);
            let First::Request { method, target, minor } = first else { return Ok(()) };
            let request = Request { connection, method, target, headers, raw, body: body.content };
            let answer = (self.respond)(&self.name, &request);
            let asked_to_close = match framing::value(&request.headers, "connection") {
                Some(options) => options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")),
                None => minor == 0,
            };
            lock(&self.seen).push(request);
            stream.write_all(&answer.raw).await?;
            match answer.then {
                Then::KeepAlive if !asked_to_close => {}
                Then::KeepAlive | Then::Close => break,
                Then::Echo => {
                    stream.write_all(&std::mem::take(&mut buffer).into_bytes()).await?;
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await?;
                    break;
                }
            }
        }
        stream.shutdown().await?;
        Ok(())
    }
}

// === impl Answer ===

impl Answer {
    /// These bytes, and the connection stays.
    pub fn new(raw: impl Into<Vec<u8>>) -> Self {
        Self { raw: raw.into(), then: Then::KeepAlive }
    }

    /// Name and request of the app that answers; what [`Http1App::start`] sends.
    pub fn identity(name: &str, request: &Request) -> Self {
        let body = [name.as_bytes(), b"\n", &request.raw].concat();
        let head = format!("HTTP/1.1 200 OK\r\n{ANSWERED_BY}: {name}\r\ncontent-length: {}\r\n\r\n", body.len());
        let body = if request.method == "HEAD" { Vec::new() } else { body };
        Self::new([head.into_bytes(), body].concat())
    }
}

// === impl Request ===

impl Request {
    /// The first value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        framing::value(&self.headers, name)
    }
}

// === impl Http1Caller ===

impl Http1Caller {
    /// Connects from inside a host.
    pub async fn connect(host: &Host, to: SocketAddr) -> Result<Self> {
        Self::over(host.connect(to).await?)
    }

    /// Uses a connection that exists.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Buffer::default() })
    }

    /// Sends these bytes, whatever they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// The next response, to a request with the given method. Fails when the connection ends instead.
    pub async fn response(&mut self, to_method: &str) -> Result<Response> {
        self.try_response(to_method).await?.context("the connection was closed instead of a response")
    }

    /// The next response, or `None` when the connection was closed.
    pub async fn try_response(&mut self, to_method: &str) -> Result<Option<Response>> {
        let Some(mut raw) = self.buffer.head(&mut self.stream).await? else { return Ok(None) };
        let (first, headers) = framing::parse_response(&raw)?;
        let length = framing::length(&first, &headers, to_method)?;
        let body = self.buffer.body(&mut self.stream, length).await?;
        raw.extend_from_slice(&body.raw);
        let First::Response { status } = first else { return Ok(None) };
        Ok(Some(Response { status, headers, body: body.content, trailers: body.trailers, raw }))
    }

    /// A request without a body, and its response.
    pub async fn get(&mut self, target: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.call("GET", target, headers, b"").await
    }

    /// A request and its response.
    pub async fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        self.send(&request(method, target, headers, body)).await?;
        self.response(method).await
    }

    /// Ends the caller's direction: whoever answers sees that no other request follows.
    pub async fn half_close(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Asks the other side's TCP every second whether it knows the connection (RFC 9293 §3.8.4). Where it does not, reading
    /// fails.
    pub fn keep_asking(&self) -> Result<()> {
        let second = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new().with_time(second).with_interval(second);
        Ok(SockRef::from(&self.stream).set_tcp_keepalive(&keepalive)?)
    }

    /// The connection itself, and what was read from it but belongs to no response.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer.into_bytes())
    }
}

// === impl Response ===

impl Response {
    /// Who answered: the app's name, or nothing when no app of the tests did.
    pub fn answered_by(&self) -> Option<&str> {
        self.header(ANSWERED_BY)
    }

    /// The request as [`Http1App::start`] got it.
    pub fn request_seen(&self) -> &[u8] {
        let newline = self.body.iter().position(|&byte| byte == b'\n');
        newline.map_or(&[], |at| &self.body[at + 1..])
    }

    /// The first value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        framing::value(&self.headers, name)
    }
}

/// The bytes of a plain request.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: app.test\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
