//! Copies a held packet to the agent, in pieces, because a packet may be longer than anything else here.

use aya_ebpf::helpers::generated::{bpf_loop, bpf_ringbuf_output};
use sluice_ebpf_common::insertion::{Event, EventKind, Flow, FlowCounter, FlowKey, State, WINDOW};

use super::{
    DROP,
    ingress::after,
    maps::{self, EVENTS, Scratch, count, locked},
    packet::Packet,
};

/// Pieces of one packet: those of the longest there are.
const PIECES: u32 = 64;

/// How far it has come. In the scratch buffer, like the scanner's state and for the same reason.
#[repr(C)]
pub(crate) struct Copying {
    offset: u32,
}

/// What a step is given.
struct Step {
    scratch: *mut Scratch,
    packet: *const Packet,
}

/// Copies what a packet has from the number `from` on to the agent, and keeps it from the app.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel")]
pub(crate) fn copied(packet: &Packet, key: &FlowKey, flow: &mut Flow, scratch: &mut Scratch, from: u32) -> i32 {
    let timestamps = packet.timestamps();
    scratch.event = Event::new(*key, EventKind::Held, flow.id, maps::now());
    scratch.event.window = packet.window as u32;
    scratch.event.tsval = timestamps.value;
    scratch.event.tsecr = timestamps.echo;
    scratch.event.has_timestamps = timestamps.present as u32;
    scratch.copy.offset = from.wrapping_sub(packet.seq);
    let mut step = Step { scratch, packet };
    // SAFETY: the callback has the signature that the kernel calls, and its context outlives the loop.
    unsafe { bpf_loop(PIECES, piece as *mut _, (&raw mut step).cast(), 0) };
    let to = packet.seq.wrapping_add(scratch.copy.offset);
    locked(flow, |flow| {
        if flow.state == State::Held as u32 && after(to, flow.held_to) {
            flow.held_to = to;
        }
    });
    DROP
}

/// Copies requests that pass, which are the `len` bytes in the window and begin at the number `from`.
#[inline(always)]
pub(crate) fn copied_whole(key: &FlowKey, flow: &Flow, scratch: &mut Scratch, from: u32, len: u32) {
    scratch.event = Event::new(*key, EventKind::Copied, flow.id, maps::now());
    scratch.event.seq = from;
    scratch.event.length = len;
    if !sent(scratch, len) {
        count(FlowCounter::CopyLost, 1);
    }
}

/// Puts the event and the `len` bytes of the window behind it into the ring buffer; whether there was room.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel")]
fn sent(scratch: &mut Scratch, len: u32) -> bool {
    let size = size_of::<Event>() as u64 + maps::bounded(len, WINDOW as u32) as u64;
    let from = (&raw const scratch.event).cast_mut().cast();
    // SAFETY: the bytes follow the event at once.
    unsafe { bpf_ringbuf_output((&raw const EVENTS).cast_mut().cast(), from, size, 0) == 0 }
}

/// One piece. Returns 1 to stop.
#[inline(never)]
#[expect(unsafe_code, reason = "called by the kernel with the pointers that `copied` gave it")]
extern "C" fn piece(_index: u64, step: *mut Step) -> u64 {
    // SAFETY: `copied` gave them, and only one step runs at a time.
    let (scratch, packet) = unsafe { (&mut *(*step).scratch, &*(*step).packet) };
    let offset = scratch.copy.offset;
    let Some(len) = packet.load(scratch, offset) else { return 1 };
    scratch.event.seq = packet.seq.wrapping_add(offset);
    scratch.event.length = len;
    if !sent(scratch, len) {
        // No room: the caller sends it again.
        return 1;
    }
    scratch.copy.offset = offset + len;
    0
}
