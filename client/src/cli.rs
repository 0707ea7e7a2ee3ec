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
pub(crate) use intercept::Mode;
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
    after_help = "Exit codes: 0 done or stopped, 1 failure, 2 usage, 3 the same tunnel or intercept was started again \
                  elsewhere and goes on there."
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
    use sluice_protocol::rules::Steering;

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
    fn a_full_intercept_is_understood() {
        let line = "sluice intercept add web --workload sts/db --service s --port 1:http --port 2 --header X-User=a=b \
                    --header x-team~=a.* --path-prefix /v1 --method GET -n demo --context c --on-unavailable reject --ttl 2h \
                    --steering insertion \
                    --to host --detach --timeout 1m30s -o json";
        let Command::Intercept(Intercept::Add(add)) =
            parse(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap().command
        else {
            panic!("not `intercept add`")
        };
        let matches = serde_json::to_value(add.conditions.matches()).unwrap();
        assert_eq!(matches["headers"][0], serde_json::json!({"type": "Exact", "name": "x-user", "value": "a=b"}));
        assert_eq!(matches["headers"][1]["type"], "RegularExpression");
        assert_eq!(matches["path"], serde_json::json!({"type": "PathPrefix", "value": "/v1"}));
        assert_eq!(matches["method"], "GET");
        assert_eq!(add.timeout.as_secs(), 90);
        assert_eq!(add.output, Output::Json);
        assert_eq!(Steering::from(add.steering), Steering::Insertion);
        assert!(add.detach && !add.in_background);
        let Command::Intercept(Intercept::Add(add)) = parse("sluice intercept add web -p 80").unwrap().command else {
            panic!("not `intercept add`")
        };
        assert!(add.conditions.matches().is_empty());
        assert_eq!(Steering::from(add.steering), Steering::Auto);
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
            ("sluice intercept add web", "--port <LOCAL[:REMOTE]>"),
            ("sluice intercept add Web -p 80", "a name has lower case letters"),
            ("sluice intercept add web -p 80:90/UDP", "UDP cannot be intercepted yet"),
            ("sluice intercept add web -p 80 --header x", "give NAME=VALUE"),
            ("sluice intercept add web -p 80 --header x~=(", "x~=("),
            ("sluice intercept add web -p 80 --path v1", "v1"),
            ("sluice intercept add web -p 80 --path /v1 --path-prefix /v2", "--path-prefix"),
            ("sluice intercept add web -p 80 --workload job/x", "is no kind that can be intercepted"),
            ("sluice intercept add web -p 80 --ttl 30s", "the shortest time to live is 1m"),
            ("sluice intercept add web -p 80 --steering tc", "--steering <WAY>"),
            ("sluice intercept add web -p 80 --timeout 30", "give a number and a unit"),
            ("sluice intercept list -A -n demo", "--namespace"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(option), "{line}: {error}");
        }
        assert_eq!(parse("sluice --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
    }
}
