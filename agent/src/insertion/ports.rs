//! What there is for each port with live insertion besides the maps: the agent's own two ports, and the connections that
//! were there before or need the programs still.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use aya::maps::{HashMap, MapData, MapError};
use sluice_ebpf_common::insertion::{FLAG_ASKING, FLAG_OLD, FLAG_SHAKEN, FLAG_UNSET, FLOWS_MAP, Flow, FlowKey, State};

use super::{
    diag,
    hints::Hints,
    joining::{caller_of, pod_of},
    programs::ProgramsError,
};
use crate::existing;

/// Does not replace what is there: `BPF_NOEXIST`.
const NOT_EXISTING: u64 = 1;

/// A port whose requests are looked at in the kernel.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) hints: Hints,
    pub(super) facing_caller: Reserved,
    pub(super) facing_app: Reserved,
    pub(super) active: bool,
}

/// A free port that nobody else gets, in both families.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) port: u16,
    _sockets: Vec<socket2::Socket>,
}

/// Whether a connection needs the programs still.
pub(super) fn depends(key: &FlowKey, flow: &Flow) -> bool {
    if flow.state == State::Split as u32 || flow.state == State::Held as u32 {
        return true;
    }
    match flow.gap() {
        Some(0) => false,
        // Nobody notices a gap that is over before the next packet. One that nothing is known of has ended.
        Some(gap) => diag::info(pod_of(key), caller_of(key)).ok().flatten().is_some_and(|info| info.idle <= gap),
        None => true,
    }
}

/// Tells the programs of connections that were there before them: the agent's own are none to be inserted into, and of the
/// others only who asks the app's socket knows whether they are in the middle of something.
///
/// With `again` they may be shifted by programs that are there still: nobody else must touch them.
pub(super) fn note_existing(
    map: &mut HashMap<MapData, FlowKey, Flow>,
    port: u16,
    again: bool,
) -> Result<(), ProgramsError> {
    let failed = |source| ProgramsError::Io { what: "the connections to the port cannot be listed", source };
    let mut line = diag::line();
    for connection in existing::connections(port).map_err(failed)? {
        let words = |address: IpAddr| {
            let bytes = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let (words, _) = bytes.as_chunks::<4>();
            [words[0], words[1], words[2], words[3]].map(u32::from_ne_bytes)
        };
        let (local, peer) = (connection.local, connection.peer);
        let key = FlowKey { caller: words(peer.ip()), pod: words(local.ip()), caller_port: peer.port(), port };
        let flow = if connection.own || again {
            Flow::new(State::Wire, 0)
        } else {
            let Some(info) = diag::info_over(&mut line, local, peer).map_err(failed)? else { continue };
            let mut flow = Flow::new(State::Native, 0);
            flow.flags = FLAG_OLD | FLAG_SHAKEN | FLAG_UNSET;
            if info.asked {
                flow.flags |= FLAG_ASKING;
            }
            flow
        };
        match map.insert(key, flow, NOT_EXISTING) {
            // One that the programs know already.
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            inserted => inserted.map_err(|source| ProgramsError::Map { map: FLOWS_MAP, source })?,
        }
    }
    Ok(())
}

// === impl Port ===

impl Port {
    pub(super) fn new() -> Result<Self, ProgramsError> {
        let reserve = || {
            let reserved = Reserved::new();
            reserved.map_err(|source| ProgramsError::Io { what: "no port can be reserved for insertion", source })
        };
        Ok(Self { hints: Hints::default(), facing_caller: reserve()?, facing_app: reserve()?, active: false })
    }
}

// === impl Reserved ===

impl Reserved {
    fn new() -> io::Result<Self> {
        // A listener finds a free port; bound sockets without it keep the port from others, and no caller gets through.
        for _ in 0..32 {
            let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port();
            let mut sockets = vec![bound((Ipv4Addr::UNSPECIFIED, port).into())?];
            match bound((Ipv6Addr::UNSPECIFIED, port).into()) {
                Ok(socket) => sockets.push(socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                // No IPv6 here.
                Err(_) => {}
            }
            return Ok(Self { port, _sockets: sockets });
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

fn bound(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
