//! One HTTP/2 request: decided, sent to the app or to a client, and its answer passed on.
//!
//! Runs as a task of its own, owned by the connection. Resets go through in both directions with their reason.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use sluice_protocol::{
    rules::{OnUnavailable, matcher},
    stream::{Kind, Open},
};

use super::{
    SteeredBy, Upstreams,
    body::{self, Broken, RequestBody},
};
use crate::metrics::Decision;

/// What the content type of each gRPC call begins with.
const GRPC: &str = "application/grpc";

/// The status `UNAVAILABLE`: what gRPC makes of 502 and 503.
const GRPC_UNAVAILABLE: &str = "14";

/// A request of a caller that has not been answered.
pub(super) struct Exchange {
    upstreams: Arc<Upstreams>,
    respond: SendResponse<Bytes>,
    /// It is a gRPC call: its caller takes every byte of an answer for one of gRPC.
    grpc: bool,
}

/// What rules look at.
struct View<'a>(&'a Parts);

/// How an attempt to have a request answered ended, if not with an answer.
enum Failed {
    /// The caller gave it up.
    Cancelled(Reason),
    /// The upstream reset it.
    Reset(Reason),
    /// The upstream's connection was gone, or it said goodbye: it has not looked at the request.
    NotSent,
    /// The upstream's connection broke before an answer began.
    Unanswered,
    /// It broke in the middle of the answer.
    Broken,
}

// === impl Exchange ===

impl Exchange {
    pub(super) fn new(upstreams: Arc<Upstreams>, respond: SendResponse<Bytes>) -> Self {
        Self { upstreams, respond, grpc: false }
    }

    /// Sees the request through.
    pub(super) async fn serve(mut self, request: Request<RecvStream>) {
        let (parts, recv) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        self.grpc = kind.is_some_and(|kind| kind.starts_with(GRPC.as_bytes()));
        let upstreams = self.upstreams.clone();
        let metrics = &upstreams.steered.shared.metrics;
        let Some(rule) = upstreams.steered.decide(&parts) else {
            metrics.request(Decision::Passed);
            let mut body = RequestBody::new(recv, false);
            return self.pass(&parts, &mut body).await;
        };
        let mut body = RequestBody::new(recv, true);
        let mut tried = false;
        loop {
            match upstreams.laptops.get(&upstreams.steered, &rule).await {
                Ok(laptop) => match self.attempt(laptop, &parts, &mut body).await {
                    // Its server said goodbye just now: a new connection to it takes the request.
                    Err(Failed::NotSent) if body.is_whole() && !tried => tried = true,
                    Err(Failed::NotSent | Failed::Unanswered) if body.is_whole() => break,
                    Err(Failed::NotSent | Failed::Unanswered) => {
                        metrics.request(Decision::Failed);
                        return self.refuse(StatusCode::BAD_GATEWAY, "the client went away\n");
                    }
                    result => {
                        metrics.request(Decision::Diverted);
                        return self.finish(&result);
                    }
                },
                Err(why) => {
                    let name = &rule.intercept.name;
                    tracing::debug!(intercept = name, peer = %upstreams.steered.peer, "client unavailable: {why}");
                    break;
                }
            }
        }
        match rule.intercept.on_unavailable {
            OnUnavailable::PassThrough => {
                metrics.request(Decision::UnavailablePassed);
                body.forget();
                self.pass(&parts, &mut body).await;
            }
            OnUnavailable::Reject => {
                metrics.request(Decision::Rejected);
                self.refuse(StatusCode::SERVICE_UNAVAILABLE, "the client of this intercept is not available\n");
            }
        }
    }

    async fn pass(&mut self, parts: &Parts, body: &mut RequestBody) {
        let app = self.upstreams.app.clone();
        match self.attempt(app, parts, body).await {
            Err(Failed::Unanswered) => self.refuse(StatusCode::SERVICE_UNAVAILABLE, "the app closed its connection\n"),
            result => self.finish(&result),
        }
    }

    /// Sends the request to an upstream and passes its answer on.
    async fn attempt(
        &mut self,
        upstream: SendRequest<Bytes>,
        parts: &Parts,
        body: &mut RequestBody,
    ) -> Result<(), Failed> {
        let mut upstream = tokio::select! {
            biased;
            reason = reset(&mut self.respond) => return Err(Failed::Cancelled(reason)),
            ready = upstream.ready() => ready.map_err(|_| Failed::NotSent)?,
        };
        let whole = body.is_empty();
        let (answer, mut send) = upstream.send_request(request(parts), whole).map_err(|_| Failed::NotSent)?;
        let result = self.exchange(answer, &mut send, body, whole).await;
        if let Err(Failed::Cancelled(reason)) = &result {
            send.send_reset(*reason);
        }
        result
    }

    async fn exchange(
        &mut self,
        mut answer: ResponseFuture,
        send: &mut SendStream<Bytes>,
        body: &mut RequestBody,
        mut sent: bool,
    ) -> Result<(), Failed> {
        let mut sending = Box::pin(body.send(send));
        let response = loop {
            tokio::select! {
                biased;
                response = poll_fn(|cx| poll_answer(&mut self.respond, &mut answer, cx)) => break response?,
                result = &mut sending, if !sent => match result {
                    // The answer says what the upstream thinks of a body that it did not want.
                    Ok(()) | Err(Broken::Sink(_)) => sent = true,
                    Err(Broken::Source(error)) => {
                        return Err(Failed::Cancelled(error.reason().unwrap_or(Reason::CANCEL)));
                    }
                },
            }
        };
        let mut passing = Box::pin(self.answer(response));
        loop {
            tokio::select! {
                biased;
                result = &mut passing => break result?,
                result = &mut sending, if !sent => match result {
                    Ok(()) | Err(Broken::Sink(_)) => sent = true,
                    Err(Broken::Source(error)) => {
                        return Err(Failed::Cancelled(error.reason().unwrap_or(Reason::CANCEL)));
                    }
                },
            }
        }
        // An answer may be complete before its request, whose rest is wanted all the same unless the upstream says
        // otherwise (RFC 9113 §8.1). The end of this tells the caller so, by a reset without error.
        if !sent && let Err(Broken::Source(error)) = sending.await {
            return Err(Failed::Cancelled(error.reason().unwrap_or(Reason::CANCEL)));
        }
        Ok(())
    }

    /// Passes an answer on.
    async fn answer(&mut self, response: Response<RecvStream>) -> Result<(), Failed> {
        let (head, mut from) = response.into_parts();
        let last = from.is_end_stream();
        let mut to = self
            .respond
            .send_response(Response::from_parts(head, ()), last)
            .map_err(|error| Failed::Cancelled(error.reason().unwrap_or(Reason::CANCEL)))?;
        if last {
            return Ok(());
        }
        let result = match body::pass(&mut from, &mut to).await {
            Ok(()) => Ok(()),
            Err(Broken::Source(error)) => Err(failed(&error, false)),
            Err(Broken::Sink(error)) => Err(Failed::Cancelled(error.reason().unwrap_or(Reason::CANCEL))),
        };
        result.inspect_err(|failed| failed.tell(&mut to))
    }

    /// Passes on the answer to the request that switched the connection to HTTP/2.
    pub(super) async fn pass_on(mut self, mut answer: ResponseFuture) {
        let result = match poll_fn(|cx| poll_answer(&mut self.respond, &mut answer, cx)).await {
            Ok(response) => self.answer(response).await,
            Err(failed) => Err(failed),
        };
        self.finish(&result);
    }

    /// Answers the request ourselves. A gRPC call gets the same status and no body: some libraries read it as messages.
    fn refuse(&mut self, status: StatusCode, text: &'static str) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let kind = if self.grpc { GRPC } else { "text/plain" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.grpc {
            headers.insert("grpc-status", HeaderValue::from_static(GRPC_UNAVAILABLE));
            headers.insert("grpc-message", HeaderValue::from_static(text.trim_ascii_end()));
        }
        // Fails only if the caller has given it up.
        if let Ok(mut to) = self.respond.send_response(response, self.grpc)
            && !self.grpc
        {
            let _ = to.send_data(Bytes::from_static(text.as_bytes()), true);
        }
    }

    fn finish(&mut self, result: &Result<(), Failed>) {
        match result {
            Ok(()) | Err(Failed::Cancelled(_)) => {}
            Err(Failed::Reset(reason)) => self.respond.send_reset(*reason),
            // Whoever sees this may try again elsewhere (RFC 9113 §8.7).
            Err(Failed::NotSent) => self.respond.send_reset(Reason::REFUSED_STREAM),
            Err(Failed::Unanswered | Failed::Broken) => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

/// Waits until the caller resets the stream.
async fn reset(respond: &mut SendResponse<Bytes>) -> Reason {
    match poll_fn(|cx| respond.poll_reset(cx)).await {
        Ok(reason) => reason,
        Err(error) => error.reason().unwrap_or(Reason::CANCEL),
    }
}

/// Waits for an answer. Interim ones (RFC 9110 §15.2) are passed on as they come: a caller may wait for permission to
/// send its body.
fn poll_answer(
    respond: &mut SendResponse<Bytes>,
    answer: &mut ResponseFuture,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Failed>> {
    if let Poll::Ready(reset) = respond.poll_reset(cx) {
        return Poll::Ready(Err(Failed::Cancelled(reset.unwrap_or_else(|e| e.reason().unwrap_or(Reason::CANCEL)))));
    }
    while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
        // Fails only if the caller has given it up, which is noticed before the next one.
        let _ = respond.send_informational(interim);
    }
    Pin::new(answer).poll(cx).map_err(|error| failed(&error, true))
}

fn failed(error: &h2::Error, unanswered: bool) -> Failed {
    match error.reason() {
        Some(reason) if error.is_reset() => Failed::Reset(reason),
        // Of streams that it was too late for, and of no others (RFC 9113 §6.8).
        _ if error.is_go_away() && error.is_remote() => Failed::NotSent,
        _ if unanswered => Failed::Unanswered,
        _ => Failed::Broken,
    }
}

/// The request as the caller sent it. Without an authority (only `host`) it is relative, which the `h2` crate takes for
/// a request of HTTP/1.1 only; it sends it as it should.
fn request(parts: &Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    *request.version_mut() =
        if parts.uri.authority().is_some() { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
    request
}

// === impl Failed ===

impl Failed {
    fn tell(&self, to: &mut SendStream<Bytes>) {
        match self {
            Self::Cancelled(_) => {}
            Self::Reset(reason) => to.send_reset(*reason),
            Self::NotSent | Self::Unanswered | Self::Broken => to.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

// === impl SteeredBy ===

impl SteeredBy {
    fn decide(&self, parts: &Parts) -> Option<Arc<matcher::Rule>> {
        self.shared.rules.load().port(self.port)?.decide(&View(parts)).cloned()
    }

    pub(super) fn open(&self, rule: &matcher::Rule, kind: Kind) -> Open {
        let intercept = rule.intercept.name.clone();
        Open { intercept, kind, port: self.port, peer: self.peer, destination: self.destination }
    }
}

// === impl View ===

impl matcher::Request for View<'_> {
    fn method(&self) -> &[u8] {
        self.0.method.as_str().as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.0.uri.path().as_bytes()
    }

    fn any_header(&self, name: &str, fits: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        // HTTP/2 has the host in a pseudo header (RFC 9113 §8.3.1).
        let authority = self.0.uri.authority().filter(|_| name == "host");
        let values = || self.0.headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii());
        authority.is_some_and(|host| fits(host.as_str().as_bytes()))
            || values().any(&mut *fits)
            // It may come in pieces, which are one header (RFC 9113 §8.2.3).
            || (name == "cookie" && fits(&values().collect::<Vec<_>>().join(&b"; "[..])))
    }
}
