//! The ring of the real cluster: Kubernetes on this machine, or the one that `KUBECONFIG` names.
//!
//! Every test here needs root, and Go to build Kubernetes with, and is ignored without; `cargo xtask test` runs them. A file
//! for each theme.

mod breaking;
mod cluster;
mod guarding;
mod image;
mod injecting;
mod inserting;
mod laptop;
mod reviewing;
mod sharing;
mod stage;
mod system;
mod taking;
mod using;
mod wording;
