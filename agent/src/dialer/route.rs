//! The route that makes the agent's IPv6 sources local: `local fd91:f3ea:b62:eebf::/64 dev lo`.
//!
//! Added when it is first needed. It expires by itself, and the agent renews it until it is dropped, which removes it:
//! an agent that is killed leaves it for [`EXPIRY`] at most. From then on the kernel does not use it any more, though
//! it may be listed until the next round of garbage collection, 30 s later at most (`net.ipv6.route.gc_interval`).
//! Needs `CAP_NET_ADMIN`, and no writable /proc/sys.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sluice_ebpf_common as abi;
use tokio::{task::AbortHandle, time};

use crate::netlink::{AF_INET6, NLM_F_ACK, NLM_F_REQUEST, Request};

/// How long the route lives after it was last renewed.
const EXPIRY: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(5);

// Numbers of the Linux ABI.
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;
/// Who made the route, for people who look at it; no other software uses this number.
const RTPROT_SLUICE: u8 = 77;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_EXPIRES: u16 = 23;
/// The loopback interface has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// The route, once it is needed. Dropping it removes the route.
#[derive(Debug, Default)]
pub(super) struct OwnRoute {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    renewed: Option<Instant>,
    keeper: Option<AbortHandle>,
}

// === impl OwnRoute ===

impl OwnRoute {
    /// Makes sure that the route is there and stays. Must be called within a tokio runtime.
    pub(super) fn ensure(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Late renewals happen: a paused container, a laptop that slept.
        if state.renewed.is_none_or(|renewed| renewed.elapsed() > 2 * RENEWAL) {
            state.renew()?;
        }
        if state.keeper.as_ref().is_none_or(AbortHandle::is_finished) {
            let kept = Arc::downgrade(&self.state);
            let keeper = tokio::spawn(async move {
                loop {
                    time::sleep(RENEWAL).await;
                    let Some(state) = kept.upgrade() else { break };
                    let renewed = state.lock().unwrap_or_else(PoisonError::into_inner).renew();
                    if let Err(error) = renewed {
                        tracing::warn!(%error, "cannot renew the agent's local IPv6 route");
                    }
                }
            });
            state.keeper = Some(keeper.abort_handle());
        }
        Ok(())
    }
}

impl Drop for OwnRoute {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = state.keeper.take() {
            keeper.abort();
        }
        if state.renewed.take().is_some()
            && let Err(error) = remove()
        {
            tracing::warn!(%error, "cannot remove the agent's local IPv6 route; it expires by itself");
        }
    }
}

// === impl State ===

impl State {
    fn renew(&mut self) -> io::Result<()> {
        add()?;
        self.renewed = Some(Instant::now());
        Ok(())
    }
}

fn add() -> io::Result<()> {
    let expiry = u32::try_from(EXPIRY.as_secs()).map_err(io::Error::other)?;
    message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
        .attribute(RTA_EXPIRES, expiry.to_ne_bytes())
        .ask(libc::NETLINK_ROUTE)
        .map(drop)
}

fn remove() -> io::Result<()> {
    message(RTM_DELROUTE, 0).ask(libc::NETLINK_ROUTE).map(drop)
}

fn message(kind: u16, flags: u16) -> Request {
    // family, destination length, source length, TOS, table, protocol, scope, type; then flags
    let header = [AF_INET6, abi::OWN_SOURCE_V6_BITS, 0, 0, RT_TABLE_LOCAL, RTPROT_SLUICE, 0, RTN_LOCAL, 0, 0, 0, 0];
    Request::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags)
        .with(&header)
        .attribute(RTA_DST, abi::OWN_SOURCE_V6)
        .attribute(RTA_OIF, LOOPBACK.to_ne_bytes())
}
