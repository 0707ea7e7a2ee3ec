//! `sluice-bench`: measures what Sluice costs, and leaves nothing behind, however it ends.

#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use sluice_tests::{
    Lab,
    bench::{Case, app, cluster, report::Document, run},
    signals::{Interrupted, interrupted},
};

/// Measures what Sluice costs: direct, passed through and intercepted, in turn, between namespaces of this machine
#[derive(Clone, Parser)]
#[command(name = "sluice-bench")]
struct Arguments {
    /// Fewer and shorter rounds: within a minute
    #[arg(long)]
    quick: bool,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Only this case; may be given several times
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<Case>,
    /// How many rounds
    #[arg(long)]
    rounds: Option<usize>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What else this is.
#[derive(Clone, Subcommand)]
enum Role {
    /// Measures on a real Kubernetes instead: one on this machine, or the one that KUBECONFIG names
    Cluster(ClusterArguments),
    /// The app, which the benchmark starts inside its hosts
    #[command(hide = true)]
    App {
        /// How it signs its answers
        signed: String,
    },
}

#[derive(Clone, Copy, clap::Args)]
struct ClusterArguments {
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// How often each command is measured
    #[arg(long)]
    rounds: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.role {
        Some(Role::App { signed }) => app::run(signed).map(|()| ExitCode::SUCCESS),
        Some(Role::Cluster(arguments)) => return on_cluster(*arguments),
        None => measure(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sluice-bench: {error:#}");
        if arguments.json && arguments.role.is_none() {
            print(&Document { error: Some(format!("{error:#}")), ..Document::default() });
        }
        ExitCode::FAILURE
    })
}

fn warn_unless_optimised() {
    if cfg!(debug_assertions) {
        eprintln!("sluice-bench: not optimised: these numbers mean nothing (cargo xtask bench)");
    }
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces, which only root may");
    warn_unless_optimised();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        // Before anything is made: from here on no signal can end this without the lab being taken down.
        let interrupted = interrupted()?;
        let lab = Lab::new("bench")?;
        let options = run::Options { quick: arguments.quick, cases: arguments.cases.clone(), rounds: arguments.rounds };
        let ended = tokio::select! {
            biased;
            // Not resumed: all that was begun is taken down with the lab.
            signal = interrupted => Err(signal),
            document = run::run(&lab, &options, |what| eprintln!("… {what}")) => Ok(document),
        };
        let outputs = if matches!(ended, Ok(Err(_))) { lab.outputs() } else { String::new() };
        let down = lab.finish();
        eprint!("{outputs}");
        match ended {
            Ok(document) => {
                let mut document = document?;
                down?;
                document.judge();
                if arguments.json {
                    print(&document);
                } else {
                    let _ = write!(std::io::stdout(), "{}", document.table());
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(Interrupted { name, exit_code }) => {
                down?;
                eprintln!("sluice-bench: stopped by {name}");
                if arguments.json {
                    print(&Document { error: Some(format!("stopped by {name}")), ..Document::default() });
                }
                Ok(ExitCode::from(exit_code))
            }
        }
    })
}

/// The same on a cluster.
fn on_cluster(arguments: ClusterArguments) -> ExitCode {
    warn_unless_optimised();
    let (document, exit_code) = match measure_cluster(arguments) {
        Ok(Ok(document)) => (document, ExitCode::SUCCESS),
        Ok(Err(Interrupted { name, exit_code })) => {
            let error = Some(format!("stopped by {name}"));
            (cluster::Document { error, ..cluster::Document::default() }, ExitCode::from(exit_code))
        }
        Err(error) => {
            let error = Some(format!("{error:#}"));
            (cluster::Document { error, ..cluster::Document::default() }, ExitCode::FAILURE)
        }
    };
    if let Some(error) = &document.error {
        eprintln!("sluice-bench: {error}");
    }
    if arguments.json {
        print(&document);
    } else if document.error.is_none() {
        let _ = write!(std::io::stdout(), "{}", document.table());
    }
    exit_code
}

fn measure_cluster(arguments: ClusterArguments) -> Result<Result<cluster::Document, Interrupted>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        // Before anything is made: from here on no signal can end this without all of it being taken away.
        let interrupted = interrupted()?;
        let mut bench = cluster::ClusterBench::default();
        let options = cluster::Options { rounds: arguments.rounds };
        let ended = tokio::select! {
            biased;
            // Not resumed: all that was begun is taken away.
            signal = interrupted => Ok(Err(signal)),
            document = Box::pin(bench.measure(options, |what| eprintln!("… {what}"))) => document.map(Ok),
        };
        eprintln!("… taking away what was not there before");
        match (ended, Box::pin(bench.take_down()).await) {
            (Err(error), Err(left)) => Err(error.context(format!("besides, {left:#}"))),
            (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
            (Ok(Err(signal)), Ok(())) => Ok(Err(signal)),
            (Ok(Ok(mut document)), Ok(())) => {
                document.judge();
                Ok(Ok(document))
            }
        }
    })
}

fn print(document: &impl serde::Serialize) {
    if let Ok(text) = serde_json::to_string(document) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
