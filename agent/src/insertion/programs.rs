//! The packet programs in the kernel: loaded when a port first wants them, attached while one does.
//!
//! Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`. Their links are file descriptors of this process, and of its parent
//! where it has one ([`crate::supervise`]): when those who hold them have died, nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::{AsFd as _, OwnedFd, RawFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, SockMap},
    programs::{ProgramError, SchedClassifier, SkLookup, TcAttachType, links::FdLink, tc::SchedClassifierLink},
};
use ipnet::IpNet;
use sluice_ebpf_common::{
    self as abi,
    insertion::{
        self as flows, ACTIVE_HOLD, Asked, Flow, FlowCounter, FlowKey, LOCAL_FACING_APP, LOCAL_FACING_CALLER,
        LOCAL_PORT, Local, NameKey,
    },
};

mod commands;
mod locals;

pub use self::commands::{Begun, Scanned};
use self::locals::Locals;
use super::{
    devices,
    hints::Hints,
    ports::{Port, depends, note_existing},
};
use crate::{
    kernel::{self, Capability, Listeners, LoadError, Operation, memory},
    supervise::Supervisor,
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/insertion.bpf.o"));

/// Lets a value be read while the kernel's programs write it: `BPF_F_LOCK`.
pub(crate) const WITH_LOCK: u64 = 4;

/// What loading and attaching need.
const NEEDED: [Capability; 3] = [Capability::Bpf, Capability::NetAdmin, Capability::Perfmon];

/// Why the programs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// The kernel or the privileges.
    #[error("{program} cannot be used")]
    Kernel {
        /// The program, or all of them.
        program: &'static str,
        /// Why.
        #[source]
        source: Box<LoadError>,
    },
    /// The object is not the one that was built with this agent.
    #[error("the object has no {name}")]
    Missing {
        /// What.
        name: &'static str,
    },
    /// A map cannot be written.
    #[error("the map {map} cannot be changed")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// Each port with HTTP rules takes three places.
    #[error("more than {most} ports with HTTP rules: ask for `steering: lookup` at the others")]
    TooManyPorts {
        /// How many there can be.
        most: u32,
    },
    /// Something of the operating system.
    #[error("{what}")]
    Io {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The map of flows.
pub(super) type FlowMap = HashMap<MapData, FlowKey, Flow>;

/// The loaded programs and their maps.
pub struct Programs {
    // In the order in which they should go.
    lookup: Option<FdLink>,
    devices: BTreeMap<String, Vec<SchedClassifierLink>>,
    ports: BTreeMap<u16, Port>,
    locals: Locals,
    names: HashMap<MapData, NameKey, u32>,
    values: HashMap<MapData, NameKey, u32>,
    exempt: LpmTrie<MapData, abi::Address, u32>,
    flows: FlowMap,
    counters: PerCpuArray<MapData, u64>,
    events: Option<RingBuf<MapData>>,
    _listeners: SockMap<MapData>,
    ebpf: Ebpf,
    namespace: File,
    supervisor: Option<Supervisor>,
    /// The maps of flows and of local ports once more, to be passed on.
    shared: [OwnedFd; 2],
}

/// What the packet programs did, over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Requests proven not to match, which the app got without the agent.
    pub passed: u64,
    /// Requests that were kept for the agent.
    pub held: u64,
    /// Connections for which there was no room.
    pub full: u64,
    /// Held requests that were let go, as nobody took them.
    pub late: u64,
    /// Connections that came in a way that the programs do not see, and were steered.
    pub steered: u64,
    /// Connections that the agent has left again.
    pub returned: u64,
    /// Connections that are no HTTP.
    pub not_http: u64,
    /// Packets for wiretaps of which there is no copy.
    pub copies_lost: u64,
    /// Requests that could not be held as the app's socket was not there yet.
    pub no_socket: u64,
}

// === impl Programs ===

impl Programs {
    /// Loads them into the kernel, in the network namespace of the calling thread. With a `supervisor` they outlive this
    /// process for as long as a connection depends on them.
    ///
    /// # Errors
    /// When the kernel or the privileges do not allow it.
    pub fn load(listeners: &Listeners, supervisor: Option<Supervisor>) -> Result<Self, ProgramsError> {
        let namespace = File::open("/proc/thread-self/ns/net")
            .map_err(|source| ProgramsError::Io { what: "the network namespace cannot be opened", source })?;
        memory::expect_burst();
        let mut loader = EbpfLoader::new();
        let generation = RandomState::new().hash_one(std::process::id());
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        let generation = generation as u32 & flows::GENERATION_BITS;
        loader.btf(None).override_global(flows::GENERATION, &generation, true);
        let loaded = loader.load(OBJECT);
        drop(loader);
        memory::give_back();
        let mut ebpf = loaded.map_err(|error| refused("the packet programs", Operation::Maps, error))?;
        let mut registered: SockMap<MapData> = take(&mut ebpf, flows::SPARE_LISTENERS_MAP)?;
        let listener = |source| ProgramsError::Map { map: flows::SPARE_LISTENERS_MAP, source };
        registered.set(abi::SLOT_V4, &listeners.v4, 0).map_err(listener)?;
        if let Some(v6) = &listeners.v6 {
            registered.set(abi::SLOT_V6, v6, 0).map_err(listener)?;
        }
        let shared = [shared(&ebpf, flows::FLOWS_MAP)?, shared(&ebpf, flows::LOCALS_MAP)?];
        let mut programs = Self {
            lookup: None,
            devices: BTreeMap::new(),
            ports: BTreeMap::new(),
            locals: Locals::new(take(&mut ebpf, flows::SLOTS_MAP)?, take(&mut ebpf, flows::LOCALS_MAP)?),
            names: take(&mut ebpf, flows::NAMES_MAP)?,
            values: take(&mut ebpf, flows::VALUES_MAP)?,
            exempt: take(&mut ebpf, abi::EXEMPT_MAP)?,
            flows: take(&mut ebpf, flows::FLOWS_MAP)?,
            counters: take(&mut ebpf, flows::FLOW_COUNTERS_MAP)?,
            events: Some(take(&mut ebpf, flows::EVENTS_MAP)?),
            _listeners: registered,
            ebpf,
            namespace,
            supervisor,
            shared,
        };
        for name in [flows::INGRESS_PROGRAM, flows::EGRESS_PROGRAM, flows::COMMAND_PROGRAM] {
            programs.classifier(name)?.load().map_err(|source| refused(name, Operation::Program, source.into()))?;
        }
        let name = flows::SPARE_PROGRAM;
        programs.spare()?.load().map_err(|source| refused(name, Operation::Program, source.into()))?;
        Ok(programs)
    }

    /// Whether flows with shifted numbers may go back to their two sides: not where the programs that shift them would end
    /// with this process.
    #[must_use]
    pub const fn keeps_shifted(&self) -> bool {
        self.supervisor.is_some()
    }

    /// What the programs tell; once.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// Makes the kernel look at the requests to these ports, and at no others. Ports that are no longer wanted are kept
    /// for as long as connections depend on them.
    ///
    /// # Errors
    /// When a map or a link cannot be changed. What was done until then stays.
    pub fn apply(&mut self, wanted: &BTreeMap<u16, Hints>, exempt: &[IpNet]) -> Result<(), ProgramsError> {
        self.set_exempt(exempt)?;
        let gone: Vec<u16> = self.ports.keys().copied().filter(|port| !wanted.contains_key(port)).collect();
        for port in gone {
            self.deactivate(port)?;
        }
        if !wanted.is_empty() {
            self.attach()?;
        }
        for (&port, hints) in wanted {
            self.activate(port, hints)?;
        }
        self.clear()
    }

    /// Forgets ports that are no longer wanted and that no flow depends on, and detaches the programs with the last one.
    ///
    /// # Errors
    /// When a map cannot be changed.
    pub fn clear(&mut self) -> Result<(), ProgramsError> {
        let leaving: Vec<u16> = self.ports.iter().filter(|(_, port)| !port.active).map(|(&port, _)| port).collect();
        for port in leaving {
            let mut in_use = false;
            for key in self.flows.keys().flatten().filter(|key| key.port == port).collect::<Vec<_>>() {
                match self.flow(&key) {
                    Some(flow) if depends(&key, &flow) => in_use = true,
                    _ => _ = self.flows.remove(&key),
                }
            }
            if !in_use && let Some(held) = self.ports.remove(&port) {
                for local in [port, held.facing_caller.port, held.facing_app.port] {
                    self.locals.remove(local)?;
                }
            }
        }
        if self.ports.is_empty() {
            self.devices.clear();
            self.lookup = None;
        }
        Ok(())
    }

    /// Whether a port waits for [`Programs::clear`].
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.ports.values().any(|port| !port.active)
    }

    /// Whether the programs are attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.lookup.is_some() && self.devices.values().all(|links| links.len() == 2)
    }

    /// The ports that are looked at, as the kernel holds them.
    #[must_use]
    pub fn held_ports(&self) -> BTreeSet<u16> {
        let held = self.locals.iter().filter(|local| local.kind == LOCAL_PORT && local.active != 0);
        held.map(|local| local.port).collect()
    }

    /// The devices that the programs are attached to.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// The ports of the agent's sockets for an intercepted port: facing callers, facing the app.
    #[must_use]
    pub fn facing(&self, port: u16) -> Option<(u16, u16)> {
        self.ports.get(&port).map(|port| (port.facing_caller.port, port.facing_app.port))
    }

    /// A flow, read under its lock.
    #[must_use]
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key, WITH_LOCK).ok()
    }

    /// The map of flows once more, for another thread.
    ///
    /// # Errors
    /// When no file can be opened.
    pub(super) fn flows_again(&self) -> Result<FlowMap, ProgramsError> {
        let [flows, _] = &self.shared;
        let fd = flows.try_clone();
        let fd = fd.map_err(|source| ProgramsError::Io { what: "the map of flows cannot be shared", source })?;
        let map = |source| ProgramsError::Map { map: flows::FLOWS_MAP, source };
        FlowMap::try_from(Map::HashMap(MapData::from_fd(fd).map_err(map)?)).map_err(map)
    }

    /// All flows.
    pub fn flow_keys(&self) -> impl Iterator<Item = FlowKey> + '_ {
        self.flows.keys().flatten()
    }

    /// What was counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<FlowCounters, MapError> {
        let sum = |counter: FlowCounter| self.counters.get(&(counter as u32), 0).map(|cpus| cpus.iter().sum());
        Ok(FlowCounters {
            passed: sum(FlowCounter::Passed)?,
            held: sum(FlowCounter::Held)?,
            full: sum(FlowCounter::Full)?,
            late: sum(FlowCounter::Late)?,
            steered: sum(FlowCounter::Steered)?,
            returned: sum(FlowCounter::Returned)?,
            not_http: sum(FlowCounter::NotHttp)?,
            copies_lost: sum(FlowCounter::CopyLost)?,
            no_socket: sum(FlowCounter::NoSocket)?,
        })
    }

    fn activate(&mut self, port: u16, hints: &Hints) -> Result<(), ProgramsError> {
        let held = match self.ports.entry(port) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(vacant) => {
                let again = self.supervisor.as_ref().is_some_and(Supervisor::is_again);
                note_existing(&mut self.flows, port, again)?;
                vacant.insert(Port::new()?)
            }
        };
        // New names and values before the bits that make the programs look for them, old ones after.
        let (names, values) = (
            |source| ProgramsError::Map { map: flows::NAMES_MAP, source },
            |source| ProgramsError::Map { map: flows::VALUES_MAP, source },
        );
        for value in hints.values(port) {
            self.values.insert(value, 1, 0).map_err(values)?;
        }
        for (name, interest) in hints.names(port) {
            self.names.insert(name, interest, 0).map_err(names)?;
        }
        let (caller, app) = (held.facing_caller.port, held.facing_app.port);
        let facing = |kind| Local::new(kind, port, 0, 0, ACTIVE_HOLD, Asked::NOTHING);
        self.locals.insert(caller, facing(LOCAL_FACING_CALLER))?;
        self.locals.insert(app, facing(LOCAL_FACING_APP))?;
        let mut local = Local::new(LOCAL_PORT, port, caller, app, hints.active(), hints.asked());
        // What has been found out stays so.
        local.deferred = self.locals.get(port).map_or(0, |held| held.deferred);
        self.locals.insert(port, local)?;
        let before = std::mem::replace(&mut held.hints, hints.clone());
        held.active = true;
        for (name, _) in before.names(port).filter(|(name, _)| hints.names(port).all(|(new, _)| new != *name)) {
            let _ = self.names.remove(&name);
        }
        for value in before.values(port).filter(|value| hints.values(port).all(|new| new != *value)) {
            let _ = self.values.remove(&value);
        }
        Ok(())
    }

    fn deactivate(&mut self, port: u16) -> Result<(), ProgramsError> {
        let Some(held) = self.ports.get_mut(&port) else { return Ok(()) };
        held.active = false;
        let local = Local::new(LOCAL_PORT, port, held.facing_caller.port, held.facing_app.port, 0, Asked::NOTHING);
        self.locals.insert(port, local)?;
        let hints = std::mem::take(&mut held.hints);
        for (name, _) in hints.names(port) {
            let _ = self.names.remove(&name);
        }
        for value in hints.values(port) {
            let _ = self.values.remove(&value);
        }
        Ok(())
    }

    fn set_exempt(&mut self, exempt: &[IpNet]) -> Result<(), ProgramsError> {
        let map = |source| ProgramsError::Map { map: abi::EXEMPT_MAP, source };
        let wanted: BTreeSet<kernel::Entry> = exempt.iter().copied().map(kernel::Entry::new).collect();
        let held: BTreeSet<kernel::Entry> =
            self.exempt.keys().map(|key| key.map(kernel::Entry::of_key)).collect::<Result<_, _>>().map_err(map)?;
        for entry in wanted.difference(&held) {
            self.exempt.insert(&entry.key(), entry.family(), 0).map_err(map)?;
        }
        for entry in held.difference(&wanted) {
            self.exempt.remove(&entry.key()).map_err(map)?;
        }
        Ok(())
    }

    /// Attaches the programs to the namespace and to all devices of packets that there are.
    fn attach(&mut self) -> Result<(), ProgramsError> {
        let found = devices::ethernet()
            .map_err(|source| ProgramsError::Io { what: "the network devices cannot be listed", source })?;
        let before = self.devices.len();
        self.devices.retain(|name, _| found.contains(name));
        let mut changed = self.devices.len() != before;
        for device in found {
            if self.devices.contains_key(&device) {
                continue;
            }
            let mut links = Vec::new();
            // What leaves before what comes in, so that no flow begins without its answers being seen.
            for (name, place) in
                [(flows::EGRESS_PROGRAM, TcAttachType::Egress), (flows::INGRESS_PROGRAM, TcAttachType::Ingress)]
            {
                let program = self.classifier(name)?;
                let link = program.attach(&device, place).and_then(|id| program.take_link(id));
                links.push(link.map_err(|source| refused(name, Operation::Attach, source.into()))?);
            }
            self.devices.insert(device, links);
            changed = true;
        }
        if changed && let Some(supervisor) = &self.supervisor {
            let [flows, locals] = &self.shared;
            let kept = links().and_then(|links| supervisor.keep(flows, locals, &links));
            kept.map_err(|source| ProgramsError::Io { what: "the parent process does not keep the links", source })?;
        }
        if self.lookup.is_none() {
            let namespace = self.namespace.try_clone();
            let namespace = namespace
                .map_err(|source| ProgramsError::Io { what: "the network namespace cannot be opened", source })?;
            let program = self.spare()?;
            let link = program.attach(&namespace).and_then(|id| program.take_link(id));
            self.lookup =
                Some(link.map_err(|source| refused(flows::SPARE_PROGRAM, Operation::Attach, source.into()))?.into());
        }
        Ok(())
    }

    fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, ProgramsError> {
        let program = self.ebpf.program_mut(name).ok_or(ProgramsError::Missing { name })?;
        program.try_into().map_err(|source: ProgramError| refused(name, Operation::Program, source.into()))
    }

    fn spare(&mut self) -> Result<&mut SkLookup, ProgramsError> {
        let name = flows::SPARE_PROGRAM;
        let program = self.ebpf.program_mut(name).ok_or(ProgramsError::Missing { name })?;
        program.try_into().map_err(|source: ProgramError| refused(name, Operation::Program, source.into()))
    }
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// Another descriptor of a map that the loaded object still has.
fn shared(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, ProgramsError> {
    let Some(Map::HashMap(data) | Map::Array(data)) = ebpf.map(name) else {
        return Err(ProgramsError::Missing { name });
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|source| ProgramsError::Io { what: "the map cannot be shared", source })
}

/// The descriptors of this process that are links to network devices. aya does not give them out.
fn links() -> io::Result<Vec<RawFd>> {
    let mut links = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let entry = entry?;
        // Closed meanwhile, where it fails.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        if text.lines().any(|line| line.starts_with("link_type:") && line.trim_end().ends_with("tcx")) {
            links.extend(number);
        }
    }
    Ok(links)
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, ProgramsError> {
    let map = ebpf.take_map(name).ok_or(ProgramsError::Missing { name })?;
    M::try_from(map).map_err(|source| ProgramsError::Map { map: name, source })
}

/// What is missing, and what to do.
fn refused(program: &'static str, operation: Operation, error: EbpfError) -> ProgramsError {
    ProgramsError::Kernel { program, source: Box::new(LoadError::of(operation, &NEEDED, error)) }
}
