//! Live insertion: what the packet programs and the agent share.
//!
//! A *flow* is one TCP connection of a caller to a port with HTTP rules, seen at the pod's network device. All sequence
//! numbers of a flow are the caller's, that is, as they stand in the packets outside the pod; the app's differ by
//! [`Flow::din`] and [`Flow::dout`] once an answer has come from elsewhere.

mod flow;
mod messages;

pub use self::{flow::*, messages::*};

/// Name of the hash map of flows: [`FlowKey`] to [`Flow`].
pub const FLOWS_MAP: &str = "FLOWS";
/// Name of the array in which the packet programs look up a local port: rows of [`SLOTS_ROW`] ports, each with its index in
/// [`LOCALS_MAP`], or 0 where it does not matter. In two steps, because the kernel looks things up in an array within the
/// program itself, and this is done for every packet.
pub const SLOTS_MAP: &str = "SLOTS";
/// Name of the array of local ports that matter, from 1 on: each a [`Local`].
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
/// Entries of the array of local ports: three for each port with HTTP rules, and one that stays empty.
pub const LOCALS_MAX: u32 = 1024;
/// Ports in a row of [`SLOTS_MAP`].
pub const SLOTS_ROW: usize = 32;
/// Rows of [`SLOTS_MAP`].
pub const SLOTS_ROWS: u32 = 2048;
/// Most header names and values of all rules together.
pub const NAMES_MAX: u32 = 16_384;
/// Bytes of the ring buffer: two held windows of the longest kind. It is mapped twice into the agent.
pub const EVENTS_BYTES: u32 = 512 << 10;

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

/// What a local port is. Zeros where there is none.
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
    /// How requests are looked at: an `ACTIVE_*`, or 0 while the last flows of a port end.
    pub active: u16,
    /// In how many connections in a row the app's socket was not there although the handshake was over: because it is made
    /// with the first data only (`TCP_DEFER_ACCEPT`), or because the handshake's end was lost behind the program. From
    /// [`DEFERS`] on the app is taken to defer: nothing can be held then, and new connections are steered.
    pub deferred: u32,
    /// What its rules ask for.
    pub asked: Asked,
}

/// What the rules of a port ask for, as far as it is known without looking into a hash map, which costs as much as reading two
/// lines of a head.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The [`crate::name_bit`]s of all names in [`NAMES_MAP`], and of [`FRAMING`].
    pub bitmap: [u64; 2],
    /// The hash of the only name with [`Interest::Exact`]; 0 where there are several or none.
    pub name: u64,
    /// The hash of its only value; 0 where there are several.
    pub value: u64,
}

/// A request that may fit a rule is held for the agent.
pub const ACTIVE_HOLD: u16 = 1;
/// All rules are wiretaps: a request that is whole in its packet is copied to the agent, and passes.
pub const ACTIVE_COPY: u16 = 2;

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
}

/// Headers that frame a message or ask for another protocol or an interim answer. The programs know them by themselves, and
/// no rule's condition on one of them is theirs to decide.
pub const FRAMING: [&str; 5] = ["content-length", "connection", "transfer-encoding", "upgrade", "expect"];

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
    /// Held requests that were let go: nobody took them within a second.
    Late = 3,
    /// Connections that the packet programs had not seen begin, and that were steered.
    Steered = 4,
    /// Flows that went back.
    Returned = 5,
    /// Flows whose first bytes begin no request: never looked at again.
    NotHttp = 6,
    /// Packets with requests for wiretaps, of which the agent got no copy as the ring buffer was full.
    CopyLost = 7,
    /// Requests that could not be held as the app's socket was not there yet; see [`Local::deferred`].
    NoSocket = 8,
}

/// Number of [`FlowCounter`]s.
pub const FLOW_COUNTERS: u32 = 9;

impl Local {
    /// An entry; `facing_caller` and `facing_app` are 0 but for an intercepted port.
    #[must_use]
    pub const fn new(kind: u32, port: u16, facing_caller: u16, facing_app: u16, active: u16, asked: Asked) -> Self {
        Self { kind, port, facing_caller, facing_app, active, deferred: 0, asked }
    }
}

impl Asked {
    /// For nothing.
    pub const NOTHING: Self = Self { bitmap: [0; 2], name: 0, value: 0 };
}

impl NameKey {
    /// A key.
    #[must_use]
    #[inline(always)]
    pub const fn new(hash: u64, port: u16) -> Self {
        Self { hash, port: port as u32, pad: 0 }
    }
}

const _: () = assert!(size_of::<Local>() == 48);
const _: () = assert!(size_of::<NameKey>() == 16);
const _: () = assert!(SLOTS_ROW * SLOTS_ROWS as usize == 1 << 16);
