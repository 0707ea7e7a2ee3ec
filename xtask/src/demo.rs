//! `cargo xtask demo`: sets up what the demo needs and becomes the demo.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Result, anyhow, ensure};

use crate::{cargo, system};

/// Arguments of `cargo xtask demo`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Print one JSON document instead of the scenes.
    #[arg(long)]
    json: bool,
    /// On a real Kubernetes: one on this machine, or the one that KUBECONFIG names.
    #[arg(long)]
    cluster: bool,
    /// Keep everything up after the scenes and print commands to try it by hand, until Ctrl-C.
    #[arg(long, conflicts_with = "json")]
    stay: bool,
}

/// Runs the command.
pub(crate) fn run(args: DemoArgs) -> Result<ExitCode> {
    ensure!(cfg!(target_os = "linux"), "the demo runs on Linux: it needs network namespaces and eBPF");
    ensure!(
        system::is_root(),
        "the demo makes network namespaces and loads a program into the kernel, which only root may.\n\
         Run it as root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo\n\
         or build as yourself and run only the demo as root: cargo xtask build && sudo {}",
        cargo::program("sluice-demo", false)?.display()
    );
    system::provide(system::NETWORK)?;
    if args.stay {
        system::provide(system::BY_HAND)?;
    }
    if args.cluster {
        crate::cluster::provide_unless_given()?;
        system::provide(&[("strip", "binutils")])?;
        cargo::build_for_tests()?;
    } else {
        cargo::build_programs(false)?;
    }
    let program = cargo::program("sluice-demo", false)?;
    let mut command = Command::new(&program);
    command.env("PATH", system::path()?);
    for (given, flag) in [(args.json, "--json"), (args.stay, "--stay"), (args.cluster, "--cluster")] {
        if given {
            command.arg(flag);
        }
    }
    // In place of this process: a signal meant for the demo reaches it, and not somebody who is waiting for it.
    let error = command.exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}
