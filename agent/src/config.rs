//! The command line of `sluice-agent`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use sluice_api::contract::Env;
use sluice_protocol::{DEFAULT_ADMIN_PORT, DEFAULT_TUNNEL_PORT};

use crate::control::Settings;

/// Sluice's data plane: steers the connections of this network namespace by port and takes those requests that fit a
/// rule to the developer's machine.
///
/// Exit status: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong usage, 3 the kernel or the privileges do not allow
/// it, 4 the rules file cannot be used at start, 128 + N the worker of a supervised agent is ended by signal N whenever it is
/// started.
#[derive(Debug, Clone, Parser)]
#[command(name = "sluice-agent", version)]
pub struct Config {
    /// Rules to follow, in YAML or JSON; read again whenever the file changes
    #[arg(long, value_name = "FILE", required_unless_present = "controller")]
    pub rules: Option<PathBuf>,

    /// Controller to get the rules from where there is no --rules; this and the next five are set in a pod by injection
    #[arg(long, value_name = "URL", env = Env::Controller.name(),
        requires_all = ["controller_ca", "token_file", "pod_uid"])]
    pub controller: Option<String>,

    /// Certificates in PEM of the authorities that may have issued the controller's
    #[arg(long, value_name = "PEM", env = Env::ControllerCa.name(), hide_env_values = true)]
    pub controller_ca: Option<String>,

    /// File with the token to show to the controller; read again for each connection
    #[arg(long, value_name = "FILE", env = Env::TokenFile.name())]
    pub token_file: Option<PathBuf>,

    /// Uid of the pod
    #[arg(long, value_name = "UID", env = Env::PodUid.name())]
    pub pod_uid: Option<String>,

    /// The node's addresses, separated by commas: connections from these, and from the default gateways, are the kubelet's
    /// probes and never taken. Only with --controller; a rules file has a list of its own
    #[arg(long, value_name = "ADDRESSES", env = Env::HostIps.name(), value_parser = addresses, default_value = "")]
    pub host_ips: Addresses,

    /// UDP address on which clients connect
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_TUNNEL_PORT)))]
    pub tunnel: SocketAddr,

    /// TCP address of /healthz, /readyz, /metrics and /status
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, DEFAULT_ADMIN_PORT)))]
    pub admin: SocketAddr,

    /// Key of this agent, made if missing; without it a new key is made at every start
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Run no agent, but wait until the one that runs here has rules, or for so many seconds; ends with 0 either way.
    /// Injection has it done before the containers behind the agent are started
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub await_rules: Option<Duration>,

    /// How ports are intercepted whose rules leave it open. Which way each port has, and why, is in /status
    #[arg(long, value_name = "WAY", default_value = "auto", env = "SLUICE_STEERING")]
    pub steering: Steering,

    /// Run as two processes: a parent that keeps what connections depend on, and the agent proper, which is started again
    /// when it dies; so it is in a pod
    #[arg(long)]
    pub supervised: bool,

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

/// How the requests to a port come to the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Steering {
    /// Insertion where rules and kernel allow it, lookup elsewhere.
    #[default]
    Auto,
    /// The same: callers talk to the app, and the agent joins a connection when a request may fit a rule.
    Insertion,
    /// All connections to the port pass through the agent.
    Lookup,
}

/// Shape of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// A list of addresses, as Kubernetes writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<IpAddr>);

// === impl Config ===

impl Config {
    /// The controller to follow, where there is no rules file.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        if self.rules.is_some() {
            return None;
        }
        Some(Settings {
            controller: self.controller.clone()?,
            authorities: self.controller_ca.clone()?,
            token_file: self.token_file.clone()?,
            uid: self.pod_uid.clone()?,
        })
    }
}

fn addresses(text: &str) -> Result<Addresses, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let parsed = parts.map(|part| part.parse::<IpAddr>().map_err(|_| format!("{part:?} is no IP address")));
    Ok(Addresses(parsed.collect::<Result<_, _>>()?))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text.parse().map_err(|_| "a whole number of seconds".to_owned())?;
    Ok(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_from_a_file_or_from_a_controller_that_is_fully_known() {
        let parse = |line: &str| Config::try_parse_from(line.split(' '));
        let whole = "a --controller https://c:1 --controller-ca x --token-file t --pod-uid u";
        assert!(parse("a --rules f").unwrap().settings().is_none());
        assert!(parse(&format!("{whole} --rules f")).unwrap().settings().is_none());
        assert_eq!(parse(whole).unwrap().settings().unwrap().uid, "u");
        for part in [" --controller-ca x", " --token-file t", " --pod-uid u", " --controller https://c:1"] {
            assert_eq!(parse(&whole.replace(part, "")).unwrap_err().exit_code(), 2, "without {part}");
        }
    }

    #[test]
    fn the_agent_chooses_the_way_unless_it_is_told() {
        let parse = |line: &str| Config::try_parse_from(line.split(' ')).map(|config| config.steering);
        assert_eq!(parse("a --rules f --steering lookup").unwrap(), Steering::Lookup);
        assert_eq!(parse("a --rules f --steering tc").unwrap_err().exit_code(), 2);
        if std::env::var_os("SLUICE_STEERING").is_none() {
            assert_eq!(parse("a --rules f").unwrap(), Steering::Auto);
        }
    }

    #[test]
    fn addresses_are_written_as_kubernetes_writes_them() {
        assert_eq!(addresses(""), Ok(Addresses::default()));
        let both = Addresses(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(addresses("10.0.0.1,fd00::1"), Ok(both));
        assert!(addresses("10.0.0").unwrap_err().contains("10.0.0"));
    }
}
