//! When things break: a client, a cable, an agent, a rule in the middle of the traffic, somebody without the right key.
//!
//! Every test here needs root and is ignored without; `cargo xtask test` runs them. A file for each theme.
