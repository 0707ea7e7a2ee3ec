//! The kernel part and the dialer on the real kernel.
//!
//! Every test works in a network namespace of its own, which goes with the thread that made it, so they run side by
//! side and leave nothing behind. They need root, `ip`, `bpftool`, `setpriv` and `unshare`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it cannot go on")]

#[path = "kernel/arming.rs"]
mod arming;
#[path = "kernel/dialing.rs"]
mod dialing;
#[path = "kernel/logging.rs"]
mod logging;
#[path = "kernel/namespace.rs"]
mod namespace;
#[path = "kernel/privileges.rs"]
mod privileges;
#[path = "kernel/steering.rs"]
mod steering;
