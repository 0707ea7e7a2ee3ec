//! What the subcommands do.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use sluice::Config;
use sluice::Identity;
use sluice::Ports;
use sluice::Tunnel;
use sluice::Ways;

use crate::cli;
use crate::cli::Command;
use crate::install;
use crate::intercept;
use crate::key_file;
use crate::log;
use crate::signal;

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Tunnel(options) => tunnel(options),
        Command::Key(options) => {
            let (identity, _) = identity(options.key_file)?;
            println!("{}", identity.hash());
            Ok(ExitCode::SUCCESS)
        }
        Command::Intercept(cli::Intercept::Add(options)) => {
            log::start_intercept(options.verbose);
            block_on(intercept::add::run(&options))
        }
        Command::Intercept(cli::Intercept::List(options)) => quietly(intercept::list::list(&options)),
        Command::Intercept(cli::Intercept::Remove(options)) => quietly(intercept::list::remove(&options)),
        Command::Status(options) => quietly(intercept::list::status(&options)),
        Command::Install(options) => quietly(install::install(&options)),
        Command::Uninstall(options) => quietly(install::uninstall(&options)),
        Command::Completion { shell } => {
            use clap::CommandFactory as _;
            clap_complete::generate(shell, &mut cli::Cli::command(), "sluice", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("sluice {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn tunnel(options: cli::Tunnel) -> anyhow::Result<ExitCode> {
    let ports = match Ports::new(options.ports) {
        Ok(ports) => ports,
        Err(error) => {
            use clap::CommandFactory as _;
            cli::Cli::command().error(clap::error::ErrorKind::ValueValidation, error).exit()
        }
    };
    log::start(options.verbose);
    let (identity, key_file) = identity(options.key.key_file)?;
    tracing::info!("this client's key is {} ({})", identity.hash(), key_file.display());
    let config = Config {
        agent: options.agent,
        agent_key: options.agent_key,
        identity,
        ports,
        to: options.to.unwrap_or_default(),
        ways: Ways::default(),
    };
    block_on(until_stopped(config))
}

fn quietly(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    log::start(false);
    block_on(command)
}

fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    // One thread: it is fast enough for a developer's machine and uses the least memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime: the system has no threads or files left")?;
    let outcome = runtime.block_on(Box::pin(command));
    // A name server that does not answer must not keep a stopped command from ending.
    runtime.shutdown_background();
    outcome
}

async fn until_stopped(config: Config) -> anyhow::Result<ExitCode> {
    let mut tunnel = Tunnel::start(config)?;
    tokio::select! {
        biased;
        stop = signal::stop() => {
            stop.context("cannot wait for signals")?;
            // That another client took over meanwhile changes nothing for somebody who stops.
            let _ = tunnel.stop().await;
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        taken_over = tunnel.ended() => {
            tracing::error!("{taken_over}");
            Ok(ExitCode::from(cli::TAKEN_OVER))
        }
    }
}

fn identity(key_file: Option<PathBuf>) -> anyhow::Result<(Identity, PathBuf)> {
    let path = match key_file {
        Some(path) => path,
        None => key_file::default_path(|name| std::env::var_os(name))
            .context("no folder for the key: set HOME, or give --key-file")?,
    };
    Ok((load(&path)?, path))
}

fn load(path: &Path) -> anyhow::Result<Identity> {
    Ok(Identity::load_or_create(path)?)
}
