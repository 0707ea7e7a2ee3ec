//! The program that runs in the kernel: for each new connection to a port of this network namespace it decides between
//! the app (do nothing) and the agent (hand the connection to the agent's listener).
//!
//! Runs in the kernel as `sk_lookup`, once per lookup of a listener: after NAT, mesh and network policy, never for the
//! packets of an established connection. It looks at no payload, drops nothing and changes nothing: every miss, and
//! every failure, means "to the app".
//!
//! `cargo xtask ebpf` compiles it to `ebpf/sluice.bpf.o`, which is committed and is what the agent loads. A build for
//! the host has an empty `main`, so that the usual tools check this code with a stable compiler.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod context;
mod maps;
#[cfg(target_arch = "bpf")]
mod object;

use aya_ebpf::{bindings::sk_action::SK_PASS, macros::sk_lookup, programs::SkLookupContext};
use aya_log_ebpf::debug;
use sluice_ebpf_common::{Counter, MODE_STEER, PortKey, bytes_of};

use crate::{
    context::Lookup,
    maps::{COUNTERS, EXEMPT, LISTENERS, PORTS, count},
};

/// Decides one lookup. The verdict is always "pass": what differs is whether a socket was assigned before.
#[sk_lookup]
#[expect(clippy::needless_pass_by_value, reason = "the macro passes the context by value")]
fn sluice_steer(ctx: SkLookupContext) -> u32 {
    if let Some(lookup) = Lookup::read(&ctx) {
        steer(&ctx, &lookup);
    }
    SK_PASS
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, lookup: &Lookup) {
    if lookup.is_own_source() {
        count(&COUNTERS, Counter::Own);
        return;
    }
    let key = PortKey::new(lookup.local_port, lookup.protocol);
    if maps::mode(&PORTS, &key) & MODE_STEER == 0 {
        return;
    }
    if EXEMPT.get(lookup.exempt_key()) == Some(&lookup.listener_slot()) {
        debug!(ctx, "port {} from {:i}: exempt, to the app", lookup.local_port, bytes_of(lookup.address));
        count(&COUNTERS, Counter::Exempt);
        return;
    }
    match LISTENERS.redirect_sk_lookup(ctx, lookup.listener_slot(), 0) {
        Ok(()) => {
            debug!(ctx, "port {} from {:i}: to the agent", lookup.local_port, bytes_of(lookup.address));
            count(&COUNTERS, Counter::Steered);
        }
        Err(errno) => {
            debug!(
                ctx,
                "port {} from {:i}: no listener ({}), to the app",
                lookup.local_port,
                bytes_of(lookup.address),
                errno
            );
            count(&COUNTERS, Counter::NoListener);
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
