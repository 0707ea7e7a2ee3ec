//! Sluice's Kubernetes types, and the names that its parts share in a cluster.
//!
//! Runs wherever Intercepts are written or read: control plane, command line, tests; the agent uses [`contract`] alone.
//! It talks to no API server and decides nothing about traffic.
//!
//! | Module | Owns |
//! |---|---|
//! | [`contract`] | labels, annotations, environment, paths, ports, names of objects |
//! | [`intercept`] | the resource `Intercept` with its schema and rules |
//! | [`status`] | what is reported about one |
//! | [`manifests`] | what of `manifests/` is made from these |
//!
//! # Compatibility
//!
//! `v1alpha1` is served and stored. Safe: a new optional field; a new reason or condition. Breaking, hence a new
//! version with conversion: a removed, renamed or newly required field, or a tighter rule that stored objects break
//! (Kubernetes checks an unchanged field no more, but only where lists are maps).

#![forbid(unsafe_code)]

pub mod contract;
#[cfg(feature = "resource")]
pub mod intercept;
#[cfg(feature = "resource")]
pub mod manifests;
#[cfg(feature = "resource")]
pub mod status;

#[cfg(feature = "resource")]
pub use intercept::{Intercept, InterceptPort, InterceptSpec, PortRef, Target, TargetKind};
#[cfg(feature = "resource")]
pub use status::{Counters, InterceptStatus, PodStatus, PortWay};
