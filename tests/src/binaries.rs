//! Where the programs under test are: beside the test that runs, built for the same profile.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// Path of one of the workspace's programs.
pub fn find(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("asking for the running program's path")?;
    // Programs are in target/<profile>, tests one folder below in `deps`.
    let mut folder = this.parent().context("the running program has no folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("the running program has no folder")?;
    }
    let path = folder.join(name);
    if !path.exists() {
        bail!("{} is missing: run `cargo xtask build` first", path.display());
    }
    Ok(path)
}
