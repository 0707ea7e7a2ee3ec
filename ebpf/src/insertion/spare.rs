//! New connections to a port with HTTP rules that the packet programs have not seen begin: the agent takes them, as it
//! takes all connections to a port that is steered.
//!
//! So nobody needs to know how a connection may come: over loopback from a mesh's proxy, through a redirection inside the
//! pod, over a device that came later, in an IP packet with options.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::sk_action::SK_PASS, macros::sk_lookup, programs::SkLookupContext};
use sluice_ebpf_common::{
    self as common,
    insertion::{self as abi, Flow, FlowCounter, FlowKey, State},
};

use super::{
    maps::{self, FLOWS, LISTENERS, count, flow},
    packet::IPPROTO_TCP,
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The program.
#[sk_lookup]
#[expect(clippy::needless_pass_by_value, reason = "the macro passes the context by value")]
fn sluice_spare(ctx: SkLookupContext) -> u32 {
    let _ = steer(&ctx);
    SK_PASS
}

#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer from the kernel")]
fn steer(ctx: &SkLookupContext) -> Option<()> {
    let lookup = ctx.lookup;
    // SAFETY: the kernel calls the program with a valid `bpf_sk_lookup`. Volatile, because LLVM otherwise forms pointers
    // that the verifier refuses.
    let (family, protocol, port, caller_port) = unsafe {
        (
            read_volatile(&raw const (*lookup).family),
            read_volatile(&raw const (*lookup).protocol),
            read_volatile(&raw const (*lookup).local_port),
            read_volatile(&raw const (*lookup).remote_port),
        )
    };
    if protocol != IPPROTO_TCP as u32 {
        return None;
    }
    let local = maps::local(port as u16)?;
    if local.kind != abi::LOCAL_PORT || local.active == 0 {
        return None;
    }
    let (caller, pod, slot, own) = match family {
        AF_INET => {
            // SAFETY: as above.
            let (caller, pod) = unsafe {
                (read_volatile(&raw const (*lookup).remote_ip4), read_volatile(&raw const (*lookup).local_ip4))
            };
            let own = common::is_own_source_v4(caller);
            (common::v4_mapped_words(caller), common::v4_mapped_words(pod), common::SLOT_V4, own)
        }
        AF_INET6 => {
            // SAFETY: as above; word by word, as the verifier wants it.
            let (caller, pod) = unsafe {
                (
                    [
                        read_volatile(&raw const (*lookup).remote_ip6[0]),
                        read_volatile(&raw const (*lookup).remote_ip6[1]),
                        read_volatile(&raw const (*lookup).remote_ip6[2]),
                        read_volatile(&raw const (*lookup).remote_ip6[3]),
                    ],
                    [
                        read_volatile(&raw const (*lookup).local_ip6[0]),
                        read_volatile(&raw const (*lookup).local_ip6[1]),
                        read_volatile(&raw const (*lookup).local_ip6[2]),
                        read_volatile(&raw const (*lookup).local_ip6[3]),
                    ],
                )
            };
            (caller, pod, common::SLOT_V6, common::is_own_source_v6([caller[0], caller[1]]))
        }
        _ => return None,
    };
    if own || maps::is_exempt(caller, family == AF_INET6) {
        return None;
    }
    let key = FlowKey { caller, pod, caller_port: u16::from_be(caller_port), port: port as u16 };
    if flow(&key).is_some() {
        return None;
    }
    // So that the packet programs leave it alone. Where there is no room, they will find none either.
    let _ = FLOWS.insert(&key, &Flow::new(State::Wire, maps::new_id()), 1);
    LISTENERS.redirect_sk_lookup(ctx, slot, 0).ok()?;
    count(FlowCounter::Steered, 1);
    Some(())
}
