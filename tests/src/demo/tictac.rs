//! The service `tictac`: `POST /tic` counts one up, `GET /tac` tells where it stands. `add` does the counting.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, StatusCode, Uri, header};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::CancellationToken;
use tonic::{Request, metadata::MetadataMap, transport::Endpoint};

use super::{
    ANSWERED_BY,
    messages::{AdderClient, Summands},
    web,
};

/// Where `tictac` listens, and where it finds `add`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of `/tic` and `/tac`.
    pub http: SocketAddr,
    /// The gRPC port of `add`, such as `http://add:9090`.
    pub add: Uri,
}

/// What both answers say.
#[derive(Clone, Copy, Debug, Serialize)]
struct Count {
    value: i64,
}

struct Service {
    add: Endpoint,
    /// Held while `add` adds: no tic is lost.
    value: Mutex<i64>,
}

/// Serves until `stop`.
pub async fn run(options: &Options, stop: CancellationToken) -> Result<()> {
    let listener = TcpListener::bind(options.http).await.with_context(|| format!("listening on {}", options.http))?;
    let service = Arc::new(Service { add: Endpoint::from(options.add.clone()), value: Mutex::new(0) });
    eprintln!("tictac is ready: http {}, add at {}", options.http, options.add);
    web::serve(listener, stop, move |request| {
        let service = Arc::clone(&service);
        async move { service.answer(request).await }
    })
    .await
}

// === impl Service ===

impl Service {
    async fn answer(&self, request: HttpRequest<Incoming>) -> web::Answer {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/tic") => match Box::pin(self.tic(request.headers())).await {
                Ok((count, signature)) => web::json(&count, signature),
                Err(error) => web::text(StatusCode::BAD_GATEWAY, &format!("{error:#}")),
            },
            (&Method::GET, "/tac") => web::json(&Count { value: *self.value.lock().await }, None),
            (_, "/tic" | "/tac") => web::text(StatusCode::METHOD_NOT_ALLOWED, "POST /tic, GET /tac"),
            _ => web::text(StatusCode::NOT_FOUND, "POST /tic and GET /tac is all there is"),
        }
    }

    /// Counts one up. Returns the signature of the `add` that has done it as well.
    async fn tic(&self, headers: &HeaderMap) -> Result<(Count, Option<HeaderValue>)> {
        let mut value = self.value.lock().await;
        let mut request = Request::new(Summands { a: *value, b: 1 });
        *request.metadata_mut() = handed_on(headers);
        // A connection for each call. One that was kept would be older than an intercept that starts in the meantime,
        // and an intercept of all TCP takes new connections only.
        let channel = self.add.connect().await.with_context(|| format!("connecting to add at {}", self.add.uri()))?;
        let response = AdderClient::new(channel).sum(request).await.context("asking add")?;
        let signature = response.metadata().get(ANSWERED_BY).map(|signature| signature.as_bytes().to_vec());
        *value = response.into_inner().sum;
        let signature = signature.and_then(|signature| HeaderValue::from_bytes(&signature).ok());
        Ok((Count { value: *value }, signature))
    }
}

/// The caller's headers as metadata for `add`: all that speak about the request, and none that speak about the
/// connection or the content it came with.
fn handed_on(headers: &HeaderMap) -> MetadataMap {
    let kept = headers.iter().filter(|(name, _)| !is_of_this_hop(name));
    MetadataMap::from_headers(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn is_of_this_hop(name: &HeaderName) -> bool {
    const OF_THIS_HOP: [HeaderName; 11] = [
        header::HOST,
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::EXPECT,
        header::USER_AGENT,
        header::ACCEPT_ENCODING,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
    ];
    let text = name.as_str();
    // `-bin` marks binary metadata, which is encoded in a way that a caller of HTTP/1 knows nothing of.
    OF_THIS_HOP.contains(name)
        || ["content-", "grpc-"].iter().any(|prefix| text.starts_with(prefix))
        || text.ends_with("-bin")
        || text == "keep-alive"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_about_the_request_is_handed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-user", "adam"),
            ("x-user", "eva"),
            ("authorization", "Bearer t"),
            ("baggage", "a=1"),
            ("content-length", "0"),
            ("host", "tictac"),
            ("connection", "keep-alive"),
            ("grpc-timeout", "1S"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let metadata = handed_on(&headers);
        let users: Vec<_> = metadata.get_all("x-user").iter().collect();
        assert_eq!(users, ["adam", "eva"]);
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer t");
        assert_eq!(metadata.get("baggage").unwrap(), "a=1");
        assert_eq!(metadata.len(), 4);
    }
}
