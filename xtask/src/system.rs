//! The machine: who runs this, and the tools that Rust does not bring along.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

const APT: &str = "/usr/bin/apt-get";

/// Asked by packages whether they may start a service (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Where administrators' tools are, which an ordinary user's PATH may leave out.
const MORE_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A program, and the package that has it on Debian.
pub(crate) type Tool = (&'static str, &'static str);

/// What a network of namespaces needs.
pub(crate) const NETWORK: &[Tool] =
    &[("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"), ("setpriv", "util-linux"), ("bpftool", "bpftool")];

/// Callers and servers of others that tests use as peers, and what shows the packets between them.
pub(crate) const PEERS: &[Tool] = &[
    ("curl", "curl"),
    ("nghttpd", "nghttp2-server"),
    ("nghttpx", "nghttp2-proxy"),
    ("pg_createcluster", "postgresql"),
    ("psql", "postgresql-client"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("nginx", "nginx"),
    ("node", "nodejs"),
    ("go", "golang-go"),
    ("python3", "python3"),
    ("tcpdump", "tcpdump"),
];

/// What a test pushes images to.
pub(crate) const REGISTRY: &[Tool] = &[("docker-registry", "docker-registry")];

/// What a person needs to try things out inside it.
pub(crate) const BY_HAND: &[Tool] = &[("nsenter", "util-linux"), ("curl", "curl")];

/// Whether this runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

/// Installs the packages of those tools that are missing, or says which they are where that cannot be done.
pub(crate) fn provide(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools, &folders());
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages(&missing);
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    if !Path::new(APT).exists() {
        bail!(
            "missing: {}. Install them with this system's package manager (on Debian the packages are {})",
            names.join(", "),
            packages.join(", ")
        );
    }
    let by_hand = format!("apt-get update && apt-get install {}", packages.join(" "));
    ensure!(is_root(), "missing: {}. As root, run: {by_hand}", names.join(", "));
    eprintln!("installing {} (once)", packages.join(", "));
    let _no_services = NoServices::hold()?;
    for arguments in
        [&["update", "-qq"][..], &[&["install", "-qq", "-y", "--no-install-recommends"][..], &packages].concat()]
    {
        let mut command = Command::new(APT);
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        // What apt prints is no part of what this prints.
        command.stdout(std::io::stderr());
        let status = command.status().context("cannot run apt-get")?;
        ensure!(status.success(), "apt-get failed; to see why, run: {by_hand}");
    }
    Ok(())
}

/// While this is there, packages that bring a service do not start it: tests start what they need themselves.
struct NoServices {
    /// Whether nobody else had said what may start.
    ours: bool,
}

// === impl NoServices ===

impl NoServices {
    fn hold() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")
                .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot write {POLICY}"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} is left behind, and keeps packages from starting their services: {error}");
        }
    }
}

/// A PATH on which the tools are found.
pub(crate) fn path() -> Result<std::ffi::OsString> {
    env::join_paths(folders()).context("PATH cannot be extended")
}

fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    for more in MORE_FOLDERS.map(PathBuf::from) {
        if !folders.contains(&more) {
            folders.push(more);
        }
    }
    folders
}

fn missing(tools: &[Tool], folders: &[PathBuf]) -> Vec<Tool> {
    tools.iter().filter(|(program, _)| !folders.iter().any(|folder| folder.join(program).exists())).copied().collect()
}

fn packages(missing: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_once() {
        let none = missing(&[("sh", "dash")], &folders());
        assert!(none.is_empty(), "{none:?}");
        let all = missing(NETWORK, &[PathBuf::from("/nowhere")]);
        assert_eq!(all, NETWORK);
        assert_eq!(packages(&all), ["bpftool", "iproute2", "nftables", "util-linux"]);
    }
}
