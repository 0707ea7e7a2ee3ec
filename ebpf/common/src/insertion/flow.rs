//! Flows: one entry for each connection that the packet programs know.

use crate::{Address, AddressWords};

/// One connection, in the order of the packet of its caller.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The caller's address; IPv4 in its v4-mapped form.
    pub caller: AddressWords,
    /// The pod's address.
    pub pod: AddressWords,
    /// The caller's port in host byte order.
    pub caller_port: u16,
    /// The intercepted port in host byte order.
    pub port: u16,
}

/// What becomes of a flow's packets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The app talks to its caller; request heads are looked at.
    Native = 0,
    /// A request is being kept from the app, and the agent asked to insert itself.
    Held = 1,
    /// The agent is inserted: caller and app talk to its two sockets.
    Split = 2,
    /// Never looked at again.
    Wire = 3,
}

/// What is known about the end of the answer that is running.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// None runs: the next byte of the app begins one.
    None = 0,
    /// It ends at [`Flow::answer_end`].
    Length = 1,
    /// Only who reads it knows.
    Unknown = 2,
    /// As `Unknown`, and the last packet ended as a chunked answer does.
    Ending = 3,
    /// The last packet ended within its head, or within the lines between its chunks; [`Flow::answer_head`] says what was
    /// read, and [`Flow::answer_end`] which length.
    Head = 4,
    /// It is chunked, and the data of its running chunk ends at [`Flow::answer_end`].
    Chunks = 5,
}

/// `bpf_spin_lock`, under the name by which the kernel finds it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct bpf_spin_lock {
    val: u32,
}

/// A flow's value. Sequence numbers are the caller's and wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Held while any of the rest is read or written in the kernel.
    pub lock: bpf_spin_lock,
    /// A [`State`].
    pub state: u32,
    /// Where the caller's next request head begins.
    pub next_head: u32,
    /// Highest number that the app has acknowledged.
    pub app_ack: u32,
    /// End of the app's highest byte, whoever got it.
    pub sent_end: u32,
    /// Highest number that the caller has acknowledged.
    pub caller_ack: u32,
    /// An [`Answer`].
    pub answer: u32,
    /// Where the running answer ends.
    pub answer_end: u32,
    /// Requests that have passed.
    pub asked: u32,
    /// Answers that have ended, or were passed over.
    pub answered: u32,
    /// One bit for each request that is owed an answer, the oldest in bit 0: whether it is a `HEAD`.
    pub heads: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// First number that is held.
    pub held_from: u32,
    /// End of what was held and sent to the agent, and of what the agent has been given since it is in.
    pub held_to: u32,
    /// When holding began, or the flow, in ns of `CLOCK_MONOTONIC`.
    pub held_since: u64,
    /// App number = caller number - `din`, in the caller's direction.
    pub din: u32,
    /// App number = caller number - `dout`, in the app's direction.
    pub dout: u32,
    /// The numbers at which an inserted connection may go back: the caller's next byte and the app's next byte.
    pub armed_caller: u32,
    /// See `armed_caller`.
    pub armed_app: u32,
    /// `din` from then on.
    pub armed_din: u32,
    /// `dout` from then on.
    pub armed_dout: u32,
    /// The app's timestamp value minus the clock in ms, as seen.
    pub app_clock: u32,
    /// Counts uses of the same key.
    pub id: u32,
    /// What is known of an answer that goes on within a line: the scanner's business, but for [`Flow::is_between_chunks`].
    pub answer_head: u32,
    /// The caller's timestamp values are so much more to the app (RFC 7323 §3), in their own unit.
    pub time_in: u32,
    /// The app's timestamp values are so much more to the caller.
    pub time_out: u32,
    /// `time_out` from then on, where `armed_clock` is not [`UNTIMED`].
    pub armed_time_out: u32,
    /// The timestamp value of the agent's socket that plays the caller, minus the clock in ms; or [`UNTIMED`].
    pub armed_clock: u32,
    /// The caller's latest timestamp value while the flow is held.
    pub held_time: u32,
    /// The beginning of a line that goes on in the app's next packet: the last bytes of it that were seen.
    pub carry: [u64; CARRY / 8],
}

/// Longest beginning of a line that is kept from one packet to the next, in bytes.
pub const CARRY: usize = 64;

/// Where the scanner's position stands in [`Flow::answer_head`]: four bits.
pub const HEAD_MODE: u32 = 10;

/// Where it has how many digits of a chunk's size it has read: four bits.
pub const HEAD_DIGITS: u32 = 14;

/// The scanner's position in the size of a chunk.
pub const AT_SIZE: u32 = 9;

/// In place of [`Flow::armed_clock`]: timestamps stay what they are.
pub const UNTIMED: u32 = u32::MAX;

/// The flow began before the programs were attached.
pub const FLAG_OLD: u32 = 1 << 0;
/// The app uses timestamps and [`Flow::app_clock`] is set.
pub const FLAG_CLOCK: u32 = 1 << 1;
/// The inserted connection may go back at its armed numbers.
pub const FLAG_ARMED: u32 = 1 << 2;
/// A request has said that it is the last of its connection.
pub const FLAG_LAST: u32 = 1 << 3;
/// The caller reset the connection.
pub const FLAG_RESET: u32 = 1 << 4;
/// The caller's side has sent its FIN.
pub const FLAG_CALLER_FIN: u32 = 1 << 5;
/// The app's side has sent its FIN.
pub const FLAG_APP_FIN: u32 = 1 << 6;
/// Both sides have sent their last byte.
pub const ENDED: u32 = FLAG_CALLER_FIN | FLAG_APP_FIN;
/// The caller has acknowledged the handshake.
pub const FLAG_SHAKEN: u32 = 1 << 7;
/// Something of the caller was passed unread, and the app has sent nothing since.
pub const FLAG_ASKING: u32 = 1 << 8;
/// A packet at the armed numbers is being looked at.
pub const FLAG_RETURNING: u32 = 1 << 9;
/// The flow's numbers are those of its next packet with data: the agent has found the connection, and does not know them.
pub const FLAG_UNSET: u32 = 1 << 11;
/// The app has sent data.
pub const FLAG_APP_SPOKEN: u32 = 1 << 10;
/// The flow has gone back, and [`Flow::time_in`] follows from the next packet of the caller.
pub const FLAG_TIMED: u32 = 1 << 12;
/// The app's new data is kept from the caller while the flow is held: it would never stand still.
pub const FLAG_BLOCKED: u32 = 1 << 13;

impl Flow {
    /// A flow that nothing is known of.
    #[must_use]
    #[inline(always)]
    pub const fn new(state: State, id: u32) -> Self {
        Self {
            lock: bpf_spin_lock { val: 0 },
            state: state as u32,
            next_head: 0,
            app_ack: 0,
            sent_end: 0,
            caller_ack: 0,
            answer: Answer::None as u32,
            answer_end: 0,
            asked: 0,
            answered: 0,
            heads: 0,
            flags: 0,
            held_from: 0,
            held_to: 0,
            held_since: 0,
            din: 0,
            dout: 0,
            armed_caller: 0,
            armed_app: 0,
            armed_din: 0,
            armed_dout: 0,
            app_clock: 0,
            id,
            answer_head: 0,
            time_in: 0,
            time_out: 0,
            armed_time_out: 0,
            armed_clock: UNTIMED,
            held_time: 0,
            carry: [0; CARRY / 8],
        }
    }

    /// Whether its two sides see other numbers or timestamps.
    #[must_use]
    #[inline(always)]
    pub const fn is_shifted(&self) -> bool {
        self.din | self.dout | self.time_in | self.time_out != 0
    }

    /// Whether the app's data ends before the first digit of a chunk's size: where a line begins, of which nothing is known yet.
    #[must_use]
    pub const fn is_between_chunks(&self) -> bool {
        self.answer == Answer::Head as u32
            && self.answer_head >> HEAD_MODE & 15 == AT_SIZE
            && self.answer_head >> HEAD_DIGITS & 15 == 0
    }

    /// For how many ms its two sides would take each other's packets for old ones if nobody translated timestamps any more;
    /// `None` where the numbers never meet again.
    #[must_use]
    pub const fn gap(&self) -> Option<u32> {
        if self.din | self.dout != 0 {
            return None;
        }
        Some(if self.time_in > self.time_out { self.time_in } else { self.time_out })
    }
}

impl FlowKey {
    /// The caller's address as bytes.
    #[must_use]
    pub const fn caller_bytes(&self) -> Address {
        crate::bytes_of(self.caller)
    }

    /// The pod's address as bytes.
    #[must_use]
    pub const fn pod_bytes(&self) -> Address {
        crate::bytes_of(self.pod)
    }
}

const _: () = assert!(size_of::<FlowKey>() == 36 && align_of::<FlowKey>() == 4);
const _: () = assert!(size_of::<Flow>() == 184 && align_of::<Flow>() == 8);
