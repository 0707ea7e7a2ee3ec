//! `sluice-soak`: a mixed load for an hour, while the agent's worker is killed once a minute. Leaves nothing behind,
//! however it ends.

#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;
use sluice_tests::{
    signals::{Interrupted, interrupted},
    soak::{self, Document},
    stage::Stage,
};

/// A mixed load with losses on live insertion, while the agent's worker is killed once a minute; a verdict at the end
#[derive(Clone, Copy, Parser)]
#[command(name = "sluice-soak")]
struct Arguments {
    /// How long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1440))]
    minutes: u32,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (document, exit_code) = match run(arguments) {
        Ok(Ok(document)) => {
            let exit_code = if document.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            (document, exit_code)
        }
        Ok(Err(Interrupted { name, exit_code })) => (stopped(format!("stopped by {name}")), ExitCode::from(exit_code)),
        Err(error) => (stopped(format!("{error:#}")), ExitCode::FAILURE),
    };
    if let Some(error) = &document.error {
        eprintln!("sluice-soak: {error}");
    }
    let text = if arguments.json {
        serde_json::to_string(&document).map(|text| text + "\n").unwrap_or_default()
    } else if document.error.is_none() {
        document.table()
    } else {
        String::new()
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    exit_code
}

fn stopped(error: String) -> Document {
    Document { error: Some(error), ..Document::default() }
}

fn run(arguments: Arguments) -> Result<Result<Document, Interrupted>> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces, which only root may");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        // Before anything is made: from here on no signal can end this without all of it being taken down.
        let interrupted = interrupted()?;
        let stage = Stage::new("soak")?;
        let ended = tokio::select! {
            biased;
            // Not resumed: all that was begun is taken down with the stage.
            signal = interrupted => Ok(Err(signal)),
            document = Box::pin(soak::run(&stage, arguments.minutes, |what| eprintln!("… {what}"))) => document.map(Ok),
        };
        let outputs = if ended.is_err() { stage.lab.outputs() } else { String::new() };
        let down = stage.finish();
        eprint!("{outputs}");
        ended.and_then(|ended| down.map(|()| ended))
    })
}
