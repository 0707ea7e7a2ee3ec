//! `cargo xtask`: what a developer of Sluice or a CI job runs.

#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod cluster;
mod demo;
mod ebpf;
mod fuzz;
mod image;
mod intercept;
mod lint;
mod manifests;
mod soak;
mod system;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Everything a developer of Sluice or a CI job runs")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build agent, client and the tests' own programs.
    Build(BuildArgs),
    /// Show in a terminal what Sluice does, on this machine alone (needs root).
    Demo(demo::DemoArgs),
    /// Run every test; those on real kernel networking need root.
    Test(test::TestArgs),
    /// Check formatting, lints, documentation and that what is generated (kernel program, manifests) is current.
    Lint,
    /// Make the generated part of manifests/, or check that it is current.
    Manifests(manifests::ManifestsArgs),
    /// Fuzz the agent's reading of HTTP/1 (needs a nightly toolchain).
    Fuzz(fuzz::FuzzArgs),
    /// Measure what Sluice costs (needs root).
    Bench(bench::BenchArgs),
    /// Live insertion under load and losses for an hour, while the agent's worker is killed once a minute (needs root).
    Soak(soak::SoakArgs),
    /// Start a real Kubernetes on this machine, for tests and for trying, or take it down.
    Cluster(cluster::ClusterArgs),
    /// Intercept a workload: `sluice intercept` from this checkout, with the same arguments.
    Intercept(intercept::Arguments),
    /// Show intercepts and their pods: `sluice status` from this checkout, with the same arguments.
    Status(intercept::Arguments),
    /// Put Sluice's programs into container images, without a container engine.
    Image(image::ImageArgs),
    /// Compile the program that runs in the kernel, or check the committed object.
    Ebpf(ebpf::EbpfArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// Optimised.
    #[arg(long)]
    release: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Build(args) => cargo::build_programs(args.release).map(|()| ExitCode::SUCCESS),
        Task::Demo(args) => demo::run(args),
        Task::Test(args) => test::run(&args),
        Task::Lint => lint::run(),
        Task::Manifests(args) => manifests::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Soak(args) => soak::run(args),
        Task::Cluster(args) => cluster::run(args),
        Task::Intercept(args) => intercept::run("intercept", &args),
        Task::Status(args) => intercept::run("status", &args),
        Task::Image(args) => image::run(&args),
        Task::Ebpf(args) => ebpf::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
