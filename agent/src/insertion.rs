//! Live insertion: the agent joins an established connection when a request of it may fit a rule, and leaves it again.
//!
//! The kernel's packet programs ([`programs`]) let requests pass that cannot fit, and hold what they cannot disprove. This
//! module makes two sockets at the connection's exact numbers (`repair`): one plays the app towards the caller, the other
//! the caller towards the app, and the kernel rewrites packets between them. Behind that they are served like any steered
//! connection. When nothing has happened for a moment, the connection goes back to the two who had it (`returning`).
//!
//! Runs in the agent's thread: one task reads what the kernel tells, each inserted connection is a task of its own. What
//! cannot be inserted is let go: the app answers.

mod devices;
pub mod hints;
pub mod programs;
pub(crate) mod repair;

mod copies;
mod diag;
mod inserter;
mod joining;
mod ports;
mod returning;
mod stock;
mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::maps::MapError;
use ipnet::IpNet;
use sluice_ebpf_common::insertion::{Flow, State};
use sluice_protocol::chain::Chain;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::hints::Hints;
pub use sluice_ebpf_common::insertion::Outcome;

pub use self::programs::{Begun, FlowCounters, Programs, ProgramsError, Scanned};
pub(crate) use self::returning::{Activity, Inserted};
pub(crate) use self::{joining::caller_of, programs::WITH_LOCK};
use crate::{
    connection::Shared,
    existing,
    http1::{body::Body, head::RequestKind},
    kernel::Listeners,
    supervise::Supervisor,
};

/// Whether conntrack takes connections up in the middle (Documentation/networking/nf_conntrack-sysctl.rst).
const TCP_LOOSE: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";

/// A connection that is left to itself for good may be deaf to old timestamps for so many ms at most: its TCP repeats.
const LONGEST_GAP: u32 = 200;

/// The programs, shared by those who change flows.
pub(crate) type SharedPrograms = Arc<Mutex<Programs>>;

/// Where in the exchange of requests and answers a connection is that others have served until now.
#[derive(Debug, Default)]
pub(crate) struct Position {
    /// A request has been seen.
    pub(crate) begun: bool,
    /// Bytes that are to come of the body of the last request.
    pub(crate) body: u64,
    /// Requests that are owed an answer, the oldest first.
    pub(crate) owed: Vec<RequestKind>,
    /// What is to come of the first answer's body, where it has begun.
    pub(crate) running: Option<Body>,
}

/// Live insertion as a whole: loads the programs when they are first wanted, and serves what they hold.
pub(crate) struct Insertion {
    listeners: Listeners,
    supervisor: Mutex<Option<Supervisor>>,
    shared: Arc<Shared>,
    services: TaskTracker,
    connections: TaskTracker,
    cut: CancellationToken,
    programs: Mutex<Option<SharedPrograms>>,
    /// Held while they are being loaded, which takes the verifier half a second: nobody who only looks has to wait.
    loading: Mutex<()>,
    /// Why it does not work here.
    unusable: Mutex<Option<String>>,
}

// === impl Insertion ===

impl Insertion {
    /// Not loaded. Connections are tasks of `connections`, ended early by `cut`.
    pub(crate) fn new(
        listeners: Listeners,
        supervisor: Option<Supervisor>,
        shared: Arc<Shared>,
        services: TaskTracker,
        connections: TaskTracker,
        cut: CancellationToken,
    ) -> Self {
        let supervisor = Mutex::new(supervisor);
        Self {
            listeners,
            supervisor,
            shared,
            services,
            connections,
            cut,
            programs: Mutex::default(),
            loading: Mutex::default(),
            unusable: Mutex::default(),
        }
    }

    /// Loads the programs, unless they are. Blocks for as long as that takes; on any thread of the runtime.
    ///
    /// # Errors
    /// When the kernel or the privileges do not allow it.
    pub(crate) fn load(&self) -> Result<SharedPrograms, ProgramsError> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(programs) = self.loaded() {
            return Ok(programs);
        }
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut programs = Programs::load(&self.listeners, supervisor)?;
        let events = programs.take_events();
        let programs = Arc::new(Mutex::new(programs));
        if let Some(events) = events {
            let (shared, connections) = (self.shared.clone(), self.connections.clone());
            let run = inserter::run(events, programs.clone(), shared, connections, self.cut.clone());
            self.services.spawn(self.cut.clone().run_until_cancelled_owned(run));
        }
        *self.programs.lock().unwrap_or_else(PoisonError::into_inner) = Some(programs.clone());
        Ok(programs)
    }

    /// Whether insertion works here, or why it does not. Blocks as [`Insertion::load`] does; what has failed to load is not
    /// tried again.
    pub(crate) fn available(&self) -> Result<(), String> {
        if let Some(why) = &*self.unusable.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(why.clone());
        }
        // Conntrack takes the agent's sockets, whose beginning it has not seen, for connections all the same unless it is
        // told not to; without conntrack there is no such file.
        if fs::read_to_string(TCP_LOOSE).is_ok_and(|loose| loose.trim() == "0") {
            return Err(format!("{TCP_LOOSE} is 0: firewall rules would drop what the agent is inserted into"));
        }
        repair::supported().map_err(|error| format!("TCP_REPAIR is refused: {error}"))?;
        self.load().map(drop).map_err(|error| {
            self.give_up(&error);
            Chain(&error).to_string()
        })
    }

    /// It has been tried, and does not work here.
    pub(crate) fn give_up(&self, why: &ProgramsError) {
        let why = Chain(why).to_string();
        tracing::error!(why, "live insertion does not work in this pod; all ports have lookup");
        *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// The programs, where they are loaded.
    pub(crate) fn loaded(&self) -> Option<SharedPrograms> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the kernel look at the requests to these ports, and at no others.
    ///
    /// # Errors
    /// When it cannot. What was done until then stays.
    pub(crate) fn apply(&self, wanted: &BTreeMap<u16, Hints>, exempt: &[IpNet]) -> Result<(), ProgramsError> {
        match self.loaded() {
            None if wanted.is_empty() => Ok(()),
            None => lock(&self.load()?).apply(wanted, exempt),
            Some(programs) => lock(&programs).apply(wanted, exempt),
        }
    }
}

impl Insertion {
    /// What the kernel holds and has counted, nothing where the programs are not loaded. What it has decided alone is added
    /// to what the agent counts.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(crate) fn look(&self) -> Result<Look, MapError> {
        let Some(programs) = self.loaded() else { return Ok(Look::default()) };
        let programs = lock(&programs);
        let counters = programs.counters()?;
        self.shared.metrics.native(&counters);
        Ok(Look {
            attached: programs.is_attached(),
            ports: programs.held_ports(),
            devices: programs.devices().map(str::to_owned).collect(),
            counters,
        })
    }

    /// Before the programs go: ends the connections that would be dead without them, so that their callers know at once.
    pub(crate) fn end_shifted(&self) {
        let Some(programs) = self.loaded() else { return };
        let programs = lock(&programs);
        let shifted = programs.flow_keys().filter(|key| {
            programs.flow(key).is_some_and(|flow| is_lost_alone(&flow) && flow.state != State::Split as u32)
        });
        existing::reset(shifted.map(|key| (key.port, caller_of(&key))));
    }

    /// Forgets the ports of rules that have gone, as soon as no connection depends on them. Whether there are any left.
    pub(crate) fn clear(&self) -> bool {
        let Some(programs) = self.loaded() else { return false };
        let mut programs = lock(&programs);
        if let Err(error) = programs.clear() {
            tracing::warn!(%error, "the kernel goes on with ports that no rule names any more");
        }
        programs.is_leaving()
    }
}

/// What the packet programs hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    pub(crate) attached: bool,
    pub(crate) ports: BTreeSet<u16>,
    pub(crate) devices: Vec<String>,
    pub(crate) counters: FlowCounters,
}

impl fmt::Debug for Insertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Insertion").field("programs", &self.programs).finish_non_exhaustive()
    }
}

/// Whether the two sides of a connection that the agent has left are dead to each other without the programs.
pub(crate) fn is_lost_alone(flow: &Flow) -> bool {
    flow.gap().is_none_or(|gap| gap > LONGEST_GAP)
}

pub(crate) fn lock(programs: &SharedPrograms) -> MutexGuard<'_, Programs> {
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}
