//! Joins one held connection: two sockets at its exact numbers, and the flip in the kernel.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use sluice_ebpf_common::insertion::{
    Answer, Event, FLAG_CLOCK, FLAG_LAST, FLAG_OLD, Flow, FlowKey, Op, Outcome, State,
};
use tokio::{net::TcpStream, time::Instant};

use super::{Position, SharedPrograms, diag, lock, repair::End, stock::Stock};
use crate::{
    http1::{body::Body, head::RequestKind},
    metrics::NotInserted,
    netlink::Line,
};

/// How long one is held at most, once the app has got all before it. Its caller repeats what it sent, after pauses that double (the
/// sixth attempt comes after 6 s), and the app has not seen it.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long before that, where what is before the request was lost. The app does not see what is held, so it cannot tell that
/// something is missing, and only its caller's timer brings it again: after seconds where the connection began with a loss (RFC
/// 6298 §5.7). As long nobody answers anything, whether the request is let go or not.
const PATIENCE_BEFORE: Duration = Duration::from_secs(60);

/// A connection that is held.
pub(super) struct Hold {
    pub(super) id: u32,
    /// Number of the first held byte.
    from: u32,
    bytes: Vec<u8>,
    /// The packet that was held first.
    first: Event,
    pub(super) since: Instant,
    /// Since when the app has got all before the request.
    complete: Instant,
    pub(super) kept: Instant,
    /// The app's new data is kept back as well.
    pub(super) blocked: bool,
    /// Where the app's data ended when it was let on: it is not stopped again before it has sent more.
    pub(super) let_on: Option<u32>,
}

/// What became of an attempt.
pub(super) enum Attempt {
    Inserted(Made),
    /// Its numbers have changed meanwhile.
    Moved,
    /// Not yet.
    Wait(Wait),
    /// Never.
    Over(NotInserted),
    /// It is not held any more.
    Gone,
}

/// What an attempt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Bytes of the caller before the request, which the app has not got: they were lost behind the kernel's programs.
    Before,
    /// What the kernel has held and is not here yet.
    Request,
    /// Bytes of the app, up to this number, that its caller has not acknowledged.
    Answer(u32),
    /// The app: it has sent a part of a line, up to this number, within which nobody can go on.
    Line(u32),
    /// The end of the last insertion's sockets. There would be two pairs of the same numbers.
    Closing,
}

/// The two sockets of an insertion, and where the connection is.
pub(super) struct Made {
    pub(super) caller: TcpStream,
    pub(super) app: TcpStream,
    pub(super) position: Position,
    /// Timestamps can be translated when the agent leaves again.
    pub(super) timed: bool,
}

/// What insertions need, at hand before one does.
pub(super) struct Ready {
    pub(super) stock: Stock,
    diag: Line,
}

// === impl Ready ===

impl Ready {
    pub(super) fn new() -> Self {
        Self { stock: Stock::new(), diag: diag::line() }
    }
}

// === impl Hold ===

impl Hold {
    /// Of the first event about it.
    pub(super) fn new(event: &Event, bytes: &[u8]) -> Self {
        let now = Instant::now();
        let (id, from) = (event.id, event.seq);
        Self {
            id,
            from,
            bytes: bytes.to_vec(),
            first: *event,
            since: now,
            complete: now,
            kept: now,
            blocked: false,
            let_on: None,
        }
    }

    /// Adds what an event brings, if it follows or is there already: two packets with the same bytes may be copied at once.
    pub(super) fn add(&mut self, event: &Event, bytes: &[u8]) -> bool {
        let behind = self.to().wrapping_sub(event.seq);
        let known = self.id == event.id && usize::try_from(behind).is_ok_and(|behind| behind <= self.bytes.len());
        if known {
            self.bytes.extend_from_slice(bytes.get(behind as usize..).unwrap_or_default());
        }
        known
    }

    /// Notes what it waits for, and tells whether that is not too long yet.
    pub(super) fn may_wait_for(&mut self, wait: Wait) -> bool {
        let now = Instant::now();
        if wait == Wait::Before {
            self.complete = now;
            return now - self.since <= PATIENCE_BEFORE;
        }
        now - self.complete <= PATIENCE
    }

    /// What is held from a number on. The kernel may hold less than it has sent: the app has got some of it another way, or what
    /// was held before was let go.
    fn behind(&self, number: u32) -> Option<&[u8]> {
        self.bytes.get(number.wrapping_sub(self.from) as usize..)
    }

    /// The number behind the held bytes.
    fn to(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the kernel holds less than a window")]
        self.from.wrapping_add(self.bytes.len() as u32)
    }
}

/// Tries to join one connection.
pub(super) fn insert(programs: &SharedPrograms, key: &FlowKey, hold: &Hold, ready: &mut Ready) -> io::Result<Attempt> {
    let programs = lock(programs);
    let Some(flow) = programs.flow(key) else { return Ok(Attempt::Gone) };
    if flow.id != hold.id || flow.state != State::Held as u32 {
        return Ok(Attempt::Gone);
    }
    let Some((facing_caller, facing_app)) = programs.facing(key.port) else { return Ok(Attempt::Gone) };
    if flow.app_ack != flow.held_from {
        return Ok(Attempt::Wait(Wait::Before));
    }
    if flow.held_to != hold.to() {
        return Ok(Attempt::Wait(Wait::Request));
    }
    let Some(held) = hold.behind(flow.held_from) else { return Ok(Attempt::Wait(Wait::Request)) };
    if flow.caller_ack != flow.sent_end {
        return Ok(Attempt::Wait(Wait::Answer(flow.sent_end)));
    }
    if flow.flags & FLAG_LAST != 0 {
        return Ok(Attempt::Over(NotInserted::Closing));
    }
    if flow.answer == Answer::Head as u32 && !flow.is_between_chunks() && flow.asked != flow.answered {
        return Ok(Attempt::Wait(Wait::Line(flow.sent_end)));
    }
    let Some(position) = position(&flow) else { return Ok(Attempt::Over(NotInserted::OpenAnswer)) };
    let (caller, pod) = (caller_of(key), pod_of(key));
    let Some(info) = diag::info_over(&mut ready.diag, pod, caller)? else {
        return Ok(Attempt::Over(NotInserted::NoSocket));
    };
    let options = if info.timestamps { 12 } else { 0 };
    let (told, tells) = info.scales;
    let (may_send, allowed) = info.windows;
    let timed = programs.keeps_shifted() && info.timestamps && hold.first.has_timestamps != 0;
    let times = info.timestamps.then(|| Times::new(&flow, hold, timed)).transpose()?;
    let facing_caller = End {
        local: SocketAddr::new(pod.ip(), facing_caller),
        peer: caller,
        send: flow.sent_end,
        receive: flow.held_from,
        mss: info.send_mss + options,
        scales: info.scales,
        selective: info.selective,
        timestamp: times.as_ref().map(|times| times.to_caller),
        windows: (hold.first.window << told, allowed),
    };
    let facing_app = End {
        local: SocketAddr::new(pod.ip(), facing_app),
        peer: caller,
        send: flow.held_from.wrapping_sub(flow.din),
        receive: flow.sent_end.wrapping_sub(flow.dout),
        mss: info.told_mss + options,
        scales: (tells, told),
        selective: info.selective,
        timestamp: times.as_ref().map(|times| times.to_app),
        windows: (allowed, may_send),
    };
    let caller = ready.stock.take(pod)?.become_end(&facing_caller)?;
    caller.received(held)?;
    let app = ready.stock.take(pod)?.become_end(&facing_app)?;
    match programs.command(key, hold.id, Op::Insert, &[flow.sent_end, flow.app_ack, hold.to()]) {
        Outcome::Done => {}
        Outcome::Moved | Outcome::More => return Ok(Attempt::Moved),
        _ => return Ok(Attempt::Gone),
    }
    let app = TcpStream::from_std(app.open(false)?.into())?;
    let caller = TcpStream::from_std(caller.open(true)?.into())?;
    Ok(Attempt::Inserted(Made { caller, app, position, timed }))
}

/// The timestamp values with which the two sockets begin. Each must be at least what its peer has seen last.
struct Times {
    to_caller: u32,
    to_app: u32,
}

impl Times {
    /// `timed`: being ahead of the two clocks is harmless, as it is made good for when the agent leaves. Otherwise they are met
    /// as exactly as a socket's timestamps can be set.
    fn new(flow: &Flow, hold: &Hold, timed: bool) -> io::Result<Self> {
        // The kernel reads the lowest bit as a wish for another unit, so only even values can be had.
        let ahead = if timed { 3 } else { 0 };
        let even = |value: u32| value & !1;
        let now = clock_ms()?;
        #[expect(clippy::cast_possible_truncation, reason = "timestamps wrap")]
        let age = now.wrapping_sub((hold.first.at / 1_000_000) as u32);
        let echoed = even(hold.first.tsecr.wrapping_add(3));
        let clock = even(now.wrapping_add(flow.app_clock).wrapping_add(flow.time_out).wrapping_add(ahead));
        let is_behind = clock.wrapping_sub(hold.first.tsecr) > u32::MAX / 2;
        let to_caller = if flow.flags & FLAG_CLOCK == 0 || is_behind { echoed } else { clock };
        let elapsed = hold.first.tsval.wrapping_add(age);
        let seen = if elapsed.wrapping_sub(flow.held_time) > u32::MAX / 2 { flow.held_time } else { elapsed };
        let to_app = even(seen.wrapping_add(flow.time_in).wrapping_add(1 + ahead));
        Ok(Self { to_caller, to_app })
    }
}

/// The kernel's clock of timestamps, which the packet programs read too: ms of `CLOCK_MONOTONIC`.
pub(super) fn clock_ms() -> io::Result<u32> {
    #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_millis() as u32)
}

/// Where the connection is, `None` where only its app knows.
fn position(flow: &Flow) -> Option<Position> {
    let (mut owed, mut heads) = (flow.asked.wrapping_sub(flow.answered), flow.heads);
    let mut running = None;
    if flow.answer == Answer::Ending as u32 && owed == 1 {
        // All of it has been sent and acknowledged, and the last of it looked like the end.
        owed = 0;
        heads = 0;
    } else if (flow.answer == Answer::Unknown as u32 || flow.answer == Answer::Ending as u32) && owed > 0 {
        return None;
    } else if flow.answer == Answer::Length as u32 {
        running = Some(Body::Length(u64::from(flow.answer_end.wrapping_sub(flow.sent_end))));
    } else if flow.is_between_chunks() {
        running = Some(Body::CHUNKED);
    } else if flow.answer == Answer::Chunks as u32 {
        running = Some(Body::within_chunk(u64::from(flow.answer_end.wrapping_sub(flow.sent_end))));
    }
    let behind = flow.next_head.wrapping_sub(flow.held_from);
    Some(Position {
        begun: flow.asked > 0 || flow.flags & FLAG_OLD != 0,
        // Behind the next head nothing is held, so what is ahead of it is a body.
        body: if behind < u32::MAX / 2 { u64::from(behind) } else { 0 },
        owed: (0..owed)
            .map(|n| if heads >> (n & 31) & 1 == 0 { RequestKind::Other } else { RequestKind::Head })
            .collect(),
        running,
    })
}

fn address(words: [u32; 4]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(sluice_ebpf_common::bytes_of(words))).to_canonical()
}

pub(crate) fn caller_of(key: &FlowKey) -> SocketAddr {
    SocketAddr::new(address(key.caller), key.caller_port)
}

pub(super) fn pod_of(key: &FlowKey) -> SocketAddr {
    SocketAddr::new(address(key.pod), key.port)
}

#[cfg(test)]
mod tests {
    use sluice_ebpf_common::insertion::EventKind;

    use super::*;

    #[test]
    fn what_is_copied_twice_is_held_once_and_nothing_is_left_out() {
        let key = FlowKey { caller: [0; 4], pod: [0; 4], caller_port: 1, port: 2 };
        let of_flow = |id, seq| {
            let mut event = Event::new(key, EventKind::Held, id, 0);
            event.seq = seq;
            event
        };
        let event = |seq| of_flow(7, seq);
        // The numbers wrap in the midst of it.
        let begin = u32::MAX - 2;
        let mut hold = Hold::new(&event(begin), b"abcd");
        assert!(hold.add(&event(begin.wrapping_add(4)), b"efgh"));
        for (ahead, bytes) in [(0, "abcd"), (4, "efgh"), (2, "cdef"), (6, "ghij"), (10, "kl"), (0, "abcdefghijkl")] {
            assert!(hold.add(&event(begin.wrapping_add(ahead)), bytes.as_bytes()), "{ahead}");
        }
        assert_eq!(hold.bytes, b"abcdefghijkl");
        assert!(!hold.add(&event(begin.wrapping_add(13)), b"n"), "behind a gap");
        assert!(!hold.add(&event(begin.wrapping_sub(1)), b"_abc"), "before the first");
        assert!(!hold.add(&of_flow(8, begin.wrapping_add(12)), b"m"), "of another flow");
        assert_eq!((hold.from, hold.to()), (begin, begin.wrapping_add(12)));
    }
}
