//! `cargo xtask test`: every ring of tests that can run here, and a word about those that cannot.

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{cargo, cluster, system};

/// Arguments of `cargo xtask test`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Leave out the tests on a real Kubernetes, which takes minutes to build the first time.
    #[arg(long)]
    no_cluster: bool,
    /// Passed on to the test programs.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The rings that run a second time, in which the agents' rules leave the way open: first the agents choose it, which is
/// live insertion for most rules, then all their connections pass through them.
const RINGS: [&str; 10] = [
    "--test",
    "net-deciding",
    "--test",
    "net-http2",
    "--test",
    "net-odd",
    "--test",
    "net-taking",
    "--test",
    "net-breaking",
];
/// What starts agents in the second run.
const WAY: (&str, &str) = ("SLUICE_STEERING", "lookup");
/// Tests of these rings that look at what only `lookup` does, left out of the first run. With their modules: other tests of
/// the workspace, which that run has too, have names that begin like these.
const LOOKUP_ONLY: [&str; 8] = [
    // They count the agent's own connections, or what it passed on as bytes, and with insertion it has none of them.
    "connections::b13_requests_that_are_not_taken_open_no_connections",
    "memory::ten_thousand_idle_connections_take_little_memory",
    "strict::answers::b05_answers_in_doubt_lose_nothing",
    // It waits until the agent has the greeting that the kernel keeps back with insertion.
    "h2c::b08_a_server_may_greet_before_its_caller",
    // Two tests: nghttpx defers `accept`, and the first connections tell, which the app answers with insertion.
    "::b08_an_upgraded_connection_is_decided_request_by_request",
    // Connections from before are served with insertion.
    "before::a12_connections_from_before",
    // A request that its caller resets at once is not joined any more.
    "ends::a13_reset",
    // The programs stay attached for as long as connections depend on them.
    "rules_change::c08_connections_of_every_phase_go_on",
];

/// Runs the command.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    let privileged = system::is_root();
    let given = env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    if privileged {
        system::provide(system::NETWORK)?;
        system::provide(system::PEERS)?;
        system::provide(system::REGISTRY)?;
        system::provide(&[("strip", "binutils")])?;
    }
    let without_cluster = cluster::obstacle(privileged, given).filter(|_| !args.no_cluster);
    let on_cluster = !args.no_cluster && without_cluster.is_none();
    if on_cluster && !given {
        cluster::provide()?;
    }
    // The tests start these programs, which `cargo test` alone would not build.
    cargo::build_for_tests()?;
    // `--include-ignored` is not for examples in documentation: there `ignore` means what it says.
    let current = crate::manifests::is_current()?;
    let programs = cargo_test(args, &["--lib", "--bins", "--tests"], privileged, None)?;
    let looked_up = privileged.then(|| cargo_test(args, &RINGS, true, Some(WAY))).transpose()?;
    let examples = cargo_test(args, &["--doc"], false, None)?;
    let on_cluster = on_cluster.then(|| test_on_cluster(args, given)).transpose()?;
    println!();
    println!("manifests are what the code says: {}", ran(current));
    println!("unit tests in each crate: {}", ran(programs));
    println!("examples in the documentation: {}", ran(examples));
    if let Some(looked_up) = looked_up {
        println!("tests on real kernel networking (tests/net and others that need root): {}", ran(programs));
        println!("the same without live insertion: {}", ran(looked_up));
    } else {
        println!(
            "tests on real kernel networking (counted as ignored above): SKIPPED, they need root: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask test"
        );
    }
    match on_cluster {
        Some(well) => println!("tests on a real Kubernetes (tests/k8s): {}", ran(well)),
        None => {
            let why = without_cluster.unwrap_or_else(|| "by --no-cluster".to_owned());
            println!("tests on a real Kubernetes (tests/k8s): SKIPPED, {why}");
        }
    }
    let all = [Some(current), Some(programs), looked_up, Some(examples), on_cluster];
    Ok(if all.contains(&Some(false)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds Kubernetes, if it is not there yet and nobody has given a cluster, and runs the ring that needs it.
fn test_on_cluster(args: &TestArgs, given: bool) -> Result<bool> {
    let mut started = None;
    if !given {
        if let Err(error) = cluster::prepare() {
            eprintln!("error: {error:#}");
            return Ok(false);
        }
        started = cluster::down_afterwards()?;
    }
    let well = cargo_test(args, &["--test", "cluster"], true, None)?;
    if let Some(take_down) = started {
        take_down()?;
    }
    Ok(well)
}

/// `way`: what the agents are started with; without it they choose, and the tests that only look at the other way are left
/// out.
fn cargo_test(args: &TestArgs, targets: &[&str], include_ignored: bool, way: Option<(&str, &str)>) -> Result<bool> {
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
    match way {
        Some((name, value)) => _ = command.env(name, value),
        None => LOOKUP_ONLY.iter().for_each(|test| _ = command.env_remove(WAY.0).args(["--skip", test])),
    }
    Ok(command.status().context("cannot run cargo")?.success())
}

fn ran(well: bool) -> &'static str {
    if well { "ok" } else { "FAILED" }
}
