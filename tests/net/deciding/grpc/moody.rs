//! A gRPC app that does not answer as it should.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use sluice_tests::{
    Host, eventually,
    peers::{
        ANSWERED_BY,
        grpc::{
            Words,
            service::talk_server::{Talk, TalkServer},
        },
    },
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
    transport::{Server, server::TcpIncoming},
};

use crate::stage::{PORT, SOON, on};

/// A gRPC app that fails, hangs, and remembers which of its calls were given up.
pub(super) struct MoodyApp {
    record: Arc<Mutex<Record>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Record {
    /// Texts of the calls that have begun, with their metadata.
    begun: Vec<(String, MetadataMap)>,
    /// Texts of those that were dropped before their end.
    given_up: Vec<String>,
}

struct Moody {
    name: &'static str,
    record: Arc<Mutex<Record>>,
}

/// Notes that a call was given up.
struct Unfinished {
    text: String,
    record: Arc<Mutex<Record>>,
}

// === impl MoodyApp ===

impl MoodyApp {
    pub(super) fn start(host: &Host, name: &'static str) -> Result<Self> {
        let record = Arc::<Mutex<Record>>::default();
        let app = Moody { name, record: Arc::clone(&record) };
        let incoming = TcpIncoming::from(host.listen(on(PORT))?).with_nodelay(Some(true));
        let task = tokio::spawn(async move {
            // Ends only with an error of the listener, which every later call shows.
            let _ = Server::builder().add_service(TalkServer::new(app)).serve_with_incoming(incoming).await;
        });
        Ok(Self { record, _task: AbortOnDropHandle::new(task) })
    }

    /// Waits until the call with this text has begun; what came with it.
    pub(super) async fn begun(&self, text: &str) -> Result<MetadataMap> {
        eventually(SOON, &format!("{text} has begun"), || async {
            lock(&self.record).begun.iter().find(|(begun, _)| begun == text).map(|(_, metadata)| metadata.clone())
        })
        .await
    }

    /// Waits until the app has been told that nobody waits for the call with this text.
    pub(super) async fn given_up(&self, text: &str) -> Result<()> {
        let what = format!("the app hears that {text} is given up");
        eventually(SOON, &what, || async { lock(&self.record).given_up.iter().any(|given_up| given_up == text) }).await
    }
}

// === impl Moody ===

impl Moody {
    fn begin<T>(&self, text: &str, request: &Request<T>) -> Unfinished {
        lock(&self.record).begun.push((text.to_owned(), request.metadata().clone()));
        Unfinished { text: text.to_owned(), record: Arc::clone(&self.record) }
    }

    /// An error with everything that one can have.
    fn failure(&self) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(ANSWERED_BY, MetadataValue::from_static(self.name));
        metadata.append("x-why", MetadataValue::from_static("one"));
        metadata.append("x-why", MetadataValue::from_static("two"));
        metadata.insert_bin("x-why-bin", MetadataValue::from_bytes(b"\x00\xff\r\n"));
        let details = Bytes::from_static(b"\x08\x09\x00");
        Status::with_details_and_metadata(Code::FailedPrecondition, "no: 100 % of \u{fc}", details, metadata)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Words, Status>> + Send>>;

#[tonic::async_trait]
impl Talk for Moody {
    type RepeatStream = Answers;
    type ChatStream = Answers;

    /// Fails, or hangs.
    async fn say(&self, request: Request<Words>) -> Result<Response<Words>, Status> {
        let text = request.get_ref().text.clone();
        let _unfinished = self.begin(&text, &request);
        if text == "fail" { Err(self.failure()) } else { std::future::pending().await }
    }

    /// Hangs when the first message is there.
    async fn gather(&self, request: Request<Streaming<Words>>) -> Result<Response<Words>, Status> {
        let (metadata, _, mut words) = request.into_parts();
        let text = words.message().await?.unwrap_or_default().text;
        let _unfinished = self.begin(&text, &Request::from_parts(metadata, Default::default(), ()));
        std::future::pending().await
    }

    /// Answers as often as it is asked to, and then fails.
    async fn repeat(&self, request: Request<Words>) -> Result<Response<Answers>, Status> {
        let Words { text, number, .. } = request.into_inner();
        let by = self.name.to_owned();
        let answers = (0..number).map(move |number| Ok(Words { text: text.clone(), number, by: by.clone() }));
        Ok(Response::new(stream::iter(answers.chain([Err(self.failure())])).boxed()))
    }

    /// Answers the first message, and then hangs.
    async fn chat(&self, request: Request<Streaming<Words>>) -> Result<Response<Answers>, Status> {
        let (metadata, _, mut words) = request.into_parts();
        let Words { text, number, .. } = words.message().await?.unwrap_or_default();
        let unfinished = self.begin(&text, &Request::from_parts(metadata, Default::default(), ()));
        let first = Words { text, number, by: self.name.to_owned() };
        let rest = stream::once(async move {
            let (_unfinished, _words) = (unfinished, words);
            std::future::pending().await
        });
        Ok(Response::new(stream::iter([Ok(first)]).chain(rest).boxed()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        lock(&self.record).given_up.push(std::mem::take(&mut self.text));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
