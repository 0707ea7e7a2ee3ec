//! Live insertion, the kernel's part: callers talk to the app natively, and the agent is inserted into a connection when
//! one of its requests may fit a rule.
//!
//! [`ingress`] and [`egress`] run for each packet of the pod's network devices. A *flow* ([`sluice_ebpf_common::insertion::Flow`])
//! is in one of four states:
//!
//! ```text
//!            request may match            the agent's sockets are ready (command)
//!   Native ------------------> Held ---------------------------------> Split
//!     ^  |                      |                                        |
//!     |  | not HTTP             | nobody came, or `Release`              |
//!     |  +--------> Wire        v                                        |
//!     |                       Native (reads on at the next exchange)     |
//!     +------------------------------------------------------------------+
//!           armed, and the caller goes on exactly at the armed numbers
//! ```
//!
//! * **Native**: packets pass. Where a request head begins, [`scan`] proves that it fits no rule, or the packet is held.
//! * **Held**: what the caller sends is kept from the app and copied to the agent ([`held`]); everything else
//!   passes.
//! * **Split**: packets are rewritten so that the caller talks to one socket of the agent and the app to another.
//! * **Wire**: no HTTP; never looked at again.
//!
//! [`spare`] steers connections that these programs have not seen begin: over loopback, through a redirection inside the
//! pod, over a device that they are not attached to, or when there is no room for another flow. [`command`] is how the
//! agent changes a flow. Every failure means "to the app".

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(clippy::cast_possible_truncation, reason = "the kernel's lengths and numbers have 32 bits")]
#![expect(clippy::needless_borrows_for_generic_args, reason = "a copy would take room on a stack of 512 bytes")]

mod beginning;
mod checksum;
mod command;
mod copy;
mod egress;
mod held;
mod ingress;
mod maps;
#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
mod packet;
mod scan;
mod spare;

/// Go on with the next program, or pass: what the kernel makes of an answer that it does not know (`TCX_NEXT`).
pub(crate) const PASS: i32 = -1;
/// Not to the app.
pub(crate) const DROP: i32 = 2;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
