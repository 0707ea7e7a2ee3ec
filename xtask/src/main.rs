//! `cargo xtask`: what a developer of Sluice or a CI job runs.

#![forbid(unsafe_code)]

mod ebpf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Everything a developer of Sluice or a CI job runs")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Compile the program that runs in the kernel, or check the committed object.
    Ebpf(ebpf::EbpfArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Ebpf(args) => ebpf::run(args),
    }
}
