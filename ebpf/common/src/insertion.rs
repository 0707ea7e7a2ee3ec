//! Live insertion: what the packet programs and the agent share.
//!
//! A *flow* is one TCP connection of a caller to a port with HTTP rules, seen at the pod's network device. All sequence
//! numbers of a flow are the caller's, that is, as they stand in the packets outside the pod; the app's differ by
//! [`Flow::din`] and [`Flow::dout`] once an answer has come from elsewhere.

use crate::{Address, AddressWords};

/// Name of the hash map of flows: [`FlowKey`] to [`Flow`].
pub const FLOWS_MAP: &str = "FLOWS";
/// Name of the hash map of local ports that the packet programs know: port (`u32`) to [`Local`].
pub const LOCALS_MAP: &str = "LOCALS";
/// Name of the hash map of header names that matter: [`NameKey`] to an [`Interest`] (`u32`).
pub const NAMES_MAP: &str = "NAMES";
/// Name of the hash map of header values that some rule asks for: [`NameKey`] with the hash of a value, to anything.
pub const VALUES_MAP: &str = "VALUES";
/// Name of the ring buffer of [`Event`]s.
pub const EVENTS_MAP: &str = "EVENTS";
/// Name of the per-CPU array of counters, by [`FlowCounter`].
pub const FLOW_COUNTERS_MAP: &str = "FLOW_COUNTERS";
/// Name of the socket map of the agent's listeners, as in the steering object.
pub const SPARE_LISTENERS_MAP: &str = "LISTENERS";

/// Name of the program at the devices' ingress.
pub const INGRESS_PROGRAM: &str = "sluice_ingress";
/// Name of the program at the devices' egress.
pub const EGRESS_PROGRAM: &str = "sluice_egress";
/// Name of the program that carries out a [`Command`]; it is run by `BPF_PROG_TEST_RUN` and attached to nothing.
pub const COMMAND_PROGRAM: &str = "sluice_command";
/// Name of the program that steers connections which the packet programs have not seen begin.
pub const SPARE_PROGRAM: &str = "sluice_spare";

/// Most flows; the map is filled as they come.
pub const FLOWS_MAX: u32 = 65_536;
/// Most local ports: three for each port with HTTP rules.
pub const LOCALS_MAX: u32 = 1024;
/// Most header names and values of all rules together.
pub const NAMES_MAX: u32 = 16_384;
/// Bytes of the ring buffer.
pub const EVENTS_BYTES: u32 = 4 << 20;

/// Name of a number in the object that the agent sets before it loads it: bits of [`GENERATION_BITS`], different for each
/// agent. Programs of an agent that has died may be there still, and must not take the marks of another's for theirs.
pub const GENERATION: &str = "GENERATION";
/// The bits of a mark that tell generations apart.
pub const GENERATION_BITS: u32 = 0x00ff_ff00;

/// Mark of a packet between the app and the agent that was sent back into its device: it comes from this pod.
pub const MARK_OWN: u32 = 0x5100_0001;
/// Mark of a packet that must not leave: the local sender shall take it for sent, so it is dropped on the way in.
pub const MARK_SINK: u32 = 0x5100_0002;

/// Longest part of a packet that is read for request heads, and longest piece of a held packet in one event.
pub const WINDOW: usize = 4096;

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
    /// It is chunked, and its next chunk begins at [`Flow::answer_end`].
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
    /// End of the app's highest byte.
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
    /// End of what was held and sent to the agent.
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
    /// What is known of an answer that goes on in the middle of a line: the scanner's own business.
    pub answer_head: u32,
    pad: u32,
}

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

/// What a local port is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// A `LOCAL_*`.
    pub kind: u32,
    /// The intercepted port.
    pub port: u16,
    /// For an intercepted port: the port of the agent's sockets that face callers.
    pub facing_caller: u16,
    /// For an intercepted port: the port of the agent's sockets that face the app.
    pub facing_app: u16,
    /// 1 where requests are looked at; 0 while the last flows of a port end.
    pub active: u16,
    /// In how many connections in a row the app's socket was not there although the handshake was over: because it is made
    /// with the first data only (`TCP_DEFER_ACCEPT`), or because the handshake's end was lost behind the program. From
    /// [`DEFERS`] on the app is taken to defer: nothing can be held then, and new connections are steered.
    pub deferred: u32,
    /// A bit for each hash of a name in [`NAMES_MAP`], by its lowest 7 bits.
    pub bitmap: [u64; 2],
}

/// See [`Local::deferred`].
pub const DEFERS: u32 = 3;

/// A port with HTTP rules.
pub const LOCAL_PORT: u32 = 0;
/// The port of the agent's sockets that play the app.
pub const LOCAL_FACING_CALLER: u32 = 1;
/// The port of the agent's sockets that play the caller.
pub const LOCAL_FACING_APP: u32 = 2;

/// A header name (or value), for one port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameKey {
    /// Of [`crate::name_hash`] or [`crate::value_hash`].
    pub hash: u64,
    /// The intercepted port.
    pub port: u32,
    pad: u32,
}

/// What to do about a header.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// A rule asks for it in a way that only the agent decides: never proven.
    Present = 1,
    /// A rule asks for an exact value: proven unless the value is in [`VALUES_MAP`].
    Exact = 2,
    /// `Content-Length`.
    Length = 3,
    /// `Connection`: `close` and `keep-alive` are understood.
    Connection = 4,
    /// Asks for another protocol or for an interim answer: a request with it is never proven.
    Framing = 5,
    /// `Transfer-Encoding`: a request with it is never proven, an answer has an end that only its reader knows.
    Coding = 6,
}

/// What an [`Event`] says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A piece of a held packet follows.
    Held = 1,
    /// A held flow may have become ready for insertion.
    Progress = 2,
    /// The caller has reset a held flow.
    Reset = 3,
    /// An armed flow has gone back: the agent's sockets are to be closed without a packet.
    Returned = 4,
    /// A flow with shifted numbers has ended.
    Ended = 5,
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
    /// [`Flow::id`].
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
    /// Split: may go back; `numbers` are the armed ones.
    Arm = 3,
    /// Split: may no longer go back.
    Disarm = 4,
    /// Forgets the flow.
    Remove = 5,
    /// Held, and somebody still works on it: `held_since` begins anew.
    Keep = 6,
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
    /// Done. For [`Op::Scan`]: every head was proven not to match, and [`Command::numbers`] says where the next begins.
    Done = 0,
    /// There is no such flow, or the key is used for another by now.
    Gone = 1,
    /// The flow is not in the state for it.
    State = 2,
    /// Its numbers have moved on.
    Moved = 3,
    /// More was held meanwhile.
    More = 4,
    /// The caller has reset it.
    Reset = 5,
    /// For [`Op::Scan`]: not proven.
    Undecided = 6,
    /// The program did not understand the command.
    Unknown = 7,
}

/// A command: what the program is run on, behind [`COMMAND_AT`] bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Which flow; only `port` for [`Op::Scan`].
    pub key: FlowKey,
    /// An [`Op`].
    pub op: u32,
    /// [`Flow::id`] of the flow that is meant.
    pub id: u32,
    /// What the operation needs.
    pub numbers: [u32; 4],
}

/// Where a command stands in the data that its program is run on: behind an Ethernet header, which the kernel wants.
pub const COMMAND_AT: usize = 14;

/// Index of a counter in [`FLOW_COUNTERS_MAP`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowCounter {
    /// Requests proven not to match.
    Passed = 0,
    /// Requests that were held.
    Held = 1,
    /// Flows that could not be noted because the map is full.
    Full = 2,
    /// Held requests that were let go because nobody took them within a second.
    Late = 3,
    /// Connections that the packet programs had not seen begin, and that were steered.
    Steered = 4,
    /// Flows that went back.
    Returned = 5,
    /// Flows whose first bytes begin no request: never looked at again.
    NotHttp = 6,
}

/// Number of [`FlowCounter`]s.
pub const FLOW_COUNTERS: u32 = 7;

impl Local {
    /// An entry; `facing_caller` and `facing_app` are 0 but for an intercepted port.
    #[must_use]
    pub const fn new(
        kind: u32,
        port: u16,
        facing_caller: u16,
        facing_app: u16,
        active: bool,
        bitmap: [u64; 2],
    ) -> Self {
        Self { kind, port, facing_caller, facing_app, active: active as u16, deferred: 0, bitmap }
    }
}

impl NameKey {
    /// A key.
    #[must_use]
    #[inline(always)]
    pub const fn new(hash: u64, port: u16) -> Self {
        Self { hash, port: port as u32, pad: 0 }
    }
}

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
            pad: 0,
        }
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

    fn key(&mut self) -> Option<FlowKey> {
        let caller = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        let pod = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        Some(FlowKey { caller, pod, caller_port: self.u16()?, port: self.u16()? })
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
        let words = key.chain([self.op, self.id]).chain(self.numbers);
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
            numbers: [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?],
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
            5 => Self::Reset,
            6 => Self::Undecided,
            _ => Self::Unknown,
        }
    }
}

const _: () = assert!(size_of::<FlowKey>() == 36 && align_of::<FlowKey>() == 4);
const _: () = assert!(size_of::<Flow>() == 104 && align_of::<Flow>() == 8);
const _: () = assert!(size_of::<Local>() == 32);
const _: () = assert!(size_of::<NameKey>() == 16);
const _: () = assert!(size_of::<Event>() == 80);
const _: () = assert!(size_of::<Command>() == 60);
