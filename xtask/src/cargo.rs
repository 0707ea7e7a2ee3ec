//! Runs cargo on the workspace, and knows where its products are.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The workspace's folder.
pub(crate) fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")
}

/// The cargo that runs this, on the workspace.
pub(crate) fn command(arguments: &[&str]) -> Result<Command> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root()?);
    Ok(command)
}

/// Builds agent, client, the tests' harness programs, the demo and its services.
pub(crate) fn build_programs(release: bool) -> Result<()> {
    let mut command = command(&["build", "-p", "sluice-agent", "-p", "sluice", "-p", "sluice-tests", "--bins"])?;
    if release {
        command.arg("--release");
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

/// Builds the same and everything else, so that `cargo test --workspace` finds all dependencies built as it wants them:
/// which features a dependency is built with depends on who else is built.
pub(crate) fn build_for_tests() -> Result<()> {
    let status = command(&["build", "--workspace", "--bins"])?.status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

/// The path of a program that [`build_programs`] makes.
pub(crate) fn program(name: &str, release: bool) -> Result<PathBuf> {
    // This program is one of them: wherever the user has put the target folder, it is there.
    let this = env::current_exe().context("cannot find out where xtask itself is")?;
    let target = this.parent().and_then(Path::parent).context("xtask is not in a target folder")?;
    Ok(target.join(if release { "release" } else { "debug" }).join(name))
}
