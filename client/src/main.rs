//! The command `sluice`: reads the command line, shows the library's log, turns signals and outcomes into exit codes.
//!
//! Exit codes: 0 done or stopped, 1 failure, 2 usage, 3 another client with the same key took over.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;

mod cli;
mod cluster;
mod install;
mod intercept;
mod key_file;
mod log;
mod run;
mod signal;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match run::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
