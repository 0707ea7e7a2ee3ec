//! What agent, client and controller say to each other.
