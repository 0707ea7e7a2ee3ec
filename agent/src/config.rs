//! The command line of `sluice-agent`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use sluice_protocol::{DEFAULT_ADMIN_PORT, DEFAULT_TUNNEL_PORT};

/// Sluice's data plane: steers the connections of this network namespace by port and takes those requests that fit a
/// rule to the developer's machine.
///
/// Exit status: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong usage, 3 the kernel or the privileges do not allow
/// it, 4 the rules file cannot be used at start.
#[derive(Debug, Clone, Parser)]
#[command(name = "sluice-agent", version)]
pub struct Config {
    /// Rules to follow, in YAML or JSON; read again whenever the file changes
    #[arg(long, value_name = "FILE")]
    pub rules: PathBuf,

    /// UDP address on which clients connect
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_TUNNEL_PORT)))]
    pub tunnel: SocketAddr,

    /// TCP address of /healthz, /readyz, /metrics and /status
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, DEFAULT_ADMIN_PORT)))]
    pub admin: SocketAddr,

    /// Key of this agent, made if missing; without it a new key is made at every start
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Let the kernel program report each decision into the log
    #[arg(long)]
    pub kernel_log: bool,

    /// How long connections may go on after a stop was asked for, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub drain: Duration,

    /// What to log, such as `info` or `sluice_agent=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How to log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Shape of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text.parse().map_err(|_| "a whole number of seconds".to_owned())?;
    Ok(Duration::from_secs(seconds.into()))
}
