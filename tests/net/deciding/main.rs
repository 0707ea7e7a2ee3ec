//! Requests decided one by one: who answers which, and that nobody can tell the agent is there.
//!
//! The tests carry the names of their cases (b01 and so on). Each sends what must be taken and what must not.

mod acting;
mod connections;
mod framing;
mod grpc;
mod h2c;
mod heads;
mod owners;
mod probes;
mod rules;
mod stage;
mod streams;
mod strict;
mod traffic;
mod turns;
mod ways;
mod wiretaps;
