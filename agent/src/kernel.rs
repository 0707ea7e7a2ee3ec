//! The kernel part: owns the loaded program, its maps and its link to the network namespace, and hands out the
//! listeners that steered connections arrive at.
//!
//! Runs in the agent's process and network namespace. It decides nothing: which ports are steered and who is exempt
//! comes from the rules, and what becomes of an accepted connection is the business of whoever accepts it.
//!
//! **Fail open.** The kernel hands a connection to the agent only while the program is attached, the port is in the map
//! and a listener of the agent is open. All three are file descriptors of this process: when it dies, however it dies,
//! the next connection goes to the app and nothing is left in the kernel.
//!
//! **Idle costs nothing.** The program is attached with the first port and detached with the last.
//!
//! **Privileges.** `CAP_BPF` (maps and program) and `CAP_NET_ADMIN` (a network program, attaching) are all that is
//! needed, with any user id, and /proc/sys may be read-only. `CAP_PERFMON` is needed for the kernel log only: its code
//! copies text about in ways that the verifier accepts from those who may see pointers anyway.

use std::{collections::BTreeSet, fmt, fs::File};

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, MapData, MapError, PerCpuArray, SockMap},
    programs::{ProgramError, links::FdLink},
};
use ipnet::IpNet;
use sluice_ebpf_common::{self as abi, Counter};

mod error;
mod exempt;
mod listeners;
mod loader;
mod log;
pub(crate) mod memory;
mod obstacle;
mod port;

pub(crate) use self::exempt::Entry;

pub use self::{
    error::{ApplyError, LoadError, Operation, ReadError},
    listeners::Listeners,
    obstacle::{Capability, Obstacle},
    port::{PortKey, Protocol},
};
use self::{loader::Loaded, log::KernelLog};

/// The network namespace of the calling thread.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// How to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Whether the program reports each of its decisions; costs about a microsecond per new connection, nothing when
    /// off.
    pub log: bool,
}

/// The loaded program with its maps. Dropping it detaches the program and frees everything in the kernel.
pub struct Kernel {
    // In the order in which they should go: first nothing is steered any more.
    link: Option<FdLink>,
    ports: HashMap<MapData, abi::PortKey, u32>,
    exempt: LpmTrie<MapData, abi::Address, u32>,
    counters: PerCpuArray<MapData, u64>,
    listeners: Option<Listeners>,
    _registered: SockMap<MapData>,
    _log: Option<KernelLog>,
    ebpf: Ebpf,
    namespace: File,
}

/// What the kernel really holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whether the program is attached to the network namespace.
    pub attached: bool,
    /// The steered ports.
    pub ports: BTreeSet<PortKey>,
    /// The source prefixes that are never steered.
    pub exempt: BTreeSet<IpNet>,
}

/// What the program decided, summed over all CPUs. Counts lookups of a listener: one per connection, and one more for
/// each repeated SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Handed to the agent.
    pub steered: u64,
    /// To a steered port from an exempt source: went to the app.
    pub exempt: u64,
    /// The agent's own, to the app.
    pub own: u64,
    /// To a steered port while no listener could take it: went to the app.
    pub no_listener: u64,
}

// === impl Kernel ===

impl Kernel {
    /// Loads the program, makes the maps and opens the listeners, in the network namespace of the calling thread.
    /// Proves by attaching once with an empty map that attaching will work later.
    ///
    /// # Errors
    ///
    /// When the kernel or the privileges do not allow it; the error says what is missing and what to do.
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        let needed = loader::needed_capabilities(options.log);
        let namespace = File::open(NAMESPACE).map_err(|source| LoadError::Namespace { path: NAMESPACE, source })?;
        let listeners = Listeners::open().map_err(|(address, source)| LoadError::Listen { address, source })?;
        let Loaded { mut ebpf, ports, exempt, listeners: mut registered, counters } = Loaded::load(options.log)?;
        register(&mut registered, &listeners)
            .map_err(|error| LoadError::of(Operation::Listeners, needed, error.into()))?;
        let log = options.log.then(|| KernelLog::start(&mut ebpf)).transpose().map_err(LoadError::Log)?;
        attach(&mut ebpf, &namespace)
            .map(drop)
            .map_err(|error| LoadError::of(Operation::Attach, needed, error.into()))?;
        Ok(Self {
            link: None,
            ports,
            exempt,
            counters,
            listeners: Some(listeners),
            _registered: registered,
            _log: log,
            ebpf,
            namespace,
        })
    }

    /// Hands out the listeners, once. Closing one makes its connections go to the app.
    pub fn take_listeners(&mut self) -> Option<Listeners> {
        self.listeners.take()
    }

    /// Makes the maps equal to this. A port that is wanted before and after is steered at every moment in between;
    /// exemptions are there before the ports they are for. The program is attached with the first port and detached
    /// with the last.
    ///
    /// # Errors
    ///
    /// When a map or the link cannot be changed. What was done until then stays.
    pub fn apply(&mut self, ports: &BTreeSet<PortKey>, exempt: &[IpNet]) -> Result<(), ApplyError> {
        let entries: BTreeSet<Entry> = exempt.iter().copied().map(Entry::new).collect();
        within(ports.len(), abi::PORTS_MAX).map_err(|(wanted, limit)| ApplyError::TooManyPorts { wanted, limit })?;
        within(entries.len(), abi::EXEMPT_MAX)
            .map_err(|(wanted, limit)| ApplyError::TooManyExempt { wanted, limit })?;

        let (held_ports, held_exempt) =
            (self.port_keys().map_err(in_ports)?, self.exempt_entries().map_err(in_exempt)?);
        for entry in entries.difference(&held_exempt) {
            self.exempt.insert(&entry.key(), entry.family(), 0).map_err(in_exempt)?;
        }
        if ports.is_empty() {
            self.detach();
        }
        for port in ports.difference(&held_ports) {
            self.ports.insert(port.to_abi(), abi::MODE_STEER, 0).map_err(in_ports)?;
        }
        if !ports.is_empty() && self.link.is_none() {
            self.link = Some(attach(&mut self.ebpf, &self.namespace).map_err(ApplyError::Attach)?);
        }
        for port in held_ports.difference(ports) {
            self.ports.remove(&port.to_abi()).map_err(in_ports)?;
        }
        for entry in held_exempt.difference(&entries) {
            self.exempt.remove(&entry.key()).map_err(in_exempt)?;
        }
        Ok(())
    }

    /// Detaches the program: from now on new connections go to the app. Those that were steered before and not yet
    /// accepted are still waiting at the listeners. The maps stay as they are, and the next [`Kernel::apply`] attaches
    /// again.
    pub fn detach(&mut self) {
        // The link is nothing but this file descriptor.
        drop(self.link.take());
    }

    /// Reads what the kernel holds, from the kernel.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn held(&self) -> Result<Held, ReadError> {
        let exempt = self.exempt_entries().map_err(|source| ReadError::Map { map: abi::EXEMPT_MAP, source })?;
        Ok(Held {
            attached: self.link.as_ref().is_some_and(|link| link.info().is_ok()),
            ports: self.port_keys().map_err(|source| ReadError::Map { map: abi::PORTS_MAP, source })?,
            exempt: exempt.into_iter().filter_map(Entry::net).collect(),
        })
    }

    /// Reads the counters.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<KernelCounters, ReadError> {
        let sum = |counter: Counter| {
            self.counters
                .get(&(counter as u32), 0)
                .map(|cpus| cpus.iter().sum())
                .map_err(|source| ReadError::Map { map: abi::COUNTERS_MAP, source })
        };
        Ok(KernelCounters {
            steered: sum(Counter::Steered)?,
            exempt: sum(Counter::Exempt)?,
            own: sum(Counter::Own)?,
            no_listener: sum(Counter::NoListener)?,
        })
    }

    fn port_keys(&self) -> Result<BTreeSet<PortKey>, MapError> {
        let keys: Result<Vec<_>, _> = self.ports.keys().collect();
        Ok(keys?.into_iter().filter_map(PortKey::from_abi).collect())
    }

    fn exempt_entries(&self) -> Result<BTreeSet<Entry>, MapError> {
        self.exempt.keys().map(|key| key.map(Entry::of_key)).collect()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("link", &self.link).finish_non_exhaustive()
    }
}

fn register(map: &mut SockMap<MapData>, listeners: &Listeners) -> Result<(), MapError> {
    map.set(abi::SLOT_V4, &listeners.v4, 0)?;
    if let Some(v6) = &listeners.v6 {
        map.set(abi::SLOT_V6, v6, 0)?;
    }
    Ok(())
}

fn attach(ebpf: &mut Ebpf, namespace: &File) -> Result<FdLink, ProgramError> {
    let program = loader::program_of(ebpf).ok_or(ProgramError::NotLoaded)?;
    let id = program.attach(namespace)?;
    // Out of the program's own list, so that dropping it detaches.
    program.take_link(id).map(FdLink::from)
}

fn within(wanted: usize, limit: u32) -> Result<(), (usize, u32)> {
    if u32::try_from(wanted).is_ok_and(|wanted| wanted <= limit) { Ok(()) } else { Err((wanted, limit)) }
}

fn in_ports(source: MapError) -> ApplyError {
    ApplyError::Map { map: abi::PORTS_MAP, source }
}

fn in_exempt(source: MapError) -> ApplyError {
    ApplyError::Map { map: abi::EXEMPT_MAP, source }
}
