//! What the packet programs tell the agent, and what the agent asks of them.

use super::FlowKey;

/// What an [`Event`] says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A piece of a held packet follows.
    Held = 1,
    /// A held flow may have become ready for insertion.
    Progress = 2,
    /// An armed flow has gone back: the agent's sockets are to be closed without a packet.
    Returned = 3,
    /// Requests that wiretaps see have passed, and follow, whole.
    Copied = 4,
}

/// Beginning of a record in the ring buffer; `length` bytes of the caller follow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Which flow.
    pub key: FlowKey,
    /// An [`EventKind`].
    pub kind: u32,
    /// Number of the first byte.
    pub seq: u32,
    /// Bytes that follow.
    pub length: u32,
    /// The packet's window field, unscaled.
    pub window: u32,
    /// The packet's timestamp value, where `has_timestamps`.
    pub tsval: u32,
    /// The packet's timestamp echo.
    pub tsecr: u32,
    /// 1 where the packet has timestamps.
    pub has_timestamps: u32,
    /// [`super::Flow::id`].
    pub id: u32,
    pad: u32,
    /// When, in ns of `CLOCK_MONOTONIC`.
    pub at: u64,
}

/// What the agent asks of a flow, under the flow's lock.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Held to split, if nothing has changed since the agent made its sockets: `numbers` are `sent_end`, `app_ack` and
    /// `held_to` as it knows them.
    Insert = 1,
    /// Held to native: the next packet goes to the app. `numbers[0]` is not 0 where it shall never be looked at again.
    Release = 2,
    /// Split: may go back, if nothing has come since; `numbers` are the armed ones, in the order of the fields.
    Arm = 3,
    /// Split: may no longer go back.
    Disarm = 4,
    /// Forgets the flow.
    Remove = 5,
    /// Held, and somebody still works on it: `held_since` begins anew.
    Keep = 6,
    /// As `Keep`, and the app's new data is kept from the caller from now on ([`super::FLAG_BLOCKED`]).
    Block = 9,
    /// As `Keep`, and it is not any more.
    Unblock = 10,
    /// Split and armed: goes back at once, if the caller has acknowledged all.
    Return = 8,
    /// Looks for request heads in the `numbers[0]` bytes that follow the command. With bit 0 of `numbers[1]` for answers, to
    /// requests that are `HEAD` where the bits above are set, which go on with what the other two say.
    Scan = 7,
}

/// Answer to a [`Command`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done. For [`Op::Scan`]: every head was proven not to match, and [`Command::found`] says where the next begins.
    Done = 0,
    /// There is no such flow, or the key is used for another by now.
    Gone = 1,
    /// The flow is not in the state for it.
    State = 2,
    /// Its numbers have moved on.
    Moved = 3,
    /// More was held meanwhile.
    More = 4,
    /// For [`Op::Scan`]: not proven.
    Undecided = 5,
    /// The program did not understand the command.
    Unknown = 6,
}

/// A command: what the program is run on, behind [`COMMAND_AT`] bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Which flow; only `port` for [`Op::Scan`].
    pub key: FlowKey,
    /// An [`Op`].
    pub op: u32,
    /// [`super::Flow::id`] of the flow that is meant.
    pub id: u32,
    /// What the operation needs.
    pub numbers: [u32; NUMBERS],
    /// What it has found, which is written here.
    pub found: [u32; 4],
}

/// Most numbers of a command.
pub const NUMBERS: usize = 6;

/// Where a command stands in the data that its program is run on: behind an Ethernet header, which the kernel wants.
pub const COMMAND_AT: usize = 14;

impl Event {
    /// An event about a flow, of no packet.
    #[must_use]
    #[inline(always)]
    pub const fn new(key: FlowKey, kind: EventKind, id: u32, at: u64) -> Self {
        Self {
            key,
            kind: kind as u32,
            seq: 0,
            length: 0,
            window: 0,
            tsval: 0,
            tsecr: 0,
            has_timestamps: 0,
            id,
            pad: 0,
            at,
        }
    }
}

/// Reads numbers one after another.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn u16(&mut self) -> Option<u16> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u16::from_ne_bytes(*first))
    }

    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_ne_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_ne_bytes(*first))
    }

    fn four(&mut self) -> Option<[u32; 4]> {
        Some([self.u32()?, self.u32()?, self.u32()?, self.u32()?])
    }

    fn key(&mut self) -> Option<FlowKey> {
        Some(FlowKey { caller: self.four()?, pod: self.four()?, caller_port: self.u16()?, port: self.u16()? })
    }
}

impl Event {
    /// An event and the bytes that follow it, from a record of the ring buffer.
    #[must_use]
    pub fn from_bytes(record: &[u8]) -> Option<(Self, &[u8])> {
        let mut reader = Reader { rest: record };
        let event = Self {
            key: reader.key()?,
            kind: reader.u32()?,
            seq: reader.u32()?,
            length: reader.u32()?,
            window: reader.u32()?,
            tsval: reader.u32()?,
            tsecr: reader.u32()?,
            has_timestamps: reader.u32()?,
            id: reader.u32()?,
            pad: reader.u32()?,
            at: reader.u64()?,
        };
        Some((event, reader.rest.get(..event.length as usize)?))
    }
}

impl Command {
    /// As the program reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let [[a, b], [c, d]] = [self.key.caller_port, self.key.port].map(u16::to_ne_bytes);
        let key = self.key.caller.into_iter().chain(self.key.pod).chain([u32::from_ne_bytes([a, b, c, d])]);
        let words = key.chain([self.op, self.id]).chain(self.numbers).chain(self.found);
        for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *to = word.to_ne_bytes();
        }
        bytes
    }

    /// As the program left it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes };
        Some(Self {
            key: reader.key()?,
            op: reader.u32()?,
            id: reader.u32()?,
            numbers: [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?],
            found: reader.four()?,
        })
    }
}

impl Outcome {
    /// What the program's return value means.
    #[must_use]
    pub const fn of(code: u32) -> Self {
        match code {
            0 => Self::Done,
            1 => Self::Gone,
            2 => Self::State,
            3 => Self::Moved,
            4 => Self::More,
            5 => Self::Undecided,
            _ => Self::Unknown,
        }
    }
}

const _: () = assert!(size_of::<Event>() == 80);
const _: () = assert!(size_of::<Command>() == 84);
