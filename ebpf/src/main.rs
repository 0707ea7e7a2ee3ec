//! The programs that run in the kernel.

fn main() {}
