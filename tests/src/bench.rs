//! The benchmark: what Sluice costs, measured with the real agent and client on real kernel networking.
//!
//! Three hosts: a caller, a pod with an app, and a laptop beside it on the same machine ("0 ms away"). Every case runs on
//! three paths in turn: `direct` (a port without a rule: the agent has no part in it), `pass` (a port with a header rule
//! that no request fits) and `intercepted` (the same port, every request fits). HTTP/1 over connections that stay runs on
//! three more, on a port whose rule asks for insertion: `native` (no request ever fits: the kernel looks at each, the agent
//! at none), `handed-back` (the agent has been in each connection before, and has left it) and `inserted` (a request of each
//! connection has been intercepted before, so the agent is in it). Several rounds, each beginning with another path; medians
//! are reported. On a port of that kind, one at a time: the first request of a native connection that fits
//! (`first_matched`).
//!
//! **What the numbers are good for.** Caller, app and agent share the processors of one machine. With many connections
//! all of them are busy, and a ratio is one of processor time per request: all of it, over that without the agent. With
//! one connection it is one of latency, which consists of wake-ups. Both depend on the machine, so requests per second
//! of different runs are not to be compared; system calls and the agent's processor time per request may be.

mod histogram;
mod load;
mod numbers;
mod plan;
mod stage;
mod syscalls;

pub mod app;
pub mod cluster;
pub mod first_matched;
pub mod packets;
pub mod report;
pub mod run;

use std::{fmt, time::Duration};

/// Header by which requests are intercepted or not. Both values have the same length, so all requests have.
const HEADER: &str = "x-bench";

/// Value of [`HEADER`] that the rule names.
const TAKEN: &str = "laptop";

/// A value that no rule names.
const NOT_TAKEN: &str = "nobody";

/// Bytes that make a head one of 2.5 KiB, in a header that no rule names.
const FILLING: usize = 2230;

/// Bytes of an answer's body.
const BODY: usize = 64;

/// How long a part of the benchmark that should take moments may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// What kind of requests are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// HTTP/1.1 over connections that stay.
    Http1,
    /// The same with heads of 2.5 KiB.
    Http1Large,
    /// HTTP/1.1, each request over a new connection, which the caller closes behind the answer.
    Http1Connect,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Unary gRPC calls.
    Grpc,
}

/// Which way requests take.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// To the app, on a port without a rule.
    Direct,
    /// Through the agent to the app.
    Pass,
    /// Through the agent and the tunnel to the laptop.
    Intercepted,
    /// To the app, past the kernel's packet programs, which hold nothing.
    Native,
    /// The same, over connections that the agent has been in.
    HandedBack,
    /// Through the agent, which is in the connections, to the app.
    Inserted,
}

// === impl Case ===

impl Case {
    /// The ports on which the app serves it: with a rule, and without one.
    const fn ports(self) -> Ports {
        match self {
            Self::Http1 | Self::Http1Large | Self::Http1Connect => {
                Ports { steered: 8080, direct: 8090, inserted: Some(8100) }
            }
            Self::Http2 => Ports { steered: 8081, direct: 8091, inserted: None },
            Self::Grpc => Ports { steered: 8082, direct: 8092, inserted: None },
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http1 => "http1",
            Self::Http1Large => "http1-large",
            Self::Http1Connect => "http1-connect",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        })
    }
}

// === impl Path ===

impl Path {
    /// All of them.
    const ALL: [Self; 6] =
        [Self::Direct, Self::Pass, Self::Intercepted, Self::Native, Self::HandedBack, Self::Inserted];

    /// Whether requests of this kind can take it.
    const fn serves(self, case: Case) -> bool {
        match self {
            Self::Direct | Self::Pass | Self::Intercepted => true,
            Self::Native | Self::HandedBack | Self::Inserted => matches!(case, Case::Http1 | Case::Http1Large),
        }
    }

    /// Whose app answers.
    const fn answered_by(self) -> &'static str {
        match self {
            Self::Intercepted => app::LAPTOP,
            _ => app::POD,
        }
    }

    /// Value of [`HEADER`] in its requests.
    const fn header(self) -> &'static str {
        match self {
            Self::Intercepted => TAKEN,
            _ => NOT_TAKEN,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Pass => "pass",
            Self::Intercepted => "intercepted",
            Self::Native => "native",
            Self::HandedBack => "handed-back",
            Self::Inserted => "inserted",
        })
    }
}

/// The ports of a case.
#[derive(Clone, Copy, Debug)]
struct Ports {
    steered: u16,
    direct: u16,
    /// With a rule that asks for insertion.
    inserted: Option<u16>,
}

/// The port at which a responder that does nothing but answer shows what the load generator itself can do. Only for
/// HTTP/1 and HTTP/2.
const CEILING: [(Case, u16); 2] = [(Case::Http1, 8070), (Case::Http2, 8071)];
