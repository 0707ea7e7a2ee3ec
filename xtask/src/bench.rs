//! `cargo xtask bench`: builds everything optimised and becomes the benchmark.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{cargo, system};

/// What the benchmark needs besides what every network of namespaces does.
const TOOLS: &[(&str, &str)] = &[("strace", "strace")];

/// Arguments of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Passed on to the benchmark: `--quick`, `--json`, `--case`, `--rounds`. With `--cluster` it measures on a real
    /// Kubernetes instead, on this machine or the one that KUBECONFIG names; then only `--json` and `--rounds` may follow
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    // Looked for among all that is passed on: it may stand behind other options.
    let (cluster, others): (Vec<_>, Vec<_>) = args.arguments.iter().partition(|argument| *argument == "--cluster");
    let mut words = Vec::new();
    if cluster.is_empty() {
        ensure!(
            system::is_root(),
            "the benchmark makes network namespaces and loads a program into the kernel, which only root may.\n\
             Run it as root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask bench"
        );
        system::provide(system::NETWORK)?;
        system::provide(TOOLS)?;
        cargo::build_programs(true)?;
    } else {
        crate::cluster::provide_unless_given()?;
        system::provide(&[("strip", "binutils")])?;
        let status = cargo::command(&["build", "--release", "--workspace", "--bins"])?.status();
        ensure!(status.context("cannot run cargo")?.success(), "the build failed");
        words.push("cluster");
    }
    words.extend(others.into_iter().map(String::as_str));
    let program = cargo::program("sluice-bench", true)?;
    // In place of this process: a signal meant for the benchmark reaches it, and not somebody who is waiting for it.
    let error = Command::new(&program).args(words).env("PATH", system::path()?).exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}
