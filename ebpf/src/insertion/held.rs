//! What becomes of a connection while a request of it is held: of the caller's packets, and where nobody takes the request.

use aya_ebpf::bindings::__sk_buff;
use sluice_ebpf_common::insertion::{self as abi, Flow, FlowCounter, FlowKey, State};

use super::{
    beginning::{CLOSE_WAIT, ESTABLISHED, socket_state},
    ingress::{Act, after},
    maps::{self, count, locked},
    packet::{FIN, Packet},
};

/// A held request that nobody has asked to keep for so long goes to the app, in ns.
const PATIENCE: u64 = 1_000_000_000;
/// Most bytes of one flow that are kept from the app: a window's worth. The caller sends the rest again.
const MAX_HELD: u32 = 256 << 10;
/// A packet of the caller.
#[inline(always)]
pub(crate) fn held(flow: &mut Flow, packet: &Packet) -> Act {
    if packet.has(FIN) && packet.len == 0 {
        // The app would take it for the end of what it has not got; the caller sends it again.
        return Act::Drop;
    }
    if packet.len == 0 || !after(packet.end(), flow.held_from) {
        let ready = flow.caller_ack == flow.sent_end && flow.app_ack == flow.held_from;
        return if ready { Act::Ready } else { Act::Pass };
    }
    if after(flow.held_from, packet.seq) && after(flow.held_from, flow.app_ack) {
        if after(packet.seq, flow.app_ack) {
            // What is before it comes alone, or again together with this.
            return Act::Drop;
        }
        // What the app has not got comes in one piece with what is held. The agent gives it to the app, as it does with a body.
        flow.held_from = flow.app_ack;
        flow.held_to = flow.app_ack;
    }
    if after(packet.seq, flow.held_to) || !after(packet.end(), flow.held_to) {
        return Act::Drop;
    }
    if flow.held_to.wrapping_sub(flow.held_from) >= MAX_HELD {
        return Act::Drop;
    }
    Act::Copy(flow.held_to)
}

/// Whether the app's socket is there to be talked to; undoes the holding, which is to begin at `begin`, where it is not.
#[inline(always)]
pub(crate) fn reachable(
    skb: *mut __sk_buff,
    packet: &Packet,
    key: &FlowKey,
    flow: &mut Flow,
    from: u32,
    begin: u32,
) -> Act {
    if let Some(ESTABLISHED | CLOSE_WAIT) = socket_state(skb, packet) {
        maps::was_there(key.port, true);
        return Act::Copy(begin);
    }
    let act = locked(flow, |flow| {
        if flow.state != State::Held as u32 {
            return Act::Drop;
        }
        if flow.flags & abi::FLAG_SHAKEN != 0 {
            // The handshake is over but for the kernel, which waits for data before it makes a socket.
            release(flow);
            return Act::Pass;
        }
        // The last packet of the handshake was lost, or this is it. The caller sends both again.
        flow.state = State::Native as u32;
        flow.next_head = from;
        Act::Drop
    });
    if act == Act::Pass {
        maps::was_there(key.port, false);
        count(FlowCounter::NoSocket, 1);
    }
    act
}

/// Whether nobody works on a held flow any more. Asked for by each of its packets: whichever side speaks, it goes on.
#[inline(always)]
pub(crate) fn is_forgotten(flow: &Flow) -> bool {
    flow.state == State::Held as u32 && maps::now().wrapping_sub(flow.held_since) > PATIENCE
}

/// What was held goes to the app when the caller sends it again; where heads begin is found out anew. Not where an answer is
/// owed: while it runs, its caller seems to have got all that it asked for time and again.
#[inline(always)]
pub(crate) fn release(flow: &mut Flow) {
    flow.state = if flow.asked == flow.answered { State::Native as u32 } else { State::Wire as u32 };
    flow.flags |= abi::FLAG_OLD | abi::FLAG_ASKING;
    flow.flags &= !abi::FLAG_BLOCKED;
}

/// Remembers where the caller's clock is while the flow is held: the agent's socket goes on from there.
#[inline(always)]
pub(crate) fn note_time(packet: &Packet, flow: &mut Flow) {
    let timestamps = packet.timestamps();
    locked(flow, |flow| {
        if timestamps.present && after(timestamps.value, flow.held_time) {
            flow.held_time = timestamps.value;
        }
    });
}
