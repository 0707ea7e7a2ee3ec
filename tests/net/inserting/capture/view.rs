//! One connection as one of its ends sees it: that nothing in it is missing, comes twice or goes back.

use std::{fmt::Write as _, net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::pcap::{ACK, FIN, PSH, Packet, RST, SYN};

/// Packets of the two views that are one and the same are no further apart.
const SAME: Duration = Duration::from_millis(5);

/// The packets of one connection, in the order in which they came by.
pub(super) struct View {
    name: &'static str,
    caller: SocketAddrV4,
    packets: Vec<Packet>,
}

/// One direction of it.
#[derive(Default)]
struct Way {
    /// The number of its SYN.
    first: Option<u32>,
    /// What its next byte must be.
    next: u32,
    /// What it has acknowledged.
    acked: Option<u32>,
    bytes: u32,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Seen {
    /// Bytes of the caller and of the app.
    pub(super) bytes: [u32; 2],
    /// Packets that ask for an acknowledgement: without data and one behind, or with the last bytes once more.
    pub(super) probes: usize,
}

// === impl View ===

impl View {
    /// Those of the packets that are the caller's connection to `app`.
    pub(super) fn new(name: &'static str, packets: &[Packet], caller: SocketAddrV4, app: SocketAddrV4) -> Self {
        let of_it =
            |packet: &&Packet| (packet.from, packet.to) == (caller, app) || (packet.from, packet.to) == (app, caller);
        Self { name, caller, packets: packets.iter().filter(of_it).copied().collect() }
    }

    /// Fails at the first packet that an end without anybody in between could not see.
    pub(super) fn unbroken(&self) -> Result<Seen> {
        let mut ways = [Way::default(), Way::default()];
        let mut probes = 0;
        for (number, packet) in self.packets.iter().enumerate() {
            let way = self.way(packet);
            let (own, other) = if way == 0 { (0, 1) } else { (1, 0) };
            let (sent, acked) = (ways[other].next, ways[other].acked);
            let probe = ways[own].follow(packet, sent, acked);
            let shown = || format!("{}, packet {number}, {}", self.name, self.show(packet));
            probes += usize::from(probe.with_context(shown)?);
        }
        for (way, side) in ways.iter().zip(["caller", "app"]) {
            ensure!(way.first.is_some() && way.bytes > 0, "{}: nothing of the {side} was captured", self.name);
        }
        Ok(Seen { bytes: [ways[0].bytes, ways[1].bytes], probes })
    }

    /// 0 from the caller, 1 from the app.
    fn way(&self, packet: &Packet) -> usize {
        usize::from(packet.from != self.caller)
    }

    /// With numbers that begin at 0 in each direction.
    fn show(&self, packet: &Packet) -> String {
        let way = self.way(packet);
        let first = |way| self.packets.iter().find(|packet| self.way(packet) == way).map_or(0, |packet| packet.seq);
        let (seq, mut text) = (packet.seq.wrapping_sub(first(way)), String::new());
        let flags: String = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P')]
            .into_iter()
            .filter_map(|(flag, letter)| (packet.flags & flag != 0).then_some(letter))
            .collect();
        let _ = write!(text, "{} {flags:<2} ", ["→", "←"][way]);
        if packet.length > 0 {
            let _ = write!(text, "{seq}..{}", seq.wrapping_add(packet.length));
        } else {
            let _ = write!(text, "{}", seq.cast_signed());
        }
        if packet.flags & ACK != 0 {
            let _ = write!(text, " ack {}", packet.ack.wrapping_sub(first(1 - way)));
        }
        text
    }
}

// === impl Way ===

impl Way {
    /// `sent`: the end of what the other side has sent, `acked`: of what it has acknowledged. Whether it was a probe.
    fn follow(&mut self, packet: &Packet, sent: u32, acked: Option<u32>) -> Result<bool> {
        ensure!(packet.flags & RST == 0, "a reset");
        if self.first.is_none() {
            ensure!(packet.flags & SYN != 0, "it does not begin with a SYN");
            (self.first, self.next) = (Some(packet.seq), packet.seq);
        }
        let marks = u32::from(packet.flags & SYN != 0) + u32::from(packet.flags & FIN != 0);
        let ahead = packet.seq.wrapping_sub(self.next).cast_signed();
        // How a socket without anything to send asks how things are (RFC 9293 §3.8.4).
        let probe = ahead == -1 && packet.length + marks == 0;
        let end = packet.seq.wrapping_add(packet.length + marks);
        // Nor is it unusual that the last bytes come again when the other side, on a busy machine, has not acknowledged them
        // for some milliseconds (RFC 8985 §7).
        let unanswered = |acked: u32| packet.seq.wrapping_sub(acked).cast_signed() >= 0;
        let again = packet.length > 0 && end == self.next && acked.is_some_and(unanswered);
        if ahead < 0 && again {
            return Ok(true);
        }
        ensure!(ahead >= 0 || probe, "{} bytes come again", -ahead);
        ensure!(ahead <= 0, "{ahead} bytes are missing before it");
        if !probe {
            self.next = end;
        }
        self.bytes += packet.length;
        if packet.flags & ACK != 0 {
            let back = self.acked.map_or(0, |before| before.wrapping_sub(packet.ack).cast_signed());
            ensure!(back <= 0, "it acknowledges {back} bytes less than before");
            let beyond = packet.ack.wrapping_sub(sent).cast_signed();
            ensure!(beyond <= 0, "it acknowledges {beyond} bytes that nobody has sent");
            self.acked = Some(packet.ack);
        }
        Ok(probe)
    }
}

/// Both views beside each other, with a line wherever a mark says that something new begins.
pub(super) fn side_by_side(left: &View, right: &View, marks: &[(Duration, String)]) -> String {
    let mut text = format!("{:>11}  {:<40}{}\n", "ms", left.name, right.name);
    let start = left.packets.first().map_or(Duration::ZERO, |packet| packet.at);
    let (mut lefts, mut rights) = (left.packets.iter().peekable(), right.packets.iter().peekable());
    let mut marks = marks.iter().peekable();
    loop {
        let (at, first, second) = match (lefts.peek(), rights.peek()) {
            (None, None) => break,
            (Some(a), Some(b)) => {
                let kind = |view: &View, packet: &Packet| (view.way(packet), packet.flags, packet.length);
                let same = kind(left, a) == kind(right, b) && a.at.abs_diff(b.at) < SAME;
                (a.at.min(b.at), same || a.at <= b.at, same || b.at < a.at)
            }
            (a, b) => (a.or(b).map_or(Duration::ZERO, |packet| packet.at), a.is_some(), b.is_some()),
        };
        while let Some((_, mark)) = marks.next_if(|(from, _)| *from <= at) {
            let _ = writeln!(text, "--- {mark}");
        }
        let a = first.then(|| lefts.next()).flatten().map(|packet| left.show(packet)).unwrap_or_default();
        let b = second.then(|| rights.next()).flatten().map(|packet| right.show(packet)).unwrap_or_default();
        let ms = at.saturating_sub(start).as_secs_f64() * 1e3;
        let _ = writeln!(text, "{ms:>11.3}  {a:<40}{b}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 1), 1);
    const APP: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 2), 2);

    fn seen(more: &[(usize, u8, u32, u32, u32)]) -> Result<Seen> {
        let start = [(0, SYN, u32::MAX, 0, 0), (1, SYN | ACK, 50, 0, 0), (0, ACK, 0, 51, 10), (1, ACK, 51, 10, 20)];
        let packets: Vec<_> = start
            .iter()
            .chain(more)
            .map(|&(way, flags, seq, ack, length)| Packet {
                at: Duration::ZERO,
                sender: None,
                from: [CALLER, APP][way],
                to: [APP, CALLER][way],
                seq,
                ack,
                flags,
                length,
            })
            .collect();
        View::new("view", &packets, CALLER, APP).unbroken()
    }

    fn fault(packet: (usize, u8, u32, u32, u32)) -> String {
        seen(&[packet]).map_or_else(|error| error.root_cause().to_string(), |seen| format!("{seen:?}"))
    }

    #[test]
    fn a_connection_that_goes_on_is_unbroken() -> Result<()> {
        let seen =
            seen(&[(0, ACK, 10, 71, 0), (1, ACK, 70, 10, 0), (0, ACK | FIN, 10, 71, 5), (1, ACK | FIN, 71, 16, 0)])?;
        assert_eq!((seen.bytes, seen.probes), ([15, 20], 1));
        let again = self::seen(&[(0, ACK, 10, 71, 5), (0, ACK, 10, 71, 5)])?;
        assert_eq!((again.bytes, again.probes), ([15, 20], 1));
        Ok(())
    }

    #[test]
    fn what_no_end_may_see_is_named() {
        assert_eq!(fault((0, RST, 10, 0, 0)), "a reset");
        assert_eq!(fault((0, ACK, 0, 71, 10)), "10 bytes come again");
        assert_eq!(fault((0, ACK, 12, 71, 3)), "2 bytes are missing before it");
        assert_eq!(fault((0, ACK, 12, 71, 0)), "2 bytes are missing before it");
        assert_eq!(fault((0, ACK, 10, 50, 0)), "it acknowledges 1 bytes less than before");
        assert_eq!(fault((1, ACK, 71, 11, 0)), "it acknowledges 1 bytes that nobody has sent");
    }
}
