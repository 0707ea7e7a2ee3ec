//! Reads what `tcpdump -w` has written (pcap-savefile(5)): the TCP packets over IPv4, from a network device or from
//! nftables' log.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

pub(super) const FIN: u8 = 1 << 0;
pub(super) const SYN: u8 = 1 << 1;
pub(super) const RST: u8 = 1 << 2;
pub(super) const PSH: u8 = 1 << 3;
pub(super) const ACK: u8 = 1 << 4;

/// Times in micro- and in nanoseconds, as this machine writes numbers.
const MICROS: u32 = 0xa1b2_c3d4;
const NANOS: u32 = 0xa1b2_3c4d;

/// Kinds of packets (https://www.tcpdump.org/linktypes.html).
const ETHERNET: u32 = 1;
const NFLOG: u32 = 239;

/// The attribute of a logged packet that has its bytes.
const PAYLOAD: u16 = 9;

const ETHERTYPE_IPV4: u16 = 0x0800;
const TCP: u8 = 6;

/// A TCP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Packet {
    /// Since 1970.
    pub(super) at: Duration,
    /// Who has put it on the wire; only where it was seen at a device.
    pub(super) sender: Option<[u8; 6]>,
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    /// Of its data.
    pub(super) length: u32,
}

/// All TCP packets of a file.
pub(super) fn read(file: &[u8]) -> Result<Vec<Packet>> {
    let word = |at| word(file, at).context("the capture ends in the middle of its head");
    let unit = match word(0)? {
        MICROS => 1_000,
        NANOS => 1,
        other => bail!("no capture of this machine: it begins with {other:#x}"),
    };
    let kind = word(20)?;
    ensure!(kind == ETHERNET || kind == NFLOG, "a capture of packets of kind {kind}, which is not known here");
    let (mut packets, mut at) = (Vec::new(), 24);
    while at < file.len() {
        let time = Duration::from_secs(word(at)?.into()) + Duration::from_nanos(u64::from(word(at + 4)?) * unit);
        let (begin, length) = (at + 16, usize::try_from(word(at + 8)?)?);
        at = begin + length;
        // The last one may still be on its way into the file.
        let Some(bytes) = file.get(begin..at) else { break };
        let packet = if kind == ETHERNET { ethernet(bytes) } else { logged(bytes) };
        packets.extend(packet.map(|packet| Packet { at: time, ..packet }));
    }
    Ok(packets)
}

fn ethernet(frame: &[u8]) -> Option<Packet> {
    let (head, ip) = frame.split_at_checked(14)?;
    (short(head, 12)? == ETHERTYPE_IPV4).then_some(())?;
    Some(Packet { sender: Some(head[6..12].try_into().ok()?), ..ipv4(ip)? })
}

/// Family, version and group, then attributes: length and type as this machine writes numbers, each padded to four bytes.
fn logged(record: &[u8]) -> Option<Packet> {
    let mut rest = record.get(4..)?;
    loop {
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = rest.get(4..length)?;
        if kind == PAYLOAD {
            return ipv4(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet> {
    let (&first, &protocol) = (packet.first()?, packet.get(9)?);
    (first >> 4 == 4 && protocol == TCP).then_some(())?;
    let (head, whole) = (usize::from(first & 0xf) * 4, usize::from(short(packet, 2)?));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let tcp = packet.get(head..)?;
    let number = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Packet {
        at: Duration::ZERO,
        sender: None,
        from: SocketAddrV4::new(address(12)?, short(tcp, 0)?),
        to: SocketAddrV4::new(address(16)?, short(tcp, 2)?),
        seq: number(4)?,
        ack: number(8)?,
        flags: *tcp.get(13)?,
        // By the packet's own word: the capture has its beginning only.
        length: u32::try_from(whole.checked_sub(head + data)?).ok()?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
