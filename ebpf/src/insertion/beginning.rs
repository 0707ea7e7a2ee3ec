//! How a flow begins: with a SYN, or with data of a connection that was there before the programs.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock_tuple},
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use sluice_ebpf_common::insertion::{self as abi, Flow, FlowCounter, FlowKey, Local, State};

use super::{
    PASS,
    maps::{self, FLOWS, Scratch, count, flow},
    packet::Packet,
};

/// `TCP_ESTABLISHED`, `TCP_TIME_WAIT`, `TCP_CLOSE_WAIT` and `TCP_LISTEN` of the kernel.
pub(super) const ESTABLISHED: u32 = 1;
const TIME_WAIT: u32 = 6;
pub(super) const CLOSE_WAIT: u32 = 8;
const LISTEN: u32 = 10;

/// A SYN: a flow begins, unless it belongs to a connection that is there. Then it has come twice, or somebody guesses, and the
/// app's TCP answers it at most (RFC 9293 §3.10.7.4); what is known of the connection is still true.
#[inline(always)]
pub(super) fn begins(skb: *mut __sk_buff, packet: &Packet, key: &FlowKey, local: &Local, scratch: &mut Scratch) -> i32 {
    if flow(key).is_some() && !matches!(socket_state(skb, packet), None | Some(TIME_WAIT | LISTEN)) {
        return PASS;
    }
    // What is deferred cannot be held.
    if local.active == 0 || local.deferred >= abi::DEFERS {
        let _ = FLOWS.remove(key);
        return PASS;
    }
    let exempt = maps::is_exempt(packet.source, packet.v6);
    let new = &mut scratch.flow;
    *new = Flow::new(if exempt { State::Wire } else { State::Native }, maps::new_id());
    new.next_head = packet.seq.wrapping_add(1);
    new.app_ack = new.next_head;
    new.held_since = maps::now();
    if FLOWS.insert(key, new, 0).is_err() {
        count(FlowCounter::Full, 1);
        return PASS;
    }
    // Behind the flow's creation, as the lookup asks `sluice_spare` too.
    if socket_state(skb, packet).is_none() {
        // Where nobody listens at this address the agent can reach the app at another.
        let _ = FLOWS.remove(key);
        return PASS;
    }
    if !exempt {
        packet.plain_syn(scratch);
    }
    PASS
}

/// Data of a connection that began before these programs were attached, or when there was no room.
#[inline(always)]
pub(super) fn older(
    skb: *mut __sk_buff,
    packet: &Packet,
    key: &FlowKey,
    scratch: &mut Scratch,
) -> Option<&'static mut Flow> {
    let state = socket_state(skb, packet)?;
    if state != ESTABLISHED && state != CLOSE_WAIT {
        return None;
    }
    let exempt = maps::is_exempt(packet.source, packet.v6);
    let new = &mut scratch.flow;
    *new = Flow::new(if exempt { State::Wire } else { State::Native }, maps::new_id());
    // Whether it is in the middle of something nobody knows, so first its app has to say something.
    new.flags = abi::FLAG_OLD | abi::FLAG_SHAKEN | abi::FLAG_ASKING;
    new.next_head = packet.seq;
    new.app_ack = packet.seq;
    new.sent_end = packet.ack;
    new.caller_ack = packet.ack;
    if FLOWS.insert(key, new, 1).is_err() {
        count(FlowCounter::Full, 1);
        return None;
    }
    flow(key)
}

/// The state of the app's socket, `None` where there is none.
#[inline(always)]
#[expect(unsafe_code, reason = "helpers of the kernel")]
pub(super) fn socket_state(skb: *mut __sk_buff, packet: &Packet) -> Option<u32> {
    // SAFETY: the tuple is as long as its length says, and a socket that was found is given back.
    unsafe {
        let mut tuple: bpf_sock_tuple = core::mem::zeroed();
        let length = if packet.v6 {
            tuple.__bindgen_anon_1.ipv6.saddr = packet.source;
            tuple.__bindgen_anon_1.ipv6.daddr = packet.destination;
            tuple.__bindgen_anon_1.ipv6.sport = packet.source_port.to_be();
            tuple.__bindgen_anon_1.ipv6.dport = packet.destination_port.to_be();
            36
        } else {
            tuple.__bindgen_anon_1.ipv4.saddr = packet.source[3];
            tuple.__bindgen_anon_1.ipv4.daddr = packet.destination[3];
            tuple.__bindgen_anon_1.ipv4.sport = packet.source_port.to_be();
            tuple.__bindgen_anon_1.ipv4.dport = packet.destination_port.to_be();
            12
        };
        let socket = bpf_skc_lookup_tcp(skb.cast(), &raw mut tuple, length, u64::MAX, 0);
        if socket.is_null() {
            return None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        Some(state)
    }
}
