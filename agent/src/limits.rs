//! What the system lets this process have.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets the process open as many files as it may. A connection takes two, and many systems start programs with room for
/// 1024, for the sake of `select`, which nothing here uses.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .map_err(io::Error::from);
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit for open files");
    }
}
