//! `cargo xtask fuzz`: random bytes against the agent's reading of HTTP/1, guided by what they reach.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, system};

/// The fuzzers, by what they look at.
const TARGETS: [&str; 4] = ["requests", "answers", "chunked", "against_hyper"];

/// Instrumented code comes from a nightly compiler only.
const TOOLCHAIN: &str = "nightly";

/// The version that this was tried with.
const CARGO_FUZZ: &str = "0.13.2";

/// Longest input: a head or two with bodies.
const MAX_LEN: usize = 4096;

/// Arguments of `cargo xtask fuzz`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Only this fuzzer.
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs the command.
pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    if system::is_root() {
        system::provide(&[("c++", "g++")])?;
    }
    let tool = provide()?;
    let targets = args.target.as_deref().map_or(TARGETS.to_vec(), |target| vec![target]);
    let mut failed = Vec::new();
    for target in targets {
        eprintln!("== {target}, for {} s", args.seconds);
        if !fuzz(&tool, target, args.seconds)? {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("FAILED: {}; the input is in agent/fuzz/artifacts", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Runs one fuzzer. What it learns goes to `agent/fuzz/corpus`, beside the committed seeds.
fn fuzz(tool: &Path, target: &str, seconds: u64) -> Result<bool> {
    let folder = cargo::root()?.join("agent/fuzz");
    let (learned, seeds) = (folder.join("corpus").join(target), folder.join("seeds").join(target));
    fs::create_dir_all(&learned).with_context(|| format!("cannot make {}", learned.display()))?;
    let mut command = nightly(tool)?;
    // Without a sanitizer: nothing that is run is unsafe, and it would only be slower.
    command.args(["run", "--sanitizer", "none", "--fuzz-dir"]).arg(&folder);
    command.arg("--target-dir").arg(cargo::root()?.join("target/fuzz")).arg(target).args([learned, seeds]);
    command.arg("--").args([format!("-max_total_time={seconds}"), format!("-max_len={MAX_LEN}")]);
    command.args(["-timeout=10", "-print_final_stats=1"]);
    Ok(command.status().context("cannot run cargo-fuzz")?.success())
}

/// The path of `cargo-fuzz`, which is built once if it is not there.
fn provide() -> Result<PathBuf> {
    let listed = Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "--version"]).output();
    let usable = listed.context("cannot run rustup, which fuzzing needs for a nightly toolchain")?.status.success();
    ensure!(usable, "fuzzing needs a nightly toolchain: rustup toolchain install {TOOLCHAIN} --profile minimal");
    let root = cargo::root()?.join("target/tools");
    let tool = root.join("bin/cargo-fuzz");
    if !tool.exists() {
        let mut command = cargo::command(&["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ, "--root"])?;
        let status = command.arg(&root).status().context("cannot run cargo")?;
        ensure!(status.success(), "cargo-fuzz could not be built");
    }
    Ok(tool)
}

/// `program` with the nightly toolchain, also where this was started by the cargo of another one.
fn nightly(program: &Path) -> Result<Command> {
    let mut command = Command::new("rustup");
    command.args(["run", TOOLCHAIN]).arg(program).current_dir(cargo::root()?);
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    Ok(command)
}
