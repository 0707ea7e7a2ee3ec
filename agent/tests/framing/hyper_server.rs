//! Requests as hyper's server sees them.

use std::{cell::RefCell, convert::Infallible, pin::pin, rc::Rc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use sluice_agent::http1::{framing::Framed, head::RequestView};
use sluice_protocol::rules::matcher::Request as _;

use crate::hyper_io::{Source, until_quiet};

/// The header that rules of this comparison are about.
const HEADER: &str = "x-user";

/// What rules see of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    method: Vec<u8>,
    path: Vec<u8>,
    values: Vec<Vec<u8>>,
}

// === impl Request ===

impl Request {
    pub(crate) fn of_view(view: &RequestView<'_>) -> Self {
        let values = view.values(HEADER).map(<[u8]>::to_vec).collect();
        Self { method: view.method().to_vec(), path: view.path().to_vec(), values }
    }

    fn of_hyper(request: &hyper::Request<Incoming>) -> Self {
        let values = request.headers().get_all(HEADER).iter().map(|value| value.as_bytes().trim_ascii().to_vec());
        Self {
            method: request.method().as_str().as_bytes().to_vec(),
            path: request.uri().path().as_bytes().to_vec(),
            values: values.collect(),
        }
    }
}

/// Panics where hyper's requests do not end where `framed` says, or are not those that were `seen`.
pub(crate) fn compare(bytes: &[u8], framed: &Framed, seen: &[Request]) {
    let (begun, ended) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(0)));
    let serve = |request: hyper::Request<Incoming>| {
        begun.borrow_mut().push(Request::of_hyper(&request));
        let ended = Rc::clone(&ended);
        async move {
            if request.into_body().collect().await.is_ok() {
                *ended.borrow_mut() += 1;
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    };
    let source = Source::new(bytes);
    let mut connection = pin!(http1::Builder::new().serve_connection(source.clone(), service_fn(serve)));
    let mut over = false;
    let mut upto = |mark| {
        source.arrive(mark);
        over = over || until_quiet(|cx| connection.as_mut().poll(cx)).is_ready();
        (*ended.borrow(), over)
    };
    for (number, &end) in framed.ends.iter().enumerate() {
        let (before, _) = upto(end - 1);
        assert!(before <= number, "hyper's request {number} ends before byte {end}: {framed:?}");
        let (now, over) = upto(end);
        if now <= number && over {
            // It refuses what the agent accepts, which nobody can use to smuggle anything.
            return;
        }
        assert_eq!(now, number + 1, "hyper's request {number} does not end at byte {end}: {framed:?}");
        let mut of_hyper = begun.borrow()[number].clone();
        if of_hyper.path.is_empty() {
            // A host and nothing else, which only `CONNECT` may ask for: to rules all of it is the path.
            of_hyper.path.clone_from(&seen[number].path);
        }
        assert_eq!(of_hyper, seen[number], "request {number}: hyper and rules");
        if over {
            return;
        }
    }
    if framed.wire.is_none() && !framed.last {
        let (now, _) = upto(bytes.len());
        assert!(now <= framed.ends.len(), "hyper's request {} has ended: {framed:?}", now - 1);
    }
}
