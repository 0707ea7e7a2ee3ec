//! `cargo xtask intercept …` and `cargo xtask status`: `sluice` from this checkout, with the same arguments.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::cargo;

/// What is passed on.
#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// As for `sluice`; `--help` shows them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds `sluice` and becomes `sluice SUBCOMMAND …`.
pub(crate) fn run(subcommand: &str, arguments: &Arguments) -> Result<ExitCode> {
    let status = cargo::command(&["build", "--quiet", "-p", "sluice", "--bin", "sluice"])?.status();
    ensure!(status.context("cannot run cargo")?.success(), "the build failed");
    let program = cargo::program("sluice", false)?;
    // In place of this process: Ctrl-C reaches it, and nobody else.
    let error = Command::new(&program).arg(subcommand).args(&arguments.arguments).exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}
