//! Loads the compiled program and its maps into the kernel.

use std::io;

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SockMap},
    programs::{ProgramError, SkLookup},
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use sluice_ebpf_common as abi;

use super::{
    error::{LoadError, Operation},
    memory,
    obstacle::{Capability, Circumstances, FIRST_KERNEL_WITHOUT_MEMLOCK},
};

/// The compiled program; `cargo xtask ebpf` makes it.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/sluice.bpf.o"));

/// Name of aya-log's ring buffer in the object.
const LOG_MAP: &str = "AYA_LOGS";
/// Smallest ring buffer there is, for when nobody reads it: the kernel makes a map of the object in any case.
const LOG_BYTES_OFF: u32 = 4096;

/// A loaded program with its maps, not attached.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) ports: HashMap<MapData, abi::PortKey, u32>,
    pub(super) exempt: LpmTrie<MapData, abi::Address, u32>,
    pub(super) listeners: SockMap<MapData>,
    pub(super) counters: PerCpuArray<MapData, u64>,
}

/// What loading needs. The kernel log's code does what the verifier allows with `CAP_PERFMON` only.
pub(super) const fn needed_capabilities(log: bool) -> &'static [Capability] {
    if log {
        &[Capability::Bpf, Capability::NetAdmin, Capability::Perfmon]
    } else {
        &[Capability::Bpf, Capability::NetAdmin]
    }
}

// === impl Loaded ===

impl Loaded {
    pub(super) fn load(log: bool) -> Result<Self, LoadError> {
        let needed = needed_capabilities(log);
        raise_locked_memory_limit();

        let level = if log { aya_log::Level::Trace as u8 } else { 0 };
        memory::expect_burst();
        let mut loader = EbpfLoader::new();
        // The program uses nothing of the kernel's own types: their description can go before anything else is
        // allocated.
        loader.btf(None).override_global(aya_log::LEVEL, &level, true);
        if !log {
            loader.map_max_entries(LOG_MAP, LOG_BYTES_OFF);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| LoadError::of(Operation::Maps, needed, error))?;
        drop(loader);
        memory::give_back();

        let mut loaded = Self {
            ports: take(&mut ebpf, abi::PORTS_MAP)?,
            exempt: take(&mut ebpf, abi::EXEMPT_MAP)?,
            listeners: take(&mut ebpf, abi::LISTENERS_MAP)?,
            counters: take(&mut ebpf, abi::COUNTERS_MAP)?,
            ebpf,
        };
        loaded.program()?.load().map_err(|error| LoadError::of(Operation::Program, needed, error.into()))?;
        Ok(loaded)
    }

    /// The program.
    pub(super) fn program(&mut self) -> Result<&mut SkLookup, LoadError> {
        program_of(&mut self.ebpf).ok_or(LoadError::Missing { name: abi::STEER_PROGRAM })
    }
}

/// The program in an object that has one.
pub(super) fn program_of(ebpf: &mut Ebpf) -> Option<&mut SkLookup> {
    let program: Result<&mut SkLookup, ProgramError> = ebpf.program_mut(abi::STEER_PROGRAM)?.try_into();
    program.ok()
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing { name })?;
    M::try_from(map).map_err(|error| LoadError::Object(Box::new(error.into())))
}

/// Kernels before 5.11 charge BPF memory to the limit for locked memory, which is 64 KiB in most containers. Best
/// effort: if it was needed and failed, the load fails next and says so.
fn raise_locked_memory_limit() {
    if Circumstances::read().is_older_than(FIRST_KERNEL_WITHOUT_MEMLOCK)
        && let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
    {
        tracing::debug!(error = %io::Error::from(error), "cannot raise the limit for locked memory");
    }
}
