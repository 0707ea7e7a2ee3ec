//! `sluice-webhook`: the control plane's program.

#![forbid(unsafe_code)]

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use sluice_webhook::{
    app,
    config::{Config, LogFormat},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start(Config::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("--log is no filter");
    // Colours are for terminals: in a cluster's log they are noise between the words that people look for.
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours);
    match config.log_format {
        LogFormat::Text => builder.with_env_filter(filter?).init(),
        LogFormat::Json => builder.json().with_env_filter(filter?).init(),
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let stop = CancellationToken::new();
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let signalled = stop.clone();
            let signals = tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                signalled.cancel();
            });
            let result = Box::pin(app::run(config, stop)).await;
            signals.abort();
            result
        })
}
