//! What the agent asks of a flow. Run by `BPF_PROG_TEST_RUN` on a made-up packet that holds the command, so that the
//! flow's lock is taken where it can be: in the kernel.

use aya_ebpf::{
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use sluice_ebpf_common::insertion::{self as abi, Command, ENDED, Flow, Op, Outcome, State};

use super::{
    egress::{self, goes_back, may_go_back},
    held::release,
    maps::{self, FLOWS, Scratch, flow, locked, now},
    packet::Packet,
    scan::{self, Verdict},
};

/// The program.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro passes the context by value")]
#[expect(unsafe_code, reason = "a helper of the kernel")]
fn sluice_command(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut command = core::mem::MaybeUninit::<Command>::uninit();
    // SAFETY: the room is as long as the length says, and every pattern of bits is a command.
    let command = unsafe {
        let to = command.as_mut_ptr();
        if bpf_skb_load_bytes(skb.cast(), abi::COMMAND_AT as u32, to.cast(), size_of::<Command>() as u32) != 0 {
            return Outcome::Unknown as i32;
        }
        &mut *to
    };
    if command.op == Op::Scan as u32 {
        let Some(scratch) = maps::scratch() else { return Outcome::Gone as i32 };
        let outcome = scan(&ctx, command, scratch);
        let at = abi::COMMAND_AT as u32;
        // SAFETY: as above.
        unsafe { bpf_skb_store_bytes(skb.cast(), at, (&raw const *command).cast(), size_of::<Command>() as u32, 0) };
        return outcome as i32;
    }
    let Some(flow) = flow(&command.key) else { return Outcome::Gone as i32 };
    let now = now();
    let outcome = locked(flow, |flow| act(flow, command, now));
    if command.op == Op::Remove as u32 && outcome == Outcome::Done {
        let _ = FLOWS.remove(&command.key);
    }
    outcome as i32
}

#[inline(always)]
fn act(flow: &mut Flow, command: &Command, now: u64) -> Outcome {
    let [a, b, c, d, e, f] = command.numbers;
    if flow.id != command.id {
        return Outcome::Gone;
    }
    let op = command.op;
    if op == Op::Remove as u32 {
        return Outcome::Done;
    }
    if op == Op::Insert as u32 {
        if flow.state != State::Held as u32 {
            return Outcome::State;
        }
        if flow.sent_end != a || flow.caller_ack != a || flow.app_ack != b {
            return Outcome::Moved;
        }
        if flow.held_to != c {
            return Outcome::More;
        }
        flow.state = State::Split as u32;
        flow.flags &= !abi::FLAG_BLOCKED;
        return Outcome::Done;
    }
    if op == Op::Release as u32 {
        if flow.state != State::Held as u32 {
            return Outcome::State;
        }
        release(flow);
        if a != 0 {
            flow.state = State::Wire as u32;
        }
        return Outcome::Done;
    }
    if op == Op::Keep as u32 || op == Op::Block as u32 || op == Op::Unblock as u32 {
        if flow.state != State::Held as u32 {
            return Outcome::State;
        }
        flow.held_since = now;
        if op == Op::Block as u32 {
            flow.flags |= abi::FLAG_BLOCKED;
        }
        if op == Op::Unblock as u32 {
            flow.flags &= !abi::FLAG_BLOCKED;
        }
        return Outcome::Done;
    }
    if flow.state != State::Split as u32 {
        return Outcome::State;
    }
    if op == Op::Arm as u32 {
        if flow.flags & (ENDED | abi::FLAG_RESET) != 0 {
            // An end has passed that the agent has not read yet: no number of bytes that wait tells of it. What the agent then
            // sends in its turn would be taken for its own end.
            return Outcome::Moved;
        }
        if a != flow.held_to || b.wrapping_sub(d).wrapping_add(flow.dout) != flow.sent_end {
            // The same of data: it has come since the agent looked.
            return Outcome::Moved;
        }
        flow.armed_caller = a;
        flow.armed_app = b;
        flow.armed_din = c;
        flow.armed_dout = d;
        flow.armed_time_out = e;
        flow.armed_clock = f;
        flow.flags |= abi::FLAG_ARMED;
        return Outcome::Done;
    }
    if op == Op::Return as u32 {
        if !may_go_back(flow) {
            return Outcome::Moved;
        }
        goes_back(flow);
        // Nothing tells where the caller is until it speaks again.
        release(flow);
        flow.flags &= !abi::FLAG_ASKING;
        return Outcome::Done;
    }
    if op == Op::Disarm as u32 {
        flow.flags &= !(abi::FLAG_ARMED | abi::FLAG_RETURNING);
        return Outcome::Done;
    }
    Outcome::Unknown
}

/// Text that follows the command, read as the data of a packet; before it stands the beginning of a line, as
/// [`scan::get_carry`] has left it, or room for one.
#[inline(always)]
#[expect(unsafe_code, reason = "helpers of the kernel")]
fn scan(ctx: &TcContext, command: &mut Command, scratch: &mut Scratch) -> Outcome {
    let Some(local) = maps::local(command.key.port) else { return Outcome::Gone };
    let [total, is_answer, kept, length, ..] = command.numbers;
    if total == 0 {
        return Outcome::Undecided;
    }
    let at = (abi::COMMAND_AT + size_of::<Command>()) as u32;
    let packet = Packet::of_data(ctx.skb.skb, at + abi::CARRY as u32, total);
    if is_answer == 0 {
        let Some(len) = packet.load(scratch, 0) else { return Outcome::Unknown };
        let verdict = scan::requests(scratch, local, len, total);
        let next = scratch.scan.next;
        return told(command, scratch, verdict, next);
    }
    let mut carry = [0_u64; abi::CARRY / 8];
    // SAFETY: as many bytes as it has.
    if unsafe { bpf_skb_load_bytes(packet.skb().cast(), at, (&raw mut carry).cast(), abi::CARRY as u32) } != 0 {
        return Outcome::Unknown;
    }
    let (verdict, next) = egress::read(&packet, scratch, is_answer >> 1, (kept, length), &carry, 0);
    if verdict == Verdict::Lines {
        scan::get_carry(scratch, &mut carry);
        // SAFETY: as above.
        unsafe { bpf_skb_store_bytes(packet.skb().cast(), at, (&raw const carry).cast(), abi::CARRY as u32, 0) };
        let (kept, length) = scan::answer_head(&scratch.scan);
        command.found = [kept, length, scratch.scan.found, scratch.scan.last];
        return Outcome::More;
    }
    told(command, scratch, verdict, next)
}

/// Says what was found.
#[inline(always)]
fn told(command: &mut Command, scratch: &Scratch, verdict: Verdict, next: u32) -> Outcome {
    let scan = &scratch.scan;
    let chunks = (verdict == Verdict::Chunks) as u32;
    let fits = (scan.fits != 0) as u32;
    command.found = [next, scan.found, scan.heads, scan.last | scan.unknown << 1 | chunks << 2 | fits << 3];
    match verdict {
        Verdict::Clean | Verdict::Chunks => Outcome::Done,
        Verdict::NotHttp => Outcome::State,
        _ => Outcome::Undecided,
    }
}
