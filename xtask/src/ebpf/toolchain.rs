//! The compiler and the linker for the kernel program, installed when they are missing.
//!
//! Debian's `rustc-web` stands in /usr/bin and leaves rustup's toolchains alone; it brings a ready-made `core` for the
//! kernel's target. `bpf-linker` is built against Debian's LLVM into `target/tools`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

pub(super) const RUSTC: &str = "/usr/bin/rustc";
pub(super) const CARGO: &str = "/usr/bin/cargo";
/// Another version makes other bytes; a new one means a new object in the same commit.
const RUSTC_VERSION: &str = "rustc 1.96.0 ";
const LINKER_VERSION: &str = "0.13.0";
const PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22", "llvm-22-dev"];
/// The target's libraries and LLVM's, which those packages bring.
const LLVM: &str = "/usr/lib/llvm-22";
pub(super) const OBJCOPY: &str = "/usr/lib/llvm-22/bin/llvm-objcopy";

/// Where the tools are.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) linker_folder: PathBuf,
}

/// Finds the tools, installing what is missing.
pub(super) fn ensure(root: &Path) -> Result<Tools> {
    if !has_compiler() {
        install_packages()?;
        ensure!(has_compiler(), "{} are installed, but {RUSTC} has no target bpfel-unknown-none", PACKAGES.join(", "));
    }
    let version = output(Command::new(RUSTC).arg("--version"))?;
    ensure!(
        version.starts_with(RUSTC_VERSION),
        "the object is built with {}, but {RUSTC} is {}: its bytes would differ. Install that version, or change \
         RUSTC_VERSION in xtask/src/ebpf/toolchain.rs and commit the object that the new one makes",
        RUSTC_VERSION.trim(),
        version.trim()
    );

    let linker_folder = root.join("target/tools/bin");
    if !has_linker(&linker_folder) {
        install_linker(root)?;
        ensure!(has_linker(&linker_folder), "bpf-linker {LINKER_VERSION} is installed, but does not run");
    }
    Ok(Tools { linker_folder })
}

fn has_compiler() -> bool {
    let libraries = output(Command::new(RUSTC).args(["--print", "target-libdir", "--target", "bpfel-unknown-none"]));
    libraries.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
        && Path::new(CARGO).exists()
        && Path::new(LLVM).join("lib/libLLVM.so").exists()
        && Path::new(OBJCOPY).exists()
}

fn has_linker(folder: &Path) -> bool {
    let version = output(Command::new(folder.join("bpf-linker")).arg("--version"));
    version.is_ok_and(|version| version.split_whitespace().any(|word| word == LINKER_VERSION))
}

fn install_packages() -> Result<()> {
    let packages = PACKAGES.join(" ");
    let by_hand = format!("apt-get update && apt-get install {packages}");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "compiling the kernel program needs Debian's packages {packages}, and this is not a Debian machine. \
             Nothing else needs them: the compiled program is committed. To change it, use a Debian container"
        );
    }
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("compiling the kernel program needs the packages {packages}. As root, run: {by_hand}");
    }
    eprintln!("installing {packages} (once, about a minute)");
    for arguments in
        [&["update", "-q"][..], &[&["install", "-q", "-y", "--no-install-recommends"][..], &PACKAGES].concat()]
    {
        let status = Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
        ensure!(status.context("cannot run apt-get")?.success(), "apt-get failed; to see why, run: {by_hand}");
    }
    Ok(())
}

fn install_linker(root: &Path) -> Result<()> {
    eprintln!("building bpf-linker {LINKER_VERSION} into target/tools (once, about a minute)");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["install", "bpf-linker", "--quiet", "--locked", "--force", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(root.join("target/tools"))
        .arg("--target-dir")
        .arg(root.join("target/tools/build"))
        .env("LLVM_PREFIX", LLVM)
        .env("RUSTFLAGS", format!("-L {LLVM}/lib"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "bpf-linker {LINKER_VERSION} cannot be built ({status})");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no text"))
}
