//! `cargo xtask bench`: builds everything optimised and becomes the benchmark.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Result, anyhow, ensure};

use crate::{cargo, system};

/// What the benchmark needs besides what every network of namespaces does.
const TOOLS: &[(&str, &str)] = &[("strace", "strace")];

/// Arguments of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Passed on to the benchmark: `--quick`, `--json`, `--case`, `--rounds`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    ensure!(
        system::is_root(),
        "the benchmark makes network namespaces and loads a program into the kernel, which only root may.\n\
         Run it as root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask bench"
    );
    system::provide(system::NETWORK)?;
    system::provide(TOOLS)?;
    cargo::build_programs(true)?;
    let program = cargo::program("sluice-bench", true)?;
    let error = Command::new(&program).args(&args.arguments).env("PATH", system::path()?).exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}
