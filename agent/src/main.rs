//! The command `sluice-agent`: see `sluice-agent --help`.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use sluice_agent::{
    admin,
    app::{self, StartError},
    config::{Config, LogFormat},
    kernel::LoadError,
    supervise,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    if let Err(error) = start_log(&config) {
        eprintln!("sluice-agent: {error:#}");
        return ExitCode::from(2);
    }
    let supervisor = match supervise::supervisor() {
        Ok(None) if config.supervised && config.await_rules.is_none() => {
            return supervise::run().unwrap_or_else(|error| {
                eprintln!("sluice-agent: {error:#}");
                ExitCode::FAILURE
            });
        }
        Ok(supervisor) => supervisor,
        Err(error) => {
            eprintln!("sluice-agent: the parent process cannot be reached: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluice-agent: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(limit) = config.await_rules {
        let has_rules = runtime.block_on(admin::await_rules(config.admin, limit));
        if !has_rules {
            eprintln!("sluice-agent: no rules within {} s; nobody waits for them any longer", limit.as_secs());
        }
        return ExitCode::SUCCESS;
    }
    match runtime.block_on(app::run(config, supervisor)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-agent: {error:#}");
            match error.downcast_ref() {
                Some(StartError::Kernel(LoadError::Listen { .. } | LoadError::Log(_))) | None => ExitCode::FAILURE,
                Some(StartError::Kernel(_)) => ExitCode::from(3),
                Some(StartError::Rules(_)) => ExitCode::from(4),
            }
        }
    }
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| anyhow::anyhow!("--log {:?} cannot be used: {error}", config.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
