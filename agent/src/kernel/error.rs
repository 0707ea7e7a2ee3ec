//! What can go wrong with the kernel part.

use std::{error::Error, io, net::SocketAddr};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::obstacle::{Capability, Circumstances, Obstacle};

/// Why the kernel part could not be set up. Everything but [`LoadError::Listen`] means that this kernel or the
/// privileges do not allow it, and the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No socket for steered connections.
    #[error("cannot listen on {address} for steered connections")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The network namespace could not be opened.
    #[error("cannot open this network namespace at {path}; /proc must be mounted")]
    Namespace {
        /// The path tried.
        path: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {operation}: {obstacle}")]
    Refused {
        /// What was tried.
        operation: Operation,
        /// What stands in the way, and the remedy.
        obstacle: Obstacle,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel's verifier does not accept the program; with all capabilities there this is a bug of Sluice.
    #[error("the kernel's verifier refuses Sluice's program; please report this with the verifier's last lines: {log}")]
    Verifier {
        /// The end of what the verifier wrote.
        log: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The compiled program is not what this agent expects; a bug of Sluice.
    #[error("Sluice's compiled kernel program is unusable; please report this")]
    Object(#[source] Box<EbpfError>),
    /// Part of the compiled program is missing; a bug of Sluice.
    #[error("Sluice's compiled kernel program has no {name}; please report this")]
    Missing {
        /// Name of the map or program.
        name: &'static str,
    },
    /// The kernel log could not be set up.
    #[error("cannot read the kernel program's log")]
    Log(#[source] io::Error),
}

/// What was tried when the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Making the maps.
    Maps,
    /// Loading the program.
    Program,
    /// Attaching the program to the network namespace.
    Attach,
    /// Registering the listeners.
    Listeners,
}

/// Why the maps could not be made equal to what was wanted. What was there before goes on as well as it can; the next
/// attempt starts from what the maps hold.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// More ports than fit.
    #[error("{wanted} ports are to be steered, at most {limit} can be")]
    TooManyPorts {
        /// How many were asked for.
        wanted: usize,
        /// How many are possible.
        limit: u32,
    },
    /// More exempt prefixes than fit.
    #[error("{wanted} source prefixes are exempt, at most {limit} can be")]
    TooManyExempt {
        /// How many were asked for.
        wanted: usize,
        /// How many are possible.
        limit: u32,
    },
    /// A map could not be read or written.
    #[error("cannot update the kernel map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
    /// The program could not be attached.
    #[error("cannot attach the program to the network namespace")]
    Attach(#[source] ProgramError),
}

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A map could not be read.
    #[error("cannot read the kernel map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

// === impl LoadError ===

impl LoadError {
    /// For an error of the kernel, or of aya around one, while doing `operation`, which needs `needed`.
    pub(crate) fn of(operation: Operation, needed: &[Capability], error: EbpfError) -> Self {
        if let EbpfError::ProgramError(ProgramError::LoadError { io_error, verifier_log }) = &error
            && !verifier_log.to_string().trim().is_empty()
        {
            let log = verifier_log.to_string();
            let obstacle = Obstacle::explain(io_error, needed, &Circumstances::read());
            // Without CAP_PERFMON the verifier is stricter: then the capability is the news, not its log.
            if !matches!(obstacle, Obstacle::Capabilities(_)) {
                return Self::Verifier { log: tail(&log), source: copy_of(io_error) };
            }
        }
        match io_error_in(&error) {
            Some(source) => Self::Refused {
                operation,
                obstacle: Obstacle::explain(source, needed, &Circumstances::read()),
                source: copy_of(source),
            },
            None => Self::Object(Box::new(error)),
        }
    }
}

// === impl Operation ===

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Maps => "make the kernel maps",
            Self::Program => "load the kernel program",
            Self::Attach => "attach the kernel program to the network namespace",
            Self::Listeners => "register the listeners with the kernel program",
        })
    }
}

/// The error of the kernel somewhere below aya's.
fn io_error_in<'a>(mut error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = error.source()?;
    }
}

/// `io::Error` is no `Clone`; those of the kernel are their number.
fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn tail(log: &str) -> String {
    const LINES: usize = 8;
    let lines: Vec<_> = log.trim().lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}
