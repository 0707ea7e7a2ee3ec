//! Sockets made in the middle of a connection (`TCP_REPAIR`, tcp(7); the use of it by CRIU: criu.org/TCP_connection).
//!
//! A socket in repair mode sends nothing, whatever is done to it: its numbers, options and windows are written as those
//! of a connection that exists already. Needs `CAP_NET_ADMIN`.

#![expect(unsafe_code, reason = "socket options that no library has")]

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

// Of linux/tcp.h; libc has some of them.
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const REPAIR_ON: i32 = 1;
const REPAIR_OFF: i32 = 0;
/// Off, without the window probe that tells the peer where this end stands.
const REPAIR_OFF_QUIET: i32 = -1;
const NO_QUEUE: i32 = 0;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
// Kinds of TCP options, as `tcp_repair_opt` names them.
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;
// The least and the most that `TCP_MAXSEG` takes.
const TCP_MIN_MSS: u32 = 88;
const MAX_TCP_WINDOW: u32 = 32_767;

/// A connection as one end of it sees it. Numbers are those of TCP headers, windows in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// The next number that it sends.
    pub(super) send: u32,
    /// The next number that it receives.
    pub(super) receive: u32,
    /// Largest segment that it sends, options included.
    pub(super) mss: u32,
    /// Shifts of the windows that it is told and that it tells; 0 where they were not negotiated.
    pub(super) scales: (u8, u8),
    pub(super) selective: bool,
    /// The value of its timestamps now, where they were negotiated.
    pub(super) timestamp: Option<u32>,
    /// What it may send, and what it has allowed its peer to send.
    pub(super) windows: (u32, u32),
}

#[repr(C)]
struct RepairOption {
    code: u32,
    value: u32,
}

#[repr(C)]
struct RepairWindow {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

/// A socket in repair mode that is no connection's yet.
#[derive(Debug)]
pub(super) struct Blank {
    socket: Socket,
}

/// A connection's socket in repair mode. Dropped, it vanishes without a packet.
#[derive(Debug)]
pub(super) struct Repaired {
    socket: Socket,
}

fn set<T>(socket: &impl AsFd, option: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a value of that length, which the kernel copies.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const *value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(socket: &impl AsFd, option: i32) -> io::Result<u32> {
    let (mut value, mut length) = (0_u32, 4);
    // SAFETY: the pointers are to a value of four bytes and to its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that wait in a queue of a connection: unread ones (`SIOCINQ`) or ones that the peer has not acknowledged
/// (`SIOCOUTQ`).
fn waiting(socket: &impl AsFd, queue: libc::c_ulong) -> io::Result<i32> {
    let mut bytes = 0_i32;
    // SAFETY: the pointer is to the number that these requests write.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), queue, &raw mut bytes) };
    if result == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Whether all that has arrived has been read.
pub(super) fn is_read(socket: &impl AsFd) -> io::Result<bool> {
    Ok(waiting(socket, libc::FIONREAD)? == 0)
}

/// Whether all that was written has been acknowledged.
pub(super) fn is_acknowledged(socket: &impl AsFd) -> io::Result<bool> {
    Ok(waiting(socket, libc::TIOCOUTQ)? == 0)
}

/// The next numbers that an open connection sends and receives.
pub(super) fn numbers(socket: &impl AsFd) -> io::Result<(u32, u32)> {
    set(socket, TCP_REPAIR, &REPAIR_ON)?;
    let read = |queue: i32| {
        set(socket, TCP_REPAIR_QUEUE, &queue)?;
        get(socket, TCP_QUEUE_SEQ)
    };
    let numbers = read(SEND_QUEUE).and_then(|send| Ok((send, read(RECEIVE_QUEUE)?)));
    // In any case: a socket in repair mode hangs its connection.
    set(socket, TCP_REPAIR_QUEUE, &NO_QUEUE)?;
    set(socket, TCP_REPAIR, &REPAIR_OFF_QUIET)?;
    numbers
}

/// What the timestamp value of an open connection is by now, or one more: the kernel does not tell the lowest bit.
pub(super) fn time(socket: &impl AsFd) -> io::Result<u32> {
    Ok(get(socket, TCP_TIMESTAMP)?.wrapping_add(1))
}

/// Whether this process may make sockets like that.
pub(super) fn supported() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    set(&socket, TCP_REPAIR, &REPAIR_ON)
}

/// Makes an open connection end without a packet when it is closed.
pub(crate) fn silence(socket: &impl AsFd) -> io::Result<()> {
    set(socket, TCP_REPAIR, &REPAIR_ON)
}

// === impl Blank ===

impl Blank {
    /// All that does not depend on the connection is done.
    pub(super) fn new(domain: Domain) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        set(&socket, TCP_REPAIR, &REPAIR_ON)?;
        set(&socket, TCP_REPAIR_QUEUE, &SEND_QUEUE)?;
        socket.set_tcp_nodelay(true)?;
        // A reset, if this process dies: the other end shall not take it for the end of an answer.
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(Self { socket })
    }

    /// Makes it one end of a connection that exists.
    pub(super) fn become_end(self, end: &End) -> io::Result<Repaired> {
        let Self { socket } = self;
        set(&socket, TCP_QUEUE_SEQ, &end.send)?;
        // The queue that `Repaired::received` fills, too.
        set(&socket, TCP_REPAIR_QUEUE, &RECEIVE_QUEUE)?;
        set(&socket, TCP_QUEUE_SEQ, &end.receive)?;
        // The option of this name comes too late for the segments' size: that is computed here, and would be 536 less options.
        socket.set_tcp_mss(end.mss.clamp(TCP_MIN_MSS, MAX_TCP_WINDOW))?;
        socket.bind(&end.local.into())?;
        socket.connect(&end.peer.into())?;

        let (told, tells) = end.scales;
        let mss = RepairOption { code: OPTION_MSS, value: end.mss };
        // Always: without it the window that is told shrinks, and what is uploaded hangs.
        let window = RepairOption { code: OPTION_WINDOW, value: u32::from(told) | u32::from(tells) << 16 };
        let selective = RepairOption { code: OPTION_SACK, value: 0 };
        let timestamps = RepairOption { code: OPTION_TIMESTAMP, value: 0 };
        match (end.selective, end.timestamp.is_some()) {
            (true, true) => set(&socket, TCP_REPAIR_OPTIONS, &[mss, window, selective, timestamps])?,
            (true, false) => set(&socket, TCP_REPAIR_OPTIONS, &[mss, window, selective])?,
            (false, true) => set(&socket, TCP_REPAIR_OPTIONS, &[mss, window, timestamps])?,
            (false, false) => set(&socket, TCP_REPAIR_OPTIONS, &[mss, window])?,
        }
        if let Some(value) = end.timestamp {
            // Bit 0 would switch the socket to microseconds.
            set(&socket, TCP_TIMESTAMP, &(value & !1))?;
        }
        let (snd_wnd, rcv_wnd) = end.windows;
        let window = RepairWindow { snd_wl1: end.receive, snd_wnd, max_window: snd_wnd, rcv_wnd, rcv_wup: end.receive };
        set(&socket, TCP_REPAIR_WINDOW, &window)?;
        Ok(Repaired { socket })
    }
}

// === impl Repaired ===

impl Repaired {
    /// Puts bytes where the connection's reader will find them, as if they had just arrived.
    pub(super) fn received(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.socket.send(rest)?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Leaves repair mode: from now on it is a connection like any other. `tell`: whether the peer is told at once what
    /// has arrived.
    pub(super) fn open(self, tell: bool) -> io::Result<Socket> {
        // Outside repair mode no queue is looked at, and who enters it again begins without one (`do_tcp_setsockopt`).
        set(&self.socket, TCP_REPAIR, if tell { &REPAIR_OFF } else { &REPAIR_OFF_QUIET })?;
        Ok(self.socket)
    }
}
