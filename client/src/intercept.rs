//! `sluice intercept …`: Intercepts in the cluster, and the tunnels that serve them.
//!
//! | Module | Owns |
//! |---|---|
//! | [`add`] | the command from the first look at the cluster to the last goodbye |
//! | [`workload`], [`ports`] | what the user's words mean in the cluster |
//! | [`resource`] | creating, adopting and deleting the Intercept |
//! | [`session`], [`fleet`], [`forward`] | following it and its pods, one tunnel each |
//! | [`view`] | what is printed |
//! | [`detach`] | going on in the background |
//! | [`key`] | the files in the user's configuration folder |
//! | [`list`] | `list`, `remove` and `status` |

pub(crate) mod add;
mod detach;
mod fleet;
mod forward;
mod key;
pub(crate) mod list;
pub(crate) mod ports;
mod resource;
mod session;
mod view;
pub(crate) mod workload;
