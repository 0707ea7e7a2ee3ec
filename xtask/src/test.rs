//! `cargo xtask test`: every ring of tests that can run here, and a word about those that cannot.

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{cargo, cluster, system};

/// Arguments of `cargo xtask test`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Also the cluster's own tests, on a real Kubernetes; building that takes minutes the first time.
    #[arg(long)]
    cluster: bool,
    /// Passed on to the test programs.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    let privileged = system::is_root();
    let given = env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    if privileged {
        system::provide(system::NETWORK)?;
        system::provide(system::PEERS)?;
        system::provide(system::REGISTRY)?;
        if args.cluster && !given {
            cluster::provide()?;
        }
    }
    // The tests start these programs, which `cargo test` alone would not build.
    cargo::build_for_tests()?;
    let mut started = None;
    if args.cluster && privileged && !given {
        // Before the tests, because it takes minutes the first time and shows how far it is.
        cluster::prepare()?;
        started = cluster::down_afterwards()?;
    }

    // `--include-ignored` is not for examples in documentation: there `ignore` means what it says.
    let programs = cargo_test(args, &["--lib", "--bins", "--tests"], privileged)?;
    let examples = cargo_test(args, &["--doc"], false)?;
    let on_cluster = if args.cluster { Some(cargo_test(args, &["--test", "cluster"], privileged)?) } else { None };

    if let Some(take_down) = started {
        take_down()?;
    }
    println!();
    println!("unit tests in each crate: {}", ran(programs));
    println!("examples in the documentation: {}", ran(examples));
    if privileged {
        println!("tests on real kernel networking (tests/net and others that need root): {}", ran(programs));
    } else {
        println!(
            "tests on real kernel networking (counted as ignored above): SKIPPED, they need root: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask test"
        );
    }
    match on_cluster {
        Some(well) => println!("the cluster's own tests (tests/k8s): {}", ran(well)),
        None => println!("the cluster's own tests (tests/k8s): SKIPPED, ask for them with --cluster"),
    }
    Ok(if programs && examples && on_cluster != Some(false) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo_test(args: &TestArgs, targets: &[&str], include_ignored: bool) -> Result<bool> {
    let mut command = cargo::command(&["test", "--workspace", "--no-fail-fast"])?;
    command.args(targets).args(&args.filter).env("PATH", system::path()?);
    // A failed test says what it has seen; the stack of the error that carried it out of the test adds nothing.
    if env::var_os("RUST_LIB_BACKTRACE").is_none() {
        command.env("RUST_LIB_BACKTRACE", "0");
    }
    command.arg("--").args(&args.arguments);
    if include_ignored {
        command.arg("--include-ignored");
    }
    Ok(command.status().context("cannot run cargo")?.success())
}

fn ran(well: bool) -> &'static str {
    if well { "ok" } else { "FAILED" }
}
