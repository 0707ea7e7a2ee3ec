//! Packets on their way into the pod.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use sluice_ebpf_common::insertion::{self as abi, Answer, ENDED, EventKind, Flow, FlowCounter, FlowKey, Local, State};

use super::{
    DROP, PASS,
    beginning::{begins, older},
    checksum,
    copy::{copied, copied_whole},
    egress::goes_back,
    held::{held, is_forgotten, note_time, reachable, release},
    maps::{self, FLOWS, Scratch, count, flow, locked},
    packet::{self, ACK, FIN, Packet, RST, SYN, Shift, URG},
    scan::{self, Verdict},
};

/// Requests without their answer, of which the kind is remembered.
const MAX_OWED: u32 = 32;

/// Whether the number `a` is behind `b` (RFC 9293 §3.4).
#[inline(always)]
pub(crate) const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// What becomes of a packet, decided under the flow's lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// To the app, with shifted numbers where the flow has them.
    Pass,
    /// To the app, and the flow is over, as in the other direction.
    PassLast,
    /// To the app, as all that was held.
    LetGo,
    /// To nobody: the caller sends it again.
    Drop,
    /// To the agent's socket.
    ToAgent,
    /// To the app, for the first time since the agent was inserted.
    Return,
    /// Request heads are to be looked at, from this number on.
    Scan(u32),
    /// Kept from the app, and copied to the agent from this number on.
    Copy(u32),
    /// Passes, and the agent may insert itself now.
    Ready,
}

/// The program.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro passes the context by value")]
fn sluice_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mark = packet::mark(skb);
    if mark == maps::of_generation(abi::MARK_OWN) {
        packet::set_mark(skb, 0);
        return PASS;
    }
    if mark == maps::of_generation(abi::MARK_SINK) {
        return DROP;
    }
    let Some(packet) = Packet::read(skb) else { return PASS };
    let Some(local) = maps::local(packet.destination_port) else { return PASS };
    if local.kind != abi::LOCAL_PORT {
        // Nobody reaches the agent's sockets from outside.
        return DROP;
    }
    let key = FlowKey {
        caller: packet.source,
        pod: packet.destination,
        caller_port: packet.source_port,
        port: packet.destination_port,
    };
    let Some(scratch) = maps::scratch() else { return PASS };
    if packet.flags & (SYN | ACK) == SYN {
        return begins(skb, &packet, &key, local, scratch);
    }
    let flow = match flow(&key) {
        Some(flow) => flow,
        None if local.active == 0 || packet.len == 0 || packet.flags & (RST | FIN | SYN) != 0 => return PASS,
        None => match older(skb, &packet, &key, scratch) {
            Some(flow) => flow,
            None => return PASS,
        },
    };
    if flow.state == State::Held as u32 {
        note_time(&packet, flow);
    }
    let act = if is_plain(flow, &packet, local) {
        Act::Scan(packet.seq)
    } else {
        locked(flow, |flow| decide(flow, &packet, local.active != 0))
    };
    if is_forgotten(flow) {
        locked(flow, release);
        return finish(&packet, &key, local, flow, scratch, Act::LetGo, 0);
    }
    match act {
        Act::Scan(from) => scanned(skb, &packet, &key, local, flow, scratch, from),
        Act::Copy(_) if !checksum::holds(&packet, scratch) => DROP,
        Act::Copy(from) => copied(&packet, &key, flow, scratch, from),
        act => {
            let ahead = ahead(flow, &packet);
            finish(&packet, &key, local, flow, scratch, act, ahead)
        }
    }
}

/// By how much the number of an acknowledgement is ahead of what the app has been given: its caller has sent more, which is held
/// or was lost. As it stands it would be the newest word on the caller's window to the app's TCP (SND.WL1, RFC 9293 §3.10.7.4),
/// which would then listen to no one who goes on before it, as the agent does: for ever, if that window was closed.
#[inline(always)]
fn ahead(flow: &Flow, packet: &Packet) -> u32 {
    let until = if flow.state == State::Held as u32 {
        flow.held_from
    } else if flow.state == State::Native as u32
        && flow.flags & (abi::FLAG_OLD | abi::FLAG_UNSET | abi::FLAG_CALLER_FIN) == 0
    {
        // Behind a FIN, which has a number of its own, nothing is held.
        flow.next_head
    } else {
        return 0;
    };
    let alone = packet.len == 0 && packet.flags & (RST | FIN | SYN | ACK) == ACK;
    if alone && after(packet.seq, until) { packet.seq.wrapping_sub(until) } else { 0 }
}

/// Whether nothing is to be decided: a head begins here for certain. Most requests are like that, and taking the lock costs as
/// much as looking a flow up. What is read without it is looked at again when the head has been read.
#[inline(always)]
fn is_plain(flow: &Flow, packet: &Packet, local: &Local) -> bool {
    flow.state == State::Native as u32
        && flow.flags & (abi::FLAG_OLD | abi::FLAG_UNSET) == 0
        && packet.flags & (RST | FIN | SYN | URG | ACK) == ACK
        && packet.len != 0
        && packet.seq == flow.next_head
        && local.active != 0
}

/// The caller has acknowledged something that was sent.
#[inline(always)]
fn acknowledged(flow: &mut Flow, packet: &Packet) {
    if packet.has(ACK) && after(packet.ack, flow.caller_ack) && !after(packet.ack, flow.sent_end) {
        flow.caller_ack = packet.ack;
    }
}

#[inline(always)]
fn decide(flow: &mut Flow, packet: &Packet, active: bool) -> Act {
    if packet.has(RST) {
        flow.flags |= abi::FLAG_RESET;
        if flow.state == State::Split as u32 {
            return Act::ToAgent;
        }
        if flow.state == State::Held as u32 {
            flow.state = State::Wire as u32;
        }
        return Act::PassLast;
    }
    if packet.has(FIN) {
        flow.flags |= abi::FLAG_CALLER_FIN;
    }
    if flow.state == State::Split as u32 {
        return split(flow, packet);
    }
    if flow.flags & abi::FLAG_UNSET == 0 {
        acknowledged(flow, packet);
    }
    if packet.len == 0 {
        flow.flags |= abi::FLAG_SHAKEN;
    }
    if flow.flags & ENDED == ENDED && packet.len == 0 && flow.state != State::Held as u32 {
        return Act::PassLast;
    }
    if flow.state == State::Wire as u32 {
        return Act::Pass;
    }
    if packet.has(URG) {
        // Out-of-band data has no place in what is copied.
        flow.state = State::Wire as u32;
        return Act::Pass;
    }
    if flow.state == State::Held as u32 {
        return held(flow, packet);
    }
    if packet.len == 0 {
        return Act::Pass;
    }
    if !active {
        // The rules have gone: nothing is looked at, and where the next head begins is not known any more.
        flow.flags |= abi::FLAG_OLD | abi::FLAG_ASKING;
        return Act::Pass;
    }
    native(flow, packet)
}

#[inline(always)]
fn native(flow: &mut Flow, packet: &Packet) -> Act {
    if flow.flags & abi::FLAG_UNSET != 0 {
        flow.flags &= !abi::FLAG_UNSET;
        flow.app_ack = packet.seq;
        flow.sent_end = packet.ack;
        flow.caller_ack = packet.ack;
    }
    if flow.flags & abi::FLAG_OLD != 0 {
        // A head begins for sure where the caller speaks after it has got all that it asked for.
        let quiet = flow.flags & abi::FLAG_ASKING == 0 && packet.seq == flow.app_ack && packet.ack == flow.sent_end;
        if !quiet {
            flow.flags |= abi::FLAG_ASKING;
            return Act::Pass;
        }
        flow.next_head = packet.seq;
        flow.caller_ack = packet.ack;
        flow.answer = Answer::None as u32;
        flow.asked = flow.answered;
        flow.heads = 0;
        return Act::Scan(packet.seq);
    }
    let end = packet.end();
    if !after(end, flow.next_head) {
        return Act::Pass;
    }
    if after(packet.seq, flow.next_head) {
        // Behind a head that has not been seen: the app would take it, and acknowledge both.
        return Act::Drop;
    }
    Act::Scan(flow.next_head)
}

#[inline(always)]
fn split(flow: &mut Flow, packet: &Packet) -> Act {
    if packet.has(ACK) && after(packet.ack, flow.caller_ack) {
        flow.caller_ack = packet.ack;
    }
    if packet.len == 0 && !packet.has(FIN) {
        return Act::ToAgent;
    }
    // The agent cannot leave before it has read this.
    if after(packet.end(), flow.held_to) {
        flow.held_to = packet.end();
    }
    if flow.flags & abi::FLAG_ARMED == 0 {
        return Act::ToAgent;
    }
    flow.flags &= !abi::FLAG_ARMED;
    if packet.has(FIN) || packet.seq != flow.armed_caller || packet.ack != flow.armed_app {
        return Act::ToAgent;
    }
    flow.flags |= abi::FLAG_RETURNING;
    Act::Scan(packet.seq)
}

#[inline(always)]
fn scanned(
    skb: *mut __sk_buff,
    packet: &Packet,
    key: &FlowKey,
    local: &Local,
    flow: &mut Flow,
    scratch: &mut Scratch,
    from: u32,
) -> i32 {
    let offset = from.wrapping_sub(packet.seq);
    let Some(len) = packet.load(scratch, offset) else { return DROP };
    let total = packet.len.wrapping_sub(offset);
    let verdict = scan::requests(scratch, local, len, total);
    // What is copied has to be here as a whole.
    let fits = scratch.scan.fits != 0;
    let verdict = if fits && (scratch.scan.next != total || total != len) { Verdict::Undecided } else { verdict };
    let (found, heads, last, next) = (scratch.scan.found, scratch.scan.heads, scratch.scan.last, scratch.scan.next);
    let [a, b, c, d, ..] = scratch.bytes;
    let preface = verdict != Verdict::Clean && [a, b, c, d] == *b"PRI ";
    // Both numbers change with `next_head` only, which is compared below.
    let many = flow.asked.wrapping_sub(flow.answered) + found > MAX_OWED;
    let (mut now, mut time) = (0, 0);
    if verdict != Verdict::Clean || many {
        (now, time) = (maps::now(), packet.timestamps().value);
        if !checksum::holds(packet, scratch) {
            // The app's TCP would not have taken it either.
            return DROP;
        }
    }
    let act = locked(flow, |flow| {
        if flow.state == State::Split as u32 {
            return returns(flow, packet, verdict, found, heads, last, next);
        }
        if flow.state != State::Native as u32 || flow.next_head != from {
            // Something else has happened to it meanwhile.
            return Act::Drop;
        }
        acknowledged(flow, packet);
        let was_old = flow.flags & abi::FLAG_OLD != 0;
        if verdict == Verdict::NotHttp && (was_old || flow.asked == 0) {
            if was_old {
                flow.flags |= abi::FLAG_ASKING;
            } else {
                flow.state = State::Wire as u32;
            }
            return Act::Pass;
        }
        if flow.flags & abi::FLAG_LAST != 0 {
            flow.state = State::Wire as u32;
            return Act::Pass;
        }
        if preface && flow.flags & abi::FLAG_APP_SPOKEN != 0 {
            // The app's first frame has gone to the caller already: no third party can join them.
            flow.state = State::Wire as u32;
            return Act::Pass;
        }
        flow.flags &= !(abi::FLAG_OLD | abi::FLAG_ASKING);
        if verdict == Verdict::Clean && !many {
            passed(flow, from, found, heads, last, next);
            return Act::Pass;
        }
        flow.state = State::Held as u32;
        // What the app has already may come again in one piece with what is held.
        flow.held_from = if after(flow.app_ack, packet.seq) { flow.app_ack } else { packet.seq };
        flow.held_to = flow.held_from;
        flow.held_since = now;
        flow.held_time = time;
        Act::Copy(flow.held_from)
    });
    let act = if let Act::Copy(begin) = act { reachable(skb, packet, key, flow, from, begin) } else { act };
    if let Act::Copy(from) = act {
        count(FlowCounter::Held, 1);
        return copied(packet, key, flow, scratch, from);
    }
    if verdict == Verdict::Clean && (act == Act::Pass || act == Act::Return) {
        if fits {
            copied_whole(key, flow, scratch, from, len);
        } else {
            count(FlowCounter::Passed, found);
        }
    }
    if verdict == Verdict::NotHttp && flow.state == State::Wire as u32 {
        count(FlowCounter::NotHttp, 1);
    }
    finish(packet, key, local, flow, scratch, act, 0)
}

/// Requests have passed.
#[inline(always)]
fn passed(flow: &mut Flow, from: u32, found: u32, heads: u32, last: u32, next: u32) {
    let owed = flow.asked.wrapping_sub(flow.answered);
    flow.heads |= heads << (owed & 31);
    flow.asked = flow.asked.wrapping_add(found);
    flow.next_head = from.wrapping_add(next);
    if last != 0 {
        flow.flags |= abi::FLAG_LAST;
        // Nothing behind it is a request.
        flow.state = State::Wire as u32;
    }
}

/// An armed flow, at whose armed numbers this packet stands: back to the app, or on with the agent.
#[inline(always)]
fn returns(flow: &mut Flow, packet: &Packet, verdict: Verdict, found: u32, heads: u32, last: u32, next: u32) -> Act {
    let returning = flow.flags & abi::FLAG_RETURNING != 0;
    flow.flags &= !abi::FLAG_RETURNING;
    if verdict != Verdict::Clean || !returning || packet.seq != flow.armed_caller {
        return Act::ToAgent;
    }
    goes_back(flow);
    passed(flow, packet.seq, found, heads, last, next);
    Act::Return
}

/// The first packet of the caller since the flow went back: its timestamps must not lie behind those that the agent's socket
/// has sent in its place, or the app would take it for an old one (PAWS, RFC 7323 §5). Where they lie before them, because
/// the caller's clock is faster than the agent's, they may.
#[inline(always)]
fn follow_time(packet: &Packet, flow: &mut Flow) {
    let (timestamps, now) = (packet.timestamps(), (maps::now() / 1_000_000) as u32);
    locked(flow, |flow| {
        if flow.flags & abi::FLAG_TIMED == 0 {
            return;
        }
        flow.flags &= !abi::FLAG_TIMED;
        let needed = now.wrapping_add(flow.armed_clock).wrapping_sub(timestamps.value);
        if timestamps.present && after(needed, flow.time_in) {
            flow.time_in = needed;
        }
    });
}

/// Does to the packet what was decided; to the app its number is so much less.
#[inline(always)]
fn finish(
    packet: &Packet,
    key: &FlowKey,
    local: &Local,
    flow: &mut Flow,
    scratch: &mut Scratch,
    act: Act,
    less: u32,
) -> i32 {
    match act {
        Act::Drop | Act::Scan(_) | Act::Copy(_) => return DROP,
        Act::ToAgent => {
            packet.set_ports(packet.source_port, local.facing_caller);
            return PASS;
        }
        Act::Ready => maps::tell(key, EventKind::Progress, flow.id),
        Act::Return => {
            count(FlowCounter::Returned, 1);
            maps::tell(key, EventKind::Returned, flow.id);
        }
        Act::LetGo => count(FlowCounter::Late, 1),
        Act::Pass | Act::PassLast => {}
    }
    if flow.flags & abi::FLAG_TIMED != 0 {
        follow_time(packet, flow);
    }
    let Flow { din, dout: ack_less, time_in: value_more, time_out: echo_less, .. } = *flow;
    if flow.is_shifted() || less != 0 {
        let seq_less = din.wrapping_add(less);
        packet.shift(scratch, Shift { seq_less, ack_less, value_more, echo_less });
    } else if act == Act::PassLast {
        let _ = FLOWS.remove(key);
    }
    PASS
}
