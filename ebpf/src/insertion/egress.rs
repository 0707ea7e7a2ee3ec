//! Packets on their way out of the pod.

use aya_ebpf::{helpers::generated::bpf_loop, macros::classifier, programs::TcContext};
use sluice_ebpf_common::insertion::{self as abi, Answer, ENDED, EventKind, Flow, FlowCounter, FlowKey, Local, State};

use super::{
    PASS,
    held::{is_forgotten, release},
    ingress::after,
    maps::{self, FLOWS, Scratch, count, flow, locked, now},
    packet::{self, ACK, FIN, Packet, RST, SYN, Shift},
    scan::{self, Verdict},
};

/// How long an app's greeting is kept back after the connection's beginning, in ns.
const GREETING: u64 = 1_000_000_000;
/// Longest greeting, in bytes.
const MAX_GREETING: u32 = 16 << 10;

/// What becomes of a packet of the app.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// To the caller.
    Pass,
    /// To the caller, and the flow is over. One that is shifted is not forgotten here: more packets may come that have to be, and
    /// not every reset is one to the other side's TCP (RFC 5961).
    PassLast,
    /// To the agent.
    ToAgent,
    /// To the caller; an answer begins at this offset.
    Scan(u32),
    /// To the caller; whether a chunked answer ends here is to be seen.
    Last,
    /// To the caller, and the agent may insert itself now.
    Ready,
    /// To nobody: the app sends it again.
    Sink,
}

/// The program.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro passes the context by value")]
fn sluice_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(packet) = Packet::read(skb) else { return PASS };
    let Some(local) = maps::local(packet.source_port) else { return PASS };
    let key = FlowKey {
        caller: packet.destination,
        pod: packet.source,
        caller_port: packet.destination_port,
        port: local.port,
    };
    if local.kind != abi::LOCAL_PORT {
        return of_agent(&packet, &key, local);
    }
    let Some(flow) = flow(&key) else { return PASS };
    let Some(scratch) = maps::scratch() else { return PASS };
    let clock = clock(&packet, flow, scratch);
    let greeting = is_greeting(&packet, flow);
    if is_forgotten(flow) {
        locked(flow, release);
        count(FlowCounter::Late, 1);
    }
    // Most packets of an app begin an answer. Those are read first, as taking the lock costs as much as looking a flow up.
    let ahead = begins_answer(flow, &packet);
    let mut act = if ahead { Act::Scan(0) } else { locked(flow, |flow| decide(flow, &packet, clock, greeting)) };
    if let Act::Scan(offset) = act {
        let answers = answers(&packet, flow, scratch, offset);
        act = locked(flow, |flow| {
            if ahead {
                let act = decide(flow, &packet, clock, greeting);
                if act != Act::Scan(0) {
                    // Something else has happened to it meanwhile.
                    return act;
                }
            }
            note(flow, &packet, scratch, answers);
            Act::Pass
        });
    }
    match act {
        Act::ToAgent => {
            packet.reflect(packet.destination_port, local.facing_app);
            return packet::turn_back(skb, abi::MARK_OWN);
        }
        Act::Sink => return packet::turn_back(skb, abi::MARK_SINK),
        Act::Last => {
            let answer = open_ended(&packet);
            locked(flow, |flow| {
                if flow.answer == Answer::Unknown as u32 || flow.answer == Answer::Ending as u32 {
                    flow.answer = answer;
                }
            });
        }
        Act::Ready => maps::tell(&key, EventKind::Progress, flow.id),
        Act::Pass | Act::PassLast | Act::Scan(_) => {}
    }
    if flow.is_shifted() {
        let (seq_less, ack_less) = (0_u32.wrapping_sub(flow.dout), 0_u32.wrapping_sub(flow.din));
        packet.shift(scratch, Shift { seq_less, ack_less, value_more: flow.time_out, echo_less: flow.time_in });
    } else if act == Act::PassLast {
        let _ = FLOWS.remove(&key);
    }
    PASS
}

/// A packet of one of the agent's sockets.
#[inline(always)]
fn of_agent(packet: &Packet, key: &FlowKey, local: &Local) -> i32 {
    let skb = packet.skb();
    let ends = packet.flags & (FIN | RST) != 0;
    let split = flow(key).is_some_and(|flow| {
        locked(flow, |flow| {
            if flow.state != State::Split as u32 {
                return false;
            }
            if ends && may_go_back(flow) {
                // The agent has died, or stops, while nothing was under way: the two go on without it.
                goes_back(flow);
                return false;
            }
            if ends {
                // Its other socket tells the other side as well.
                flow.flags &= !(abi::FLAG_ARMED | abi::FLAG_RETURNING);
            }
            if packet.has(RST) {
                flow.flags |= abi::FLAG_RESET;
            }
            true
        })
    });
    if !split {
        // Not dropped: the local sender would take that for a device without room, and wait.
        return packet::turn_back(skb, abi::MARK_SINK);
    }
    if local.kind == abi::LOCAL_FACING_CALLER {
        packet.set_ports(local.port, packet.destination_port);
        return PASS;
    }
    packet.reflect(packet.destination_port, local.port);
    packet::turn_back(skb, abi::MARK_OWN)
}

/// Whether nothing is under way, not even an acknowledgement of the caller.
#[inline(always)]
pub(crate) fn may_go_back(flow: &Flow) -> bool {
    flow.flags & abi::FLAG_ARMED != 0 && flow.caller_ack == flow.armed_app
}

/// The flow is native from now on, with the armed numbers.
#[inline(always)]
pub(crate) fn goes_back(flow: &mut Flow) {
    flow.state = State::Native as u32;
    flow.flags &= !(abi::FLAG_ARMED | abi::FLAG_RETURNING);
    flow.din = flow.armed_din;
    flow.dout = flow.armed_dout;
    if flow.armed_clock != abi::UNTIMED {
        flow.time_out = flow.armed_time_out;
        flow.flags |= abi::FLAG_TIMED;
    }
    flow.next_head = flow.armed_caller;
    flow.app_ack = flow.armed_caller;
    flow.sent_end = flow.armed_app;
    flow.caller_ack = flow.armed_app;
    flow.answer = Answer::None as u32;
    flow.asked = 0;
    flow.answered = 0;
    flow.heads = 0;
}

/// The app's timestamp value minus the clock, where it has to be learned; [`KNOWN`] where not.
#[inline(always)]
fn clock(packet: &Packet, flow: &Flow, scratch: &mut Scratch) -> u64 {
    if flow.flags & abi::FLAG_CLOCK != 0 {
        return KNOWN;
    }
    let value = if packet.has(SYN) {
        packet.timestamp_value(scratch)
    } else {
        let timestamps = packet.timestamps();
        if timestamps.present { Some(timestamps.value) } else { None }
    };
    match value {
        Some(value) => value.wrapping_sub((now() / 1_000_000) as u32) as u64,
        None => KNOWN,
    }
}

/// No `Option`, of which the compiler would keep what nobody has written.
const KNOWN: u64 = u64::MAX;

/// Whether the app greets as a server of HTTP/2 does, with `SETTINGS` (RFC 9113 §3.4), before its caller has said anything.
///
/// Kept back for a moment: the caller's first bytes decide whether the agent is inserted, and then it is the agent that
/// the app greets. Callers of HTTP/2 speak at once, and the app sends it again as soon as it is spoken to.
#[inline(always)]
fn is_greeting(packet: &Packet, flow: &Flow) -> bool {
    let early = (flow.state == State::Native as u32 || flow.state == State::Held as u32)
        && flow.asked == 0
        && flow.flags & (abi::FLAG_OLD | abi::FLAG_APP_SPOKEN) == 0;
    early
        && packet.len >= 9
        && packet.len <= MAX_GREETING
        && now().wrapping_sub(flow.held_since) < GREETING
        && packet.begins_with_settings()
}

#[inline(always)]
fn decide(flow: &mut Flow, packet: &Packet, clock: u64, greeting: bool) -> Act {
    if clock != KNOWN {
        flow.app_clock = clock as u32;
        flow.flags |= abi::FLAG_CLOCK;
    }
    if flow.state == State::Split as u32 {
        if packet.has(FIN) {
            flow.flags |= abi::FLAG_APP_FIN;
        }
        if packet.len != 0 || packet.flags & (FIN | RST) != 0 {
            flow.flags &= !(abi::FLAG_ARMED | abi::FLAG_RETURNING);
        }
        // The agent cannot leave before it has read this.
        let end = packet.end().wrapping_add(flow.dout);
        if after(end, flow.sent_end) {
            flow.sent_end = end;
        }
        return Act::ToAgent;
    }
    if flow.flags & abi::FLAG_UNSET != 0 && !packet.has(RST) {
        if packet.len != 0 {
            flow.flags &= !abi::FLAG_ASKING;
        }
        return Act::Pass;
    }
    let (seq, ack) = (packet.seq.wrapping_add(flow.dout), packet.ack.wrapping_add(flow.din));
    if packet.has(SYN) {
        flow.sent_end = seq.wrapping_add(1);
        flow.caller_ack = seq;
        return Act::Pass;
    }
    if packet.has(RST) {
        if flow.state == State::Held as u32 {
            flow.state = State::Wire as u32;
        }
        return Act::PassLast;
    }
    let held = flow.state == State::Held as u32;
    let mut ready = false;
    if packet.has(ACK) && after(ack, flow.app_ack) {
        flow.app_ack = ack;
        if held && after(ack, flow.held_from) && !after(ack, flow.next_head) {
            // It had got more of what is before the request than it had said.
            flow.held_from = ack;
        }
        ready = held && flow.caller_ack == flow.sent_end && ack == flow.held_from;
    }
    let takes = packet.len.wrapping_add(packet.has(FIN) as u32);
    // Acknowledgements alone pass, although their number is behind that of what was kept back: the caller needs them.
    if held && takes != 0 {
        // What the caller lacks may come again in one piece with what is new.
        let lacks = after(flow.sent_end, seq) && after(flow.sent_end, flow.caller_ack);
        let is_new = after(seq.wrapping_add(takes), flow.sent_end);
        // Behind what was kept back while the app was stopped: answers are read without gaps.
        let behind_gap = after(seq, flow.sent_end);
        if behind_gap || flow.flags & abi::FLAG_BLOCKED != 0 && is_new && !lacks {
            // Sent again, to whoever is its peer by then.
            return Act::Sink;
        }
    }
    if packet.has(FIN) {
        flow.flags |= abi::FLAG_APP_FIN;
    }
    if packet.len == 0 {
        if flow.flags & ENDED == ENDED && !held {
            return Act::PassLast;
        }
        return if ready { Act::Ready } else { Act::Pass };
    }
    let (end, before) = (seq.wrapping_add(packet.len), flow.sent_end);
    if !after(end, before) {
        return Act::Pass;
    }
    if greeting && flow.state != State::Wire as u32 && flow.asked == 0 {
        return Act::Sink;
    }
    flow.flags |= abi::FLAG_APP_SPOKEN;
    flow.sent_end = end;
    flow.flags &= !abi::FLAG_ASKING;
    if flow.state == State::Wire as u32 || flow.flags & abi::FLAG_OLD != 0 {
        return Act::Pass;
    }
    answered(flow, seq, end, before)
}

/// Where in the answers this leads: `before` was the end of the app's data until now.
#[inline(always)]
fn answered(flow: &mut Flow, seq: u32, end: u32, before: u32) -> Act {
    if flow.answer == Answer::Length as u32 {
        if after(flow.answer_end, end) {
            return Act::Pass;
        }
        flow.answer = Answer::None as u32;
        flow.answered = flow.answered.wrapping_add(1);
        flow.heads >>= 1;
        if flow.answer_end == end {
            return Act::Pass;
        }
        return begun(flow, flow.answer_end.wrapping_sub(seq));
    }
    if flow.answer == Answer::Chunks as u32 {
        return if after(end, flow.answer_end) { Act::Scan(flow.answer_end.wrapping_sub(seq)) } else { Act::Pass };
    }
    if flow.answer == Answer::Head as u32 {
        return Act::Scan(before.wrapping_sub(seq));
    }
    if flow.answer == Answer::None as u32 {
        return begun(flow, before.wrapping_sub(seq));
    }
    Act::Last
}

#[inline(always)]
fn begun(flow: &mut Flow, offset: u32) -> Act {
    if flow.asked == flow.answered {
        // Unasked: no HTTP.
        flow.answer = Answer::Unknown as u32;
        return Act::Last;
    }
    Act::Scan(offset)
}

/// What is known of an answer whose end no length tells: whether this packet of it may be the last.
#[inline(always)]
fn open_ended(packet: &Packet) -> u32 {
    if &packet.last_five() == b"0\r\n\r\n" { Answer::Ending as u32 } else { Answer::Unknown as u32 }
}

/// Windows of one packet.
const WINDOWS: u32 = 64;

/// How far the answers of a packet have been read. In the scratch buffer, like the scanner's state and for the same reason.
#[repr(C)]
pub(crate) struct Reading {
    offset: u32,
    /// Bytes of the window before the packet's.
    ahead: u32,
    begun: u32,
    verdict: Verdict,
}

/// What a step is given.
struct Step {
    scratch: *mut Scratch,
    packet: *const Packet,
    heads: u32,
    resumed: (u32, u32),
}

/// One window. Returns 1 to stop.
#[inline(never)]
#[expect(unsafe_code, reason = "called by the kernel with the pointers that `scanned` gave it")]
extern "C" fn window(_index: u64, step: *mut Step) -> u64 {
    // SAFETY: `scanned` gave them, and only one step runs at a time.
    let (step, scratch, packet) = unsafe { (&*step, &mut *(*step).scratch, &*(*step).packet) };
    let Reading { offset, ahead, .. } = scratch.reading;
    let loaded = if ahead == 0 { packet.load(scratch, offset) } else { packet.load_behind_carry(scratch, offset) };
    let Some(len) = loaded else {
        scratch.reading.verdict = Verdict::Undecided;
        return 1;
    };
    let (len, total) = (len + ahead, packet.len - offset + ahead);
    let verdict = if scratch.reading.begun == 0 {
        scratch.reading.begun = 1;
        scan::answers(scratch, step.heads, step.resumed, len, total)
    } else {
        scan::more(scratch, len, total)
    };
    scratch.reading.verdict = verdict;
    if verdict != Verdict::More {
        return 1;
    }
    scratch.reading.offset = offset + scratch.scan.next - ahead;
    scratch.reading.ahead = 0;
    0
}

/// Reads the answers of a packet from `offset` on, which lies in it: to those of the requests in `heads` that are `HEAD`,
/// resumed with what is known of one that began in the packet before. What was found is in [`Scratch::scan`] then; returns
/// what that means, and where the next answer begins, from the data's beginning.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel")]
pub(crate) fn read(
    packet: &Packet,
    scratch: &mut Scratch,
    heads: u32,
    resumed: (u32, u32),
    carry: &[u64; abi::CARRY / 8],
    offset: u32,
) -> (Verdict, u32) {
    let carried = scan::carried(resumed.0);
    let ahead = if carried == 0 { 0 } else { abi::CARRY as u32 };
    if ahead != 0 {
        scan::put_carry(scratch, carry, carried);
    }
    scratch.reading = Reading { offset, ahead, begun: 0, verdict: Verdict::Running };
    let mut step = Step { scratch, packet, heads, resumed };
    // Most answers have one.
    if window(0, &raw mut step) == 0 {
        // SAFETY: the callback has the signature that the kernel calls, and its context outlives the loop.
        unsafe { bpf_loop(WINDOWS, window as *mut _, (&raw mut step).cast(), 0) };
    }
    let Reading { offset, ahead, verdict, .. } = scratch.reading;
    (verdict, offset.wrapping_add(scratch.scan.next).wrapping_sub(ahead))
}

/// What was found in a packet's answers.
#[derive(Clone, Copy)]
struct Answers {
    verdict: Verdict,
    /// Where the next one begins, from the data's beginning.
    next: u32,
    /// What is known of the last one where its end was not found.
    lost: u32,
}

/// Whether an answer begins with this packet for certain. Read without the lock, so [`decide`] has the last word.
#[inline(always)]
fn begins_answer(flow: &Flow, packet: &Packet) -> bool {
    flow.state == State::Native as u32
        && flow.answer == Answer::None as u32
        && flow.asked != flow.answered
        && flow.flags & (abi::FLAG_OLD | abi::FLAG_UNSET) == 0
        && packet.flags & (RST | SYN | ACK) == ACK
        && packet.len != 0
        && packet.seq.wrapping_add(flow.dout) == flow.sent_end
}

/// Reads the answers of a packet from `offset` on; what is to be noted besides is in [`Scratch::scan`].
#[inline(always)]
fn answers(packet: &Packet, flow: &Flow, scratch: &mut Scratch, offset: u32) -> Answers {
    let resumed = match flow.answer {
        answer if answer == Answer::Head as u32 => (flow.answer_head, flow.answer_end),
        answer if answer == Answer::Chunks as u32 => (scan::CHUNKS, 0),
        _ => (0, 0),
    };
    let (verdict, next) = read(packet, scratch, flow.heads, resumed, &flow.carry, offset);
    let lost =
        if scratch.scan.unknown != 0 || !is_followed(verdict) { open_ended(packet) } else { Answer::Unknown as u32 };
    Answers { verdict, next, lost }
}

/// Whether it is known where the answers are.
#[inline(always)]
fn is_followed(verdict: Verdict) -> bool {
    verdict == Verdict::Clean || verdict == Verdict::Lines || verdict == Verdict::Chunks
}

/// Notes what [`answers`] has found.
#[inline(always)]
fn note(flow: &mut Flow, packet: &Packet, scratch: &Scratch, Answers { verdict, next, lost }: Answers) {
    if !is_followed(verdict) {
        flow.answer = lost;
        return;
    }
    let found = scratch.scan.found;
    flow.answered = flow.answered.wrapping_add(found);
    flow.heads >>= found & 31;
    if scratch.scan.last != 0 {
        // The app answers nothing more on this connection.
        flow.flags |= abi::FLAG_LAST;
        if flow.state == State::Native as u32 {
            flow.state = State::Wire as u32;
        }
    }
    let begin = packet.seq.wrapping_add(flow.dout);
    if verdict == Verdict::Lines {
        flow.answer = Answer::Head as u32;
        (flow.answer_head, flow.answer_end) = scan::answer_head(&scratch.scan);
        scan::get_carry(scratch, &mut flow.carry);
    } else if verdict == Verdict::Chunks {
        flow.answer = Answer::Chunks as u32;
        flow.answer_end = begin.wrapping_add(next);
    } else if scratch.scan.unknown != 0 {
        flow.answer = lost;
    } else if next > packet.len {
        flow.answer = Answer::Length as u32;
        flow.answer_end = begin.wrapping_add(next);
    } else {
        flow.answer = Answer::None as u32;
    }
}
