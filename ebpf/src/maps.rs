//! The maps, and the two accesses that need `unsafe`. Written by the agent, except for the counters.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, LpmTrie, PerCpuArray, SockMap},
};
use sluice_ebpf_common::{self as common, AddressWords, Counter, PortKey};

/// Steered ports and their mode bits.
#[map]
pub(crate) static PORTS: HashMap<PortKey, u32> = HashMap::with_max_entries(2 * common::PORTS_MAX, 0);

/// The agent's listeners. No program is attached to this map: it only names sockets.
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(common::SLOTS, 0);

/// Source addresses that are never steered, each for one family.
#[map]
pub(crate) static EXEMPT: LpmTrie<AddressWords, u32> = LpmTrie::with_max_entries(2 * common::EXEMPT_MAX, 0);

/// What was decided how often.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(common::COUNTERS, 0);

/// The mode bits of a port, none when it is not listed.
#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
pub(crate) fn mode(ports: &HashMap<PortKey, u32>, key: &PortKey) -> u32 {
    // SAFETY: the value is one aligned word, copied at once; user space replaces it as a whole.
    match unsafe { ports.get(key) } {
        Some(mode) => *mode,
        None => 0,
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
#[expect(unsafe_code, reason = "a per-CPU slot is reached through a pointer")]
pub(crate) fn count(counters: &PerCpuArray<u64>, counter: Counter) {
    if let Some(slot) = counters.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's slot of the map, valid for the run of the program, and a lookup is not
        // interrupted by another one on the same CPU.
        unsafe { *slot = (*slot).wrapping_add(1) };
    }
}
