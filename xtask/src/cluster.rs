//! `cargo xtask cluster`: installs what a real Kubernetes on this machine takes, and becomes `sluice-cluster`.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{cargo, system};

/// What `up` needs besides Go; the CNI plugins are no programs on PATH, one of them stands for all.
const TOOLS: &[system::Tool] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("../lib/cni/ptp", "containernetworking-plugins"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];

/// The oldest Go 1 that builds this Kubernetes.
const GO: u32 = 26;

/// Arguments of `cargo xtask cluster`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Start it and wait until it is ready; builds Kubernetes first, once.
    Up,
    /// Take it down; nothing is left, also of one that was killed.
    Down,
    /// Say what runs.
    Status,
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig {
        /// Print its content instead.
        #[arg(long)]
        content: bool,
    },
    /// Make an image known to its node: a file of `cargo xtask image`.
    Load {
        /// The file.
        #[arg(value_name = "FILE.tar")]
        file: std::path::PathBuf,
    },
    /// Run a shell, or a command, in the cluster's network, with KUBECONFIG set and kubectl on PATH.
    Shell {
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// Runs the command.
pub(crate) fn run(args: ClusterArgs) -> Result<ExitCode> {
    if matches!(args.action, Action::Up) {
        provide_unless_given()?;
    }
    let status = cargo::command(&["build", "--quiet", "-p", "sluice-tests", "--bins"])?.status();
    ensure!(status.context("cannot run cargo")?.success(), "the build failed");
    let words = match args.action {
        Action::Up => vec!["up".to_owned()],
        Action::Down => vec!["down".to_owned()],
        Action::Status => vec!["status".to_owned()],
        Action::Kubeconfig { content: false } => vec!["kubeconfig".to_owned()],
        Action::Kubeconfig { content: true } => vec!["kubeconfig".to_owned(), "--content".to_owned()],
        Action::Load { file } => vec!["load".to_owned(), file.display().to_string()],
        Action::Shell { command } => ["shell", "--"].map(str::to_owned).into_iter().chain(command).collect(),
    };
    let program = cargo::program("sluice-cluster", false)?;
    let error = Command::new(&program).args(words).env("PATH", system::path()?).exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}

/// Installs what is missing of what a cluster takes, unless `KUBECONFIG` names one.
pub(crate) fn provide_unless_given() -> Result<()> {
    if env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty()) {
        return Ok(());
    }
    ensure!(cfg!(target_os = "linux"), "a cluster of one's own runs on Linux; elsewhere, set KUBECONFIG");
    provide()
}

/// Installs what is missing of what a cluster takes.
pub(crate) fn provide() -> Result<()> {
    ensure!(
        system::is_root(),
        "a cluster of one's own needs root (containers, network namespaces).\n\
         Run it as root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask cluster up\n\
         or set KUBECONFIG to use another one"
    );
    system::provide(TOOLS)
}

/// Why there can be no tests on a cluster here; nothing if there can.
pub(crate) fn obstacle(privileged: bool, given: bool) -> Option<String> {
    if !privileged {
        return Some("they need root".to_owned());
    }
    // There may be an older one, which compiles what the other tests want of Go.
    let version = Command::new("go").arg("version").output().ok();
    let version = version.and_then(|output| minor(&String::from_utf8_lossy(&output.stdout)));
    let go = version.is_some_and(|version| version >= GO);
    (!given && !go).then(|| "they need Go 1.26 or newer to build Kubernetes with, or KUBECONFIG".to_owned())
}

/// Which Go 1 it is that says this about itself.
fn minor(said: &str) -> Option<u32> {
    let numbers = said.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    numbers.split(['.', 'r', 'b', '-']).next()?.parse().ok()
}

/// Builds Kubernetes, if it has not been built yet. The tests' programs must be there.
pub(crate) fn prepare() -> Result<()> {
    let mut command = Command::new(cargo::program("sluice-cluster", false)?);
    let status = command.arg("build").env("PATH", system::path()?).status().context("cannot run sluice-cluster")?;
    ensure!(status.success(), "Kubernetes cannot be built");
    Ok(())
}

/// What takes the cluster down that tests are about to start; nothing if one is up already.
pub(crate) fn down_afterwards() -> Result<Option<impl FnOnce() -> Result<()>>> {
    let program = cargo::program("sluice-cluster", false)?;
    let status = Command::new(&program).arg("status").stdout(Stdio::null()).status();
    if status.context("cannot run sluice-cluster")?.success() {
        return Ok(None);
    }
    Ok(Some(move || {
        let status = Command::new(&program).arg("down").status().context("cannot run sluice-cluster")?;
        ensure!(status.success(), "the tests' cluster cannot be taken down");
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_version_is_understood() {
        assert_eq!(minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(minor("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(minor("go version go1.19 linux/amd64\n"), Some(19));
        assert_eq!(minor(""), None);
    }
}
