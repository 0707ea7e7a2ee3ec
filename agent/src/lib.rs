//! The injected data plane.
