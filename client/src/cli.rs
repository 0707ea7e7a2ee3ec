//! The command line.
//!
//! Owns what may be typed and what `--help` says. Mistakes end the process here, with code 2.

use std::path::PathBuf;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use sluice::AgentAddress;
use sluice::KeyHash;
use sluice::LocalHost;
use sluice::PortForward;

mod install;
mod intercept;
mod parse;

pub(crate) use install::Install;
pub(crate) use install::Uninstall;
pub(crate) use intercept::Add;
pub(crate) use intercept::Cluster;
pub(crate) use intercept::Intercept;
pub(crate) use intercept::List;
pub(crate) use intercept::Output;
pub(crate) use intercept::Remove;
pub(crate) use intercept::Status;

/// Exit code when another client with the same key took over.
pub(crate) const TAKEN_OVER: u8 = 3;

/// Answer chosen requests to a Kubernetes workload from a process on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 clean stop, 1 failure, 2 usage, 3 another client with the same key took over."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer chosen requests to a workload in the cluster from this machine.
    #[command(subcommand)]
    Intercept(Intercept),
    /// Show the control plane and, for each intercept, every pod with what was counted there.
    Status(Status),
    /// Install Sluice into the cluster, or repair or update what is installed (needs the rights of an administrator).
    Install(Install),
    /// Remove Sluice and all intercepts from the cluster.
    Uninstall(Uninstall),
    /// Connect to an agent and answer what it sends from local ports, until stopped (Ctrl-C).
    Tunnel(Tunnel),
    /// Print the hash of this client's key, for the agent's rules; makes the key if there is none.
    Key(Key),
    /// Print what a shell needs to complete this command's arguments.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

/// Options of `sluice tunnel`.
#[derive(Debug, Args)]
pub(crate) struct Tunnel {
    /// The agent: a name or an address; the port defaults to 17443.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) agent: AgentAddress,

    /// The hash of the agent's key, as the agent prints it: nobody else is talked to.
    #[arg(long, value_name = "sha256:HEX")]
    pub(crate) agent_key: KeyHash,

    /// A local port, and the port of the workload that it answers for if that is another one. May be repeated.
    #[arg(long = "port", value_name = "LOCAL[:REMOTE]", required = true)]
    pub(crate) ports: Vec<PortForward>,

    /// The host whose ports answer [default: 127.0.0.1, or ::1 where nobody listens there].
    #[arg(long, value_name = "HOST")]
    pub(crate) to: Option<LocalHost>,

    #[command(flatten)]
    pub(crate) key: Key,

    /// Show a line for each connection that is relayed or refused.
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

/// Where this client's key is.
#[derive(Debug, Args)]
pub(crate) struct Key {
    /// This client's private key, made if it does not exist [default: sluice/key in the user's configuration folder].
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    const HASH: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";

    fn parse(arguments: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(arguments.replace("HASH", HASH).split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_full_command_line_is_understood() {
        let line = "sluice tunnel --agent pod:5 --agent-key HASH --port 1 --port 2:3 --to host --key-file k -v";
        let Command::Tunnel(tunnel) = parse(line).unwrap().command else { panic!("not `tunnel`") };
        assert_eq!(tunnel.agent.to_string(), "pod:5");
        assert_eq!(tunnel.agent_key.to_string(), HASH);
        assert_eq!(tunnel.ports, ["1:1".parse().unwrap(), "2:3".parse().unwrap()]);
        assert_eq!(tunnel.to, Some("host".parse().unwrap()));
        assert_eq!(tunnel.key.key_file, Some("k".into()));
        assert!(tunnel.verbose);
    }

    #[test]
    fn mistakes_are_usage_errors_that_name_the_option() {
        for (line, option) in [
            ("sluice tunnel --agent-key HASH --port 1", "--agent <HOST[:PORT]>"),
            ("sluice tunnel --agent a --port 1", "--agent-key <sha256:HEX>"),
            ("sluice tunnel --agent a --agent-key HASH", "--port <LOCAL[:REMOTE]>"),
            ("sluice tunnel --agent a --agent-key HASH --port 0", "--port <LOCAL[:REMOTE]>"),
            ("sluice tunnel --agent a --agent-key sha256:xyz --port 1", "--agent-key <sha256:HEX>"),
            ("sluice tunnel --agent a:0 --agent-key HASH --port 1", "--agent <HOST[:PORT]>"),
            ("sluice frobnicate", "frobnicate"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(option), "{line}: {error}");
        }
        assert_eq!(parse("sluice --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
    }
}
