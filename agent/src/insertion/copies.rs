//! Requests of native connections for wiretaps: the kernel has let them pass, and copied the packets that they came in.

use std::sync::Arc;

use sluice_ebpf_common::insertion::FlowKey;
use sluice_protocol::{
    rules::matcher::{Fits, Rule},
    stream::Kind,
};

use super::joining::{caller_of, pod_of};
use crate::{
    connection::{Shared, opening},
    http1::head::{Parsed, parse_request},
    metrics::Decision,
    wiretap::RequestTaps,
};

/// Sends these requests, which are whole, to the clients whose wiretaps they fit.
pub(super) fn deliver(shared: &Arc<Shared>, key: &FlowKey, requests: &[u8]) {
    let rules = shared.rules.load();
    let Some(rules) = rules.port(key.port) else { return };
    let open = |rule: &Rule| opening(rule, Kind::Http, caller_of(key), pod_of(key));
    let (mut taps, mut rest) = (RequestTaps::default(), requests);
    while let Parsed::Head((head, Fits { copied_to, .. })) = parse_request(rest, |view| rules.decide(view)) {
        shared.metrics.request(Decision::Passed);
        taps.begin(shared, copied_to, open);
        let (mut body, behind) = (head.body, &rest[head.len..]);
        // The kernel has found all of it here, so there is no doubt about where it ends.
        let Ok(length) = body.take(behind) else { return };
        let (request, next) = rest.split_at(head.len + length);
        taps.copy(request, body.is_done());
        rest = next;
    }
}
