//! Answers as hyper's client sees them.

use std::{pin::pin, task::Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use sluice_agent::http1::{framing::Framed, head::RequestKind};

use crate::hyper_io::{Source, until_quiet};

/// Panics where hyper's answers do not end where `framed` says.
pub(crate) fn compare(bytes: &[u8], framed: &Framed, kinds: &[RequestKind]) {
    let source = Source::new(bytes);
    let Poll::Ready(Ok((mut sender, connection))) = until_quiet(|cx| pin!(http1::handshake(source.clone())).poll(cx))
    else {
        panic!("the handshake sends nothing");
    };
    let mut connection = pin!(connection);
    let (mut over, mut arrived) = (false, 0);
    let goes_on = framed.wire.is_none() && !framed.last;
    let ends = framed.ends.iter().copied().map(Some).chain(goes_on.then_some(None));
    for (number, (end, kind)) in ends.zip(kinds).enumerate() {
        let method = if *kind == RequestKind::Head { "HEAD" } else { "GET" };
        let request = hyper::Request::builder().method(method).uri("/").body(Empty::<Bytes>::new());
        let sending = sender.send_request(request.expect("a request"));
        let mut answer = pin!(async { sending.await?.into_body().collect().await.map(drop) });
        let mut upto = |mark, close| {
            source.arrive(mark);
            if close {
                source.close();
            }
            until_quiet(|cx| {
                let answered = answer.as_mut().poll(cx);
                over = over || connection.as_mut().poll(cx).is_ready();
                match answered {
                    Poll::Pending if over => answer.as_mut().poll(cx),
                    answered => answered,
                }
            })
        };
        let last = framed.to_end && number + 1 == framed.ends.len();
        // One without a body may end with its head, which is longer than a byte. The last one has not ended.
        let before = end.map_or(bytes.len(), |end| if last { end } else { end - 1 });
        // The request first: an answer that nobody waits for is an error.
        let sent = upto(arrived, false);
        match if sent.is_pending() { upto(before, false) } else { sent } {
            Poll::Ready(Err(_)) => return,
            Poll::Ready(Ok(())) => panic!("hyper's answer {number} ends before byte {end:?}: {framed:?}"),
            Poll::Pending => {}
        }
        let Some(end) = end else { return };
        arrived = end;
        match upto(end, last) {
            Poll::Ready(Err(_)) => return,
            Poll::Ready(Ok(())) => {}
            Poll::Pending => panic!("hyper's answer {number} does not end at byte {end}: {framed:?}"),
        }
    }
}
