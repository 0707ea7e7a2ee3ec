//! One HTTP/2 request: decided, sent to the app or to a client, and its answer passed on.
//!
//! Runs within the connection's task, as one of the futures that it owns. Resets go through in both directions with
//! their reason. There is one future for each request that is open, so what is large and seldom needed is in a box.

use std::{
    future::poll_fn,
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
    rules::{
        OnUnavailable,
        matcher::{self, Fits},
    },
    stream::{Kind, Open},
};

use super::{
    SteeredBy, Upstreams,
    body::{self, Broken, RequestBody},
    copying::Copying,
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

    /// Sees the request through. `answer` is under way already for the request that has switched the connection.
    pub(super) async fn serve(mut self, request: Request<RecvStream>, answer: Option<ResponseFuture>) {
        if let Some(answer) = answer {
            return Box::pin(self.pass_on(answer)).await;
        }
        let (parts, recv) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        self.grpc = kind.is_some_and(|kind| kind.starts_with(GRPC.as_bytes()));
        let Fits { taken_by, copied_to } = self.upstreams.steered.decide(&parts);
        let mut body = RequestBody::new(recv, taken_by.is_some());
        if !copied_to.is_empty() {
            body.copy_to(Copying::begin(&self.upstreams, copied_to, &parts, body.is_empty()));
        }
        match taken_by {
            None => {
                self.upstreams.steered.shared.metrics.request(Decision::Passed);
                self.pass(parts, &mut body).await;
            }
            Some(rule) => Box::pin(self.divert(&rule, parts, body)).await,
        }
    }

    /// Takes the request to the client of `rule`.
    async fn divert(&mut self, rule: &matcher::Rule, parts: Parts, mut body: RequestBody) {
        let upstreams = self.upstreams.clone();
        let metrics = &upstreams.steered.shared.metrics;
        let mut tried = false;
        loop {
            match upstreams.laptops.get(&upstreams.steered, rule).await {
                Ok(laptop) => match self.attempt(laptop, parts.clone(), &mut body).await {
                    // Its server said goodbye just now: a new connection to it takes the request.
                    Err(Failed::NotSent) if body.is_whole() && !tried => tried = true,
                    Err(Failed::NotSent | Failed::Unanswered) if body.is_whole() => break,
                    Err(Failed::NotSent | Failed::Unanswered) => {
                        metrics.rule(rule, Decision::Failed);
                        return self.refuse(StatusCode::BAD_GATEWAY, "the client went away\n");
                    }
                    result => {
                        metrics.rule(rule, Decision::Diverted);
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
                metrics.rule(rule, Decision::UnavailablePassed);
                body.forget();
                self.pass(parts, &mut body).await;
            }
            OnUnavailable::Reject => {
                metrics.rule(rule, Decision::Rejected);
                self.refuse(StatusCode::SERVICE_UNAVAILABLE, "the client of this intercept is not available\n");
            }
        }
    }

    async fn pass(&mut self, parts: Parts, body: &mut RequestBody) {
        let upstreams = self.upstreams.clone();
        if !upstreams.settled.get() {
            tokio::select! {
                biased;
                () = upstreams.settled.wait() => {}
                _ = reset(&mut self.respond) => return,
            }
        }
        let app = upstreams.app.clone();
        match self.attempt(app, parts, body).await {
            Err(Failed::Unanswered) => self.refuse(StatusCode::SERVICE_UNAVAILABLE, "the app closed its connection\n"),
            result => self.finish(&result),
        }
    }

    /// Sends the request to an upstream and passes its answer on.
    async fn attempt(
        &mut self,
        upstream: SendRequest<Bytes>,
        parts: Parts,
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
        whole: bool,
    ) -> Result<(), Failed> {
        let mut sending = (!whole).then(|| Box::pin(body.send(send)));
        let response = poll_fn(|cx| match poll_answer(&mut self.respond, &mut answer, cx) {
            Poll::Ready(response) => Poll::Ready(response),
            Poll::Pending => poll_sending(&mut sending, cx),
        });
        let response = response.await?;
        if sending.is_none() {
            return self.answer(response).await;
        }
        let mut passing = Box::pin(self.answer(response));
        poll_fn(|cx| match passing.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => poll_sending(&mut sending, cx),
        })
        .await?;
        // An answer may be complete before its request, whose rest is wanted all the same unless the upstream says
        // otherwise (RFC 9113 §8.1). The end of this tells the caller so, by a reset without error.
        if let Some(rest) = sending
            && let Err(Broken::Source(error)) = rest.await
        {
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
    async fn pass_on(mut self, mut answer: ResponseFuture) {
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
    poll_fn(|cx| poll_reset(respond, cx)).await
}

fn poll_reset(respond: &mut SendResponse<Bytes>, cx: &mut Context<'_>) -> Poll<Reason> {
    let reset = respond.poll_reset(cx);
    reset.map(|reset| reset.unwrap_or_else(|error| error.reason().unwrap_or(Reason::CANCEL)))
}

/// Goes on sending a body as long as there is one. Ready only when its sender has given up.
fn poll_sending<T, F>(sending: &mut Option<Pin<Box<F>>>, cx: &mut Context<'_>) -> Poll<Result<T, Failed>>
where
    F: Future<Output = Result<(), Broken>>,
{
    let Some(body) = sending else { return Poll::Pending };
    let Poll::Ready(sent) = body.as_mut().poll(cx) else { return Poll::Pending };
    *sending = None;
    match sent {
        // The answer says what the upstream thinks of a body that it did not want.
        Ok(()) | Err(Broken::Sink(_)) => Poll::Pending,
        Err(Broken::Source(error)) => Poll::Ready(Err(Failed::Cancelled(error.reason().unwrap_or(Reason::CANCEL)))),
    }
}

/// Waits for an answer. Interim ones (RFC 9110 §15.2) are passed on as they come: a caller may wait for permission to
/// send its body.
fn poll_answer(
    respond: &mut SendResponse<Bytes>,
    answer: &mut ResponseFuture,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Failed>> {
    if let Poll::Ready(reason) = poll_reset(respond, cx) {
        return Poll::Ready(Err(Failed::Cancelled(reason)));
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
pub(super) fn request(mut parts: Parts) -> Request<()> {
    parts.version = if parts.uri.authority().is_some() { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
    Request::from_parts(parts, ())
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
    fn decide(&self, parts: &Parts) -> Fits {
        self.shared.rules.load().port(self.port).map(|rules| rules.decide(&View(parts))).unwrap_or_default()
    }

    pub(super) fn open(&self, rule: &matcher::Rule, kind: Kind) -> Open {
        let intercept = rule.intercept.name.clone();
        Open { intercept, kind, port: self.port, peer: self.peer, destination: self.destination, copy: false }
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

    fn headers(&self, seen: &mut matcher::Seen<'_>) {
        let Parts { uri, headers, .. } = self.0;
        // HTTP/2 has the host in a pseudo header (RFC 9113 §8.3.1).
        if let Some(host) = uri.authority() {
            seen.header("host", host.as_str().as_bytes());
        }
        for (name, value) in headers {
            seen.header(name.as_str(), value.as_bytes().trim_ascii());
        }
        // It may come in pieces, which are one header (RFC 9113 §8.2.3).
        if seen.asks_for("cookie") {
            let pieces: Vec<_> = headers.get_all("cookie").iter().map(|value| value.as_bytes().trim_ascii()).collect();
            if pieces.len() > 1 {
                seen.header("cookie", &pieces.join(&b"; "[..]));
            }
        }
    }
}
