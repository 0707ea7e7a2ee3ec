//! The client side of the tunnel.
