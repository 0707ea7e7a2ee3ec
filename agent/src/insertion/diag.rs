//! What the kernel knows of the app's own socket (sock_diag(7), `tcp_info` of linux/tcp.h).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use crate::netlink::{
    AF_INET, AF_INET6, IPPROTO_TCP, Line, NLM_F_REQUEST, Request, SOCK_DIAG_BY_FAMILY, TCP_CLOSE_WAIT, TCP_ESTABLISHED,
    attribute,
};

/// `INET_DIAG_INFO`, as the bit that asks for it and as the attribute that answers.
const INFO: u16 = 2;
/// Bytes of `inet_diag_msg`.
const MESSAGE: usize = 72;
// `tcpi_options`.
const OPTION_TIMESTAMPS: u8 = 1;
const OPTION_SACK: u8 = 2;

/// An open connection of the app. Windows in bytes, the largest segments without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) timestamps: bool,
    pub(super) selective: bool,
    /// Shifts of the windows that it is told and that it tells.
    pub(super) scales: (u8, u8),
    pub(super) send_mss: u32,
    pub(super) told_mss: u32,
    /// What it may send, and what it has allowed its peer to send.
    pub(super) windows: (u32, u32),
    /// The peer has spoken last: something is owed to it, or it is in the middle of something.
    pub(super) asked: bool,
    /// For so many ms nothing was sent or received.
    pub(super) idle: u32,
}

/// What [`info_over`] asks over.
pub(super) fn line() -> Line {
    Line::opened(libc::NETLINK_SOCK_DIAG)
}

/// Asks for the app's end of a connection. `None` where there is none, or it is not open.
pub(super) fn info(local: SocketAddr, peer: SocketAddr) -> io::Result<Option<Info>> {
    info_over(&mut line(), local, peer)
}

/// As [`info`], for those who ask often.
pub(super) fn info_over(line: &mut Line, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<Info>> {
    let mut id = Vec::with_capacity(48);
    id.extend(local.port().to_be_bytes());
    id.extend(peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes = address.octets(),
        }
        id.extend(bytes);
    }
    id.extend([0; 4]);
    // Any cookie.
    id.extend([0xff; 8]);
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST)
        .with(&[family, IPPROTO_TCP, 1 << (INFO - 1), 0])
        .with(&u32::MAX.to_ne_bytes())
        .with(&id);
    match line.ask(request) {
        Ok(answer) => Ok(read(answer.body())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(message: &[u8]) -> Option<Info> {
    of_tcp_info(attribute(message.get(MESSAGE..)?, INFO)?)
}

fn of_tcp_info(info: &[u8]) -> Option<Info> {
    let word = |at: usize| info.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let (state, options, scales) = (*info.first()?, *info.get(5)?, *info.get(6)?);
    if state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT {
        return None;
    }
    // The first of two bit fields is in the lower half of the byte where bytes are little-endian.
    let scales = (scales & 0xf, scales >> 4);
    Some(Info {
        timestamps: options & OPTION_TIMESTAMPS != 0,
        selective: options & OPTION_SACK != 0,
        scales,
        send_mss: word(16)?,
        told_mss: word(84)?,
        asked: {
            // `tcpi_last_data_sent` and `tcpi_last_data_recv`: how long ago, in ms, as exactly as the kernel's ticks; and
            // whether there was any, by `tcpi_bytes_received` and `tcpi_bytes_sent` (the latter since Linux 4.19).
            let any = |at: usize| Some(word(at)? | word(at + 4)? != 0);
            let (received, sent) = (any(128).unwrap_or(true), any(200).unwrap_or(true));
            received && (!sent || word(44)? > word(52)?)
        },
        // `tcpi_last_data_sent`, `tcpi_last_data_recv`, `tcpi_last_ack_recv`.
        idle: word(44)?.min(word(52)?).min(word(56)?),
        // `tcpi_snd_wnd` since Linux 5.4, `tcpi_rcv_wnd` since 6.2; what is certainly allowed where it is not told.
        windows: (word(228).unwrap_or(64 << 10), word(232).unwrap_or(word(64)?)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_tells_of_an_open_connection_and_of_no_other() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (app, peer) = listener.accept().unwrap();
        let local = app.local_addr().unwrap();
        let told = info(local, peer).unwrap().unwrap();
        assert!(
            told.send_mss > 1000 && told.told_mss > 1000 && told.windows.0 > 1000 && told.windows.1 > 1000,
            "{told:?}"
        );
        let other = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let mut line = line();
        for _ in 0..3 {
            assert_eq!(info_over(&mut line, local, other).unwrap(), None);
            assert_eq!(info_over(&mut line, local, peer).unwrap().unwrap().scales, told.scales);
        }
        drop((app, caller));
        assert_eq!(info(local, other).unwrap(), None);
    }
}
