//! `cargo xtask ebpf`: compiles the program that runs in the kernel, or checks that the committed object is what its
//! source compiles to.
//!
//! The object is committed beside its source so that everything else builds with a stable compiler and nothing
//! installed. Its bytes depend on the compiler and the linker, so this names one of each: Debian's, which can be had on
//! any Debian machine without a nightly toolchain.

mod build;
mod toolchain;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

/// A binary of the package, its committed object from the root of the workspace, and whether that describes its types.
const OBJECTS: [(&str, &str, bool); 2] =
    [("sluice-ebpf", "ebpf/sluice.bpf.o", false), ("sluice-insertion", "ebpf/insertion.bpf.o", true)];

/// Arguments of `cargo xtask ebpf`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    /// Compile to a temporary place and fail if the committed object differs.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(args: EbpfArgs) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let tools = toolchain::ensure(root)?;
    for (binary, object, typed) in OBJECTS {
        renew(root, object, &build::compile(root, &tools, binary, typed)?, args.check)?;
    }
    Ok(())
}

/// Writes the object, or fails where it differs.
fn renew(root: &Path, object: &str, compiled: &[u8], check: bool) -> Result<()> {
    let committed = root.join(object);
    let held = fs::read(&committed).unwrap_or_default();
    if held == compiled {
        println!("{object} is what its source compiles to ({} bytes)", compiled.len());
    } else if check {
        bail!(
            "{object} ({} bytes) is not what its source compiles to ({} bytes): run `cargo xtask ebpf` and commit \
             the result",
            held.len(),
            compiled.len()
        );
    } else {
        fs::write(&committed, compiled).with_context(|| format!("cannot write {}", committed.display()))?;
        println!("{object} written ({} bytes): commit it together with its source", compiled.len());
    }
    Ok(())
}
