//! What a worker has passed on to its parent, and what becomes of it when the worker has died.
//!
//! Owns the judgement whether a connection still depends on it. Runs in the parent only.

use std::os::fd::OwnedFd;

use aya::maps::{Array, HashMap, Map, MapData};
use sluice_ebpf_common::insertion::{ENDED, FLAG_RESET, Flow, FlowKey, LOCAL_PORT, Local};

use crate::{
    existing::{self, Callers},
    insertion::{WITH_LOCK, caller_of, is_lost_alone},
};

/// The maps and links of one worker's packet programs, which live for as long as this does.
pub(super) struct Kept {
    flows: HashMap<MapData, FlowKey, Flow>,
    locals: Array<MapData, Local>,
    _links: Vec<OwnedFd>,
}

// === impl Kept ===

impl Kept {
    /// From the descriptors in the order in which they are passed on. `None` where they are others.
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let mut map = || MapData::from_fd(descriptors.next()?).ok();
        let (flows, locals) = (Map::HashMap(map()?), Map::Array(map()?));
        let (flows, locals) = (HashMap::try_from(flows).ok()?, Array::try_from(locals).ok()?);
        Some(Self { flows, locals, _links: descriptors.collect() })
    }

    /// The kernel looks at no more requests on behalf of the worker, which has died.
    pub(super) fn retire(&mut self) {
        for slot in 1..self.locals.len() {
            let Ok(mut local) = self.locals.get(&slot, 0) else { continue };
            if local.kind == LOCAL_PORT && local.active != 0 {
                local.active = 0;
                if let Err(error) = self.locals.set(slot, local, 0) {
                    tracing::error!(%error, port = local.port, "the kernel goes on to hold requests for a dead agent");
                }
            }
        }
    }

    /// Whether there is still a connection of which the two sides see other numbers, as far as this side knows: a caller may
    /// have gone without a word that was heard here, but then the app's socket has gone as well. What has passed here tells
    /// nothing: an end may have got lost behind it and is sent again, and not every reset is one to those who get it.
    pub(super) fn is_needed(&self) -> bool {
        let mut callers = Callers::alive_or_late();
        self.like(Flow::is_shifted).any(|(key, _)| callers.may_have(key.port, caller_of(&key)))
    }

    /// Before this goes: ends the connections that would be dead without it, so that their two sides know at once.
    pub(super) fn end(&self) {
        let open =
            self.like(is_lost_alone).filter(|(_, flow)| flow.flags & FLAG_RESET == 0 && flow.flags & ENDED != ENDED);
        existing::reset(open.map(|(key, _)| (key.port, caller_of(&key))));
    }

    fn like(&self, is: impl Fn(&Flow) -> bool) -> impl Iterator<Item = (FlowKey, Flow)> {
        let keys = self.flows.keys().flatten();
        // Read under its lock, as the kernel writes it.
        keys.filter_map(move |key| Some((key, self.flows.get(&key, WITH_LOCK).ok().filter(&is)?)))
    }
}
