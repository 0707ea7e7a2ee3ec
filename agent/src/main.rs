//! The command `sluice-agent`.

fn main() {}
