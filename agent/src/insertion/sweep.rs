//! Flows whose app has had no socket for so long that nobody waits for a packet of them any more.
//!
//! The kernel forgets a flow by itself when it sees the connection's end. It does not where packets may still come that have to
//! be translated, where a caller goes without a word, or where the last packets get lost.

use std::{collections::HashSet, time::Duration};

use sluice_ebpf_common::insertion::{FlowKey, Op, State};
use tokio::{task::JoinHandle, time::Instant};

use super::{
    SharedPrograms,
    joining::caller_of,
    lock,
    programs::{FlowMap, ProgramsError},
};
use crate::existing::Callers;

/// How often they are looked for. Twice missed is gone: TIME-WAIT is over by then.
const EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Sweep {
    programs: SharedPrograms,
    next: Instant,
    /// Looks for them, in a thread of its own: there may be tens of thousands of flows.
    looking: Option<JoinHandle<Vec<FlowKey>>>,
    /// Flows without a socket, by key and number, as of the last time.
    missed: HashSet<(FlowKey, u32)>,
}

/// Those of which no socket is left.
fn without_socket(flows: &FlowMap) -> Vec<FlowKey> {
    let mut callers = Callers::alive();
    // First the flows, so that none is younger than what is known of the sockets.
    let keys: Vec<_> = flows.keys().flatten().collect();
    keys.into_iter().filter(|key| !callers.may_have(key.port, caller_of(key))).collect()
}

// === impl Sweep ===

impl Sweep {
    pub(super) fn new(programs: SharedPrograms) -> Self {
        Self { programs, next: Instant::now() + EVERY, looking: None, missed: HashSet::new() }
    }

    /// Waits for the next time, and forgets what has been missed twice by then.
    ///
    /// Cancel safe: it goes on where it was.
    ///
    /// # Errors
    /// When the flows cannot be listed. That is so only where there are no files left to open.
    pub(super) async fn run(&mut self) -> Result<(), ProgramsError> {
        let looking = match &mut self.looking {
            Some(looking) => looking,
            None => {
                tokio::time::sleep_until(self.next).await;
                self.next = Instant::now() + EVERY;
                let flows = lock(&self.programs).flows_again()?;
                self.looking.insert(tokio::task::spawn_blocking(move || without_socket(&flows)))
            }
        };
        let found = looking.await.unwrap_or_default();
        self.looking = None;
        self.forget(&found);
        Ok(())
    }

    fn forget(&mut self, without_socket: &[FlowKey]) {
        let (programs, before) = (lock(&self.programs), std::mem::take(&mut self.missed));
        for key in without_socket {
            // Those that the agent is in, or is asked to join, are its own business.
            let Some(flow) = programs
                .flow(key)
                .filter(|flow| flow.state == State::Native as u32 || flow.state == State::Wire as u32)
            else {
                continue;
            };
            if before.contains(&(*key, flow.id)) {
                let _ = programs.command(key, flow.id, Op::Remove, &[]);
            } else {
                self.missed.insert((*key, flow.id));
            }
        }
    }
}
