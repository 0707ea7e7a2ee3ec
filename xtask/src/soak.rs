//! `cargo xtask soak`: builds everything optimised and becomes the soak.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Result, anyhow, ensure};

use crate::{cargo, system};

/// Arguments of `cargo xtask soak`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// How long; an hour where nothing is said.
    #[arg(long)]
    minutes: Option<u32>,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: SoakArgs) -> Result<ExitCode> {
    ensure!(
        system::is_root(),
        "the soak makes network namespaces and loads programs into the kernel, which only root may.\n\
         Run it as root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask soak"
    );
    system::provide(system::NETWORK)?;
    cargo::build_programs(true)?;
    let program = cargo::program("sluice-soak", true)?;
    let mut command = Command::new(&program);
    command.env("PATH", system::path()?);
    if let Some(minutes) = args.minutes {
        command.arg("--minutes").arg(minutes.to_string());
    }
    if args.json {
        command.arg("--json");
    }
    // In place of this process: a signal meant for the soak reaches it, and not somebody who is waiting for it.
    let error = command.exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}
