//! Sluice's control plane in a cluster.
//!
//! Runs as a Deployment of two replicas in its own namespace, never on the data path: everything that is intercepted
//! goes on without it. All its state is in the Kubernetes API.
//!
//! | Module | Owns |
//! |---|---|
//! | [`inject`] | the patch that adds the agent to a pod, as a pure function |
//! | [`overlap`] | whether two Intercepts could want the same request, as a pure function |
//! | [`admission`] | the endpoints that the API server asks |
//! | [`cluster`] | what is known of the cluster |
//! | [`controller`] | rules for agents, status of Intercepts |
//! | [`refusals`] | agents that were not let in, counted |
//! | [`tls`] | the certificate: made, stored, rotated, made known |
//! | [`server`] | HTTPS |
//! | [`leader`] | which replica does what only one may do |
//! | [`health`] | the kubelet's probes |
//! | [`config`], [`app`] | the command line, and putting all this together |

#![forbid(unsafe_code)]

pub mod admission;
pub mod app;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod health;
pub mod inject;
pub mod leader;
pub mod overlap;
pub mod refusals;
pub mod server;
pub mod tls;
