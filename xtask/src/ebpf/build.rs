//! One build of the object, the same bytes wherever the checkout, the target folder and cargo's home are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::toolchain::{CARGO, OBJCOPY, RUSTC, Tools};

const PACKAGE: &str = "sluice-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// Compiles one binary of the package and returns the object. `typed`: with the description of its types, which the kernel
/// needs to find the locks in its maps.
pub(super) fn compile(root: &Path, tools: &Tools, binary: &str, typed: bool) -> Result<Vec<u8>> {
    let target_dir = root.join("target/ebpf");
    let status = Command::new(CARGO)
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--release", "--package", PACKAGE, "--bin", binary, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        // What the caller's own builds are set to must not reach this one.
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env("PATH", path_with(&tools.linker_folder)?)
        .env("RUSTC", RUSTC)
        // aya-ebpf uses one unstable feature of the compiler for this target.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, typed)?.join("\x1f"))
        // Spelled out, so that the workspace's own release profile can change without changing the object.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", if typed { "2" } else { "0" })
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .with_context(|| format!("cannot run {CARGO}"))?;
    ensure!(status.success(), "the kernel program does not compile ({status})");

    let object = target_dir.join(TARGET).join("release").join(binary);
    if typed {
        // The types' description was made from it, and is all that the kernel wants.
        let status = Command::new(OBJCOPY).arg("--strip-debug").arg(&object).status();
        let status = status.with_context(|| format!("cannot run {OBJCOPY}"))?;
        ensure!(status.success(), "{OBJCOPY} fails on {} ({status})", object.display());
    }
    let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let debug = b".debug_";
    ensure!(!bytes.windows(debug.len()).any(|name| name == debug), "the object holds debug information");
    Ok(bytes)
}

/// Paths of this machine must not reach the object.
fn flags(root: &Path, typed: bool) -> Result<Vec<String>> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => env::home_dir().context("neither CARGO_HOME nor HOME is set")?.join(".cargo"),
    };
    let mut flags = vec![
        "-Clinker=bpf-linker".to_owned(),
        format!("--remap-path-prefix={}=/sluice", root.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ];
    if typed {
        flags.push("-Clink-arg=--btf".to_owned());
        // Every kernel that has what its programs need knows the instructions with 32 bits as well (Linux 5.1).
        flags.push("-Ctarget-cpu=v3".to_owned());
        // Or zeros are written byte by byte, by a call of a function.
        flags.push("-Clink-arg=--disable-expand-memcpy-in-order".to_owned());
    }
    Ok(flags)
}

fn path_with(first: &Path) -> Result<std::ffi::OsString> {
    let rest = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(first.to_owned()).chain(env::split_paths(&rest))).context("PATH cannot be extended")
}
