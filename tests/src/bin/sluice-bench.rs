//! `sluice-bench`: measures what Sluice costs, and leaves nothing behind, however it ends.

#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use sluice_tests::{
    Lab,
    bench::{Case, app, report::Document, run},
};
use tokio::signal::unix::{SignalKind, signal};

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

/// What the benchmark starts itself as, inside its hosts.
#[derive(Clone, Subcommand)]
#[command(hide = true)]
enum Role {
    /// The app
    App {
        /// How it signs its answers
        signed: String,
    },
}

/// What has ended the benchmark early. By convention the exit status is 128 and the signal's number.
struct Interrupted {
    name: &'static str,
    exit_code: u8,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.role {
        Some(Role::App { signed }) => app::run(signed).map(|()| ExitCode::SUCCESS),
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

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces, which only root may");
    if cfg!(debug_assertions) {
        eprintln!("sluice-bench: not optimised: these numbers mean nothing (cargo xtask bench)");
    }
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

/// Waits for a signal that ends this.
fn interrupted() -> Result<impl Future<Output = Interrupted>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Interrupted { name: "SIGINT", exit_code: 130 },
            _ = terminate.recv() => Interrupted { name: "SIGTERM", exit_code: 143 },
            _ = hangup.recv() => Interrupted { name: "SIGHUP", exit_code: 129 },
        }
    })
}

fn print(document: &Document) {
    if let Ok(text) = serde_json::to_string(document) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
