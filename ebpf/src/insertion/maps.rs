//! The maps, and what of them is reached through pointers.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_spin_lock},
    btf_maps,
    helpers::{self, generated},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockMap},
};
use sluice_ebpf_common::{
    self as common, AddressWords,
    insertion::{self as abi, Event, EventKind, Flow, FlowCounter, FlowKey, Local, NameKey, WINDOW},
};

use super::{checksum::Sum, copy::Copying, egress::Reading, packet::Search, scan::Scan};

/// The flows. Not preallocated: most pods have few. With the type's description, which the kernel needs to find the lock.
#[btf_map]
pub(crate) static FLOWS: btf_maps::HashMap<FlowKey, Flow, { abi::FLOWS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    btf_maps::HashMap::new();

/// Where in [`LOCALS`] each local port is.
#[map]
static SLOTS: Array<[u16; abi::SLOTS_ROW]> = Array::with_max_entries(abi::SLOTS_ROWS, 0);

/// Local ports that matter.
#[map]
static LOCALS: Array<Local> = Array::with_max_entries(abi::LOCALS_MAX, 0);

/// Header names that matter.
#[map]
pub(crate) static NAMES: HashMap<NameKey, u32> = HashMap::with_max_entries(abi::NAMES_MAX, BPF_F_NO_PREALLOC);

/// Header values that some rule asks for.
#[map]
pub(crate) static VALUES: HashMap<NameKey, u32> = HashMap::with_max_entries(abi::NAMES_MAX, BPF_F_NO_PREALLOC);

/// What the agent is told.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(abi::EVENTS_BYTES, 0);

/// What was decided how often.
#[map]
pub(crate) static FLOW_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(abi::FLOW_COUNTERS, 0);

/// The agent's listeners, for connections that the packet programs have not seen begin.
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(common::SLOTS, 0);

/// Source addresses that are never looked at, each for one family.
#[map]
pub(crate) static EXEMPT: LpmTrie<AddressWords, u32> = LpmTrie::with_max_entries(2 * common::EXEMPT_MAX, 0);

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Room for one packet's bytes. The programs run with interrupts of their kind off, so one for each CPU is enough.
#[repr(C)]
pub(crate) struct Scratch {
    /// The beginning of a record; the bytes follow at once.
    pub(crate) event: Event,
    /// The window, and room for what a word at its end reads over.
    pub(crate) bytes: [u8; WINDOW + 64],
    pub(crate) scan: Scan,
    pub(crate) search: Search,
    pub(crate) copy: Copying,
    pub(crate) reading: Reading,
    pub(crate) sum: Sum,
    /// One that is about to be noted: the stack has no room for it.
    pub(crate) flow: Flow,
}

/// Set by the agent before it loads this; see its name in `sluice_ebpf_common`.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "found by its name")]
static GENERATION: u32 = 0;

/// A mark as these programs write it.
#[inline(always)]
#[expect(unsafe_code, reason = "the value is not the one that the compiler sees")]
pub(crate) fn of_generation(mark: u32) -> u32 {
    // SAFETY: a number that nobody writes while the program runs.
    mark | unsafe { core::ptr::read_volatile(&raw const GENERATION) }
}

/// This CPU's room.
#[inline(always)]
#[expect(unsafe_code, reason = "a per-CPU slot is reached through a pointer")]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: see `Scratch`.
    SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

/// The flow of a key.
#[inline(always)]
#[expect(unsafe_code, reason = "a map value is reached through a pointer")]
pub(crate) fn flow(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: values of a hash map stay readable while the program runs; `locked` keeps writers apart.
    FLOWS.get_ptr_mut(key).map(|value| unsafe { &mut *value })
}

/// Does something while nobody else reads or writes the flow. Nothing in it may call the kernel.
#[inline(always)]
#[expect(unsafe_code, reason = "helpers of the kernel")]
pub(crate) fn locked<R>(flow: &mut Flow, act: impl FnOnce(&mut Flow) -> R) -> R {
    let lock = (&raw mut flow.lock).cast::<bpf_spin_lock>();
    // SAFETY: the lock lies in a map's value, where the map's description says.
    unsafe { generated::bpf_spin_lock(lock) };
    let result = act(flow);
    // SAFETY: taken above.
    unsafe { generated::bpf_spin_unlock(lock) };
    result
}

/// A local port. User space writes its parts one after the other, so that a packet in between may be looked at by either
/// set of rules.
#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
pub(crate) fn local(port: u16) -> Option<&'static Local> {
    // SAFETY: values of an array stay readable, and each field is read at once.
    entry(port).map(|entry| unsafe { &*entry })
}

#[inline(always)]
#[expect(unsafe_code, reason = "a map value is reached through a pointer")]
fn entry(port: u16) -> Option<*mut Local> {
    let row = SLOTS.get_ptr(port as u32 / abi::SLOTS_ROW as u32)?;
    // SAFETY: within the row. Volatile, as user space may write it.
    let slot = unsafe { core::ptr::read_volatile(row.cast::<u16>().add(port as usize % abi::SLOTS_ROW)) };
    if slot == 0 { None } else { LOCALS.get_ptr_mut(slot as u32) }
}

/// Notes whether the app's socket was there, when data came for a connection to this port.
#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
pub(crate) fn was_there(port: u16, there: bool) {
    if let Some(local) = entry(port) {
        // SAFETY: one aligned word of a value that stays readable while the program runs.
        unsafe {
            if !there {
                (*local).deferred += 1;
            } else if (*local).deferred != 0 {
                (*local).deferred = 0;
            }
        };
    }
}

/// Whether connections from this address are never looked at.
#[inline(always)]
pub(crate) fn is_exempt(address: AddressWords, v6: bool) -> bool {
    let slot = if v6 { common::SLOT_V6 } else { common::SLOT_V4 };
    EXEMPT.get(aya_ebpf::maps::lpm_trie::Key::new(common::ADDRESS_BITS, address)) == Some(&slot)
}

/// Adds to a counter of this CPU.
#[inline(always)]
#[expect(unsafe_code, reason = "a per-CPU slot is reached through a pointer")]
pub(crate) fn count(counter: FlowCounter, by: u32) {
    if let Some(slot) = FLOW_COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's slot; see `Scratch`.
        unsafe { *slot = (*slot).wrapping_add(by as u64) };
    }
}

/// Now, in ns of `CLOCK_MONOTONIC`.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel")]
pub(crate) fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { generated::bpf_ktime_get_ns() }
}

/// Tells the agent something about a flow.
#[inline(always)]
pub(crate) fn tell(key: &FlowKey, kind: EventKind, id: u32) {
    let event = Event::new(*key, kind, id, now());
    // Lost when the buffer is full: the agent looks after what it waits for by itself as well.
    let _ = EVENTS.output::<Event>(&event, 0);
}

/// A number for a new flow that others of the same key did not have.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel")]
pub(crate) fn new_id() -> u32 {
    // SAFETY: a random number.
    unsafe { helpers::bpf_get_prandom_u32() }
}

/// A length between 1 and `limit`, a power of two, in a way that the verifier sees: `length` itself where it is one.
#[inline(always)]
#[cfg_attr(target_arch = "bpf", expect(unsafe_code, reason = "an empty instruction"))]
pub(crate) fn bounded(length: u32, limit: u32) -> u32 {
    let less_one = if length > limit { limit - 1 } else { length.wrapping_sub(1) };
    #[cfg(target_arch = "bpf")]
    let less_one = {
        let mut wide = less_one as u64;
        // Of what comes out the compiler knows nothing, so it leaves the mask in place, right before the call of a helper.
        // SAFETY: changes nothing.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) wide) };
        wide as u32
    };
    (less_one & (limit - 1)) + 1
}
