//! Sockets for insertions to come, made while no request waits for them.
//!
//! Of the agent's thread and its network namespace. A few for each family, so that an agent with nothing to do holds no more:
//! what is needed beyond them at once is made on the spot. They are bound to nothing, so that no port is taken by them and
//! closing them sends nothing.

use std::{io, net::SocketAddr, time::Duration};

use socket2::Domain;
use tokio::time::Instant;

use super::repair::Blank;

/// So many of each family: two insertions' worth.
const MOST: usize = 4;
/// How long after an insertion others are made in the place of the used ones: by then its request is under way.
const LATER: Duration = Duration::from_millis(1);

/// The sockets that are there.
#[derive(Debug)]
pub(super) struct Stock {
    v4: Vec<Blank>,
    v6: Vec<Blank>,
    due: Option<Instant>,
}

// === impl Stock ===

impl Stock {
    /// Full.
    pub(super) fn new() -> Self {
        let [v4, v6] = [(); 2].map(|()| Vec::with_capacity(MOST));
        let mut stock = Self { v4, v6, due: None };
        stock.fill();
        stock
    }

    /// One for a connection of this address.
    pub(super) fn take(&mut self, local: SocketAddr) -> io::Result<Blank> {
        self.due.get_or_insert_with(|| Instant::now() + LATER);
        let held = if local.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        held.pop().map_or_else(|| Blank::new(Domain::for_address(local)), Ok)
    }

    /// When [`Stock::look`] has something to do.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Fills it up again when it is time.
    pub(super) fn look(&mut self) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.fill();
        }
    }

    fn fill(&mut self) {
        for (held, domain) in [(&mut self.v4, Domain::IPV4), (&mut self.v6, Domain::IPV6)] {
            // Fails where there is no such family, or no room for another file: who needs one finds out.
            while held.len() < MOST
                && let Ok(blank) = Blank::new(domain)
            {
                held.push(blank);
            }
        }
    }
}
