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

/// The committed object, from the root of the workspace.
const OBJECT: &str = "ebpf/sluice.bpf.o";

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
    let compiled = build::compile(root, &tools)?;
    let committed = root.join(OBJECT);
    let held = fs::read(&committed).unwrap_or_default();

    if held == compiled {
        println!("{OBJECT} is what its source compiles to ({} bytes)", compiled.len());
    } else if args.check {
        bail!(
            "{OBJECT} ({} bytes) is not what its source compiles to ({} bytes): run `cargo xtask ebpf` and commit \
             the result",
            held.len(),
            compiled.len()
        );
    } else {
        fs::write(&committed, &compiled).with_context(|| format!("cannot write {}", committed.display()))?;
        println!("{OBJECT} written ({} bytes): commit it together with its source", compiled.len());
    }
    Ok(())
}
