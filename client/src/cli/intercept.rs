//! `sluice intercept …` and `sluice status`: what may be typed.

use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use sluice::LocalHost;
use sluice_protocol::rules;
use sluice_protocol::rules::BaggageMatch;
use sluice_protocol::rules::HeaderMatch;
use sluice_protocol::rules::Match;
use sluice_protocol::rules::Method;
use sluice_protocol::rules::OnUnavailable;
use sluice_protocol::rules::PathMatch;
use sluice_protocol::rules::PathMatchType;

use super::parse;
use crate::intercept::ports::PortAsk;
use crate::intercept::workload::WorkloadAsk;

/// Which cluster, and where in it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Cluster {
    /// The kubeconfig's context [default: its current one].
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,

    /// The namespace [default: the context's].
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// What to do with intercepts.
#[derive(Debug, Subcommand)]
pub(crate) enum Intercept {
    /// Take requests away from a workload and answer them from local ports, until stopped (Ctrl-C).
    Add(Box<Add>),
    /// Show the intercepts of a namespace.
    List(List),
    /// Remove an intercept; its `sluice intercept add` ends.
    Remove(Remove),
}

/// Options of `sluice intercept add`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Add {
    /// The intercept's name; also the workload's, if --workload is not given.
    #[arg(value_parser = parse::name)]
    pub(crate) name: String,

    /// The workload, such as Deployment/web; the kind may be left out where only one has that name.
    #[arg(long, value_name = "[KIND/]NAME")]
    pub(crate) workload: Option<WorkloadAsk>,

    /// The Service whose ports REMOTE is about [default: those that select the workload's pods].
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,

    /// A local port and the workload's: the Service's port, or else the container's, by name or number. May be repeated.
    #[arg(long = "port", short, value_name = "LOCAL[:REMOTE]", required = true)]
    pub(crate) ports: Vec<PortAsk>,

    #[command(flatten)]
    pub(crate) cluster: Cluster,

    /// Whether this client answers what matches, or gets a copy of it while the app answers.
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) mode: Mode,

    /// What happens with what matches while this client cannot take it: the app answers, or nobody does (503).
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub(crate) on_unavailable: Unavailable,

    /// Reset the connections to these ports that are open already, of all callers: they stay with the app otherwise.
    #[arg(long)]
    pub(crate) reset_existing: bool,

    /// Which way the ports are intercepted. insertion: callers keep talking to the app, and the agent joins a connection
    /// only when a request may match; lookup: all connections to the port pass through the agent; auto: insertion where
    /// there is a header condition and the pod's kernel allows it, lookup otherwise.
    #[arg(long, value_name = "WAY", value_enum, default_value_t)]
    pub(crate) steering: Steering,

    /// Remove the intercept by itself after this long, such as 2h or 90m [default: when this command ends].
    #[arg(long, value_name = "DURATION", value_parser = parse::ttl)]
    pub(crate) ttl: Option<kube::core::Duration>,

    /// The host whose ports answer [default: 127.0.0.1, or ::1 where nobody listens there].
    #[arg(long, value_name = "HOST")]
    pub(crate) to: Option<LocalHost>,

    /// Return as soon as the intercept is ready, and go on in the background until `sluice intercept remove`.
    #[arg(long)]
    pub(crate) detach: bool,

    /// How long it may take until every pod is ready.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
    pub(crate) timeout: Duration,

    /// How to print the summary.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Output,

    /// Show a line for each connection that is relayed or refused.
    #[arg(long, short)]
    pub(crate) verbose: bool,

    /// This process is the background part: it reports through its standard output and ends early if its input does.
    #[arg(long, hide = true)]
    pub(crate) in_background: bool,

    // Last, as its heading holds for all that follows.
    #[command(flatten)]
    pub(crate) conditions: Conditions,
}

/// Which HTTP requests; all of them must hold. Without any, all TCP connections.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which HTTP requests (none of these: all TCP connections)")]
pub(crate) struct Conditions {
    /// A header (gRPC: metadata) equals a value, or fits a regular expression. May be repeated: all must hold.
    #[arg(long = "header", value_name = "NAME=VALUE|NAME~=REGEX", value_parser = parse::header)]
    pub(crate) headers: Vec<HeaderMatch>,

    /// A member of the `baggage` header (W3C Baggage) has this value, given as it is meant, not percent-encoded. May be
    /// repeated: all must hold.
    #[arg(long = "baggage", value_name = "NAME=VALUE", value_parser = parse::baggage)]
    pub(crate) baggage: Vec<BaggageMatch>,

    /// The path starts with this, by whole elements: /v1 fits /v1/x and not /v10.
    #[arg(long, value_name = "PATH", group = "a_path", value_parser = parse::path(PathMatchType::PathPrefix))]
    pub(crate) path_prefix: Option<PathMatch>,

    /// The path is this.
    #[arg(long, value_name = "PATH", group = "a_path", value_parser = parse::path(PathMatchType::Exact))]
    pub(crate) path: Option<PathMatch>,

    /// The whole path fits this regular expression.
    #[arg(long, value_name = "REGEX", group = "a_path", value_parser = parse::path(PathMatchType::RegularExpression))]
    pub(crate) path_regex: Option<PathMatch>,

    /// The method, such as GET.
    #[arg(long, value_name = "METHOD", value_parser = parse::method)]
    pub(crate) method: Option<Method>,

    /// Requests of the kubelet's probes may match too: those whose user agent begins with kube-probe/.
    #[arg(long)]
    pub(crate) include_probes: bool,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// This client answers.
    #[default]
    Intercept,
    /// The app answers, and this client gets a copy.
    Wiretap,
}

/// `--on-unavailable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unavailable {
    /// The app answers.
    #[default]
    PassThrough,
    /// HTTP: 503; other TCP: a reset.
    Reject,
}

/// `--steering`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Steering {
    /// Insertion where it works, lookup elsewhere; `sluice status` tells which way each port has, and why.
    #[default]
    Auto,
    /// Callers keep talking to the app, and the agent joins a connection only when a request may match.
    Insertion,
    /// All connections to the port pass through the agent.
    Lookup,
}

/// Options of `sluice intercept list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) cluster: Cluster,

    /// Those of all namespaces.
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,

    /// How to print.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Options of `sluice intercept remove`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Remove {
    /// The intercept's name.
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) cluster: Cluster,
}

/// Options of `sluice status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Status {
    /// Only this intercept.
    pub(crate) name: Option<String>,

    #[command(flatten)]
    pub(crate) list: List,
}

// === impl Conditions ===

impl Conditions {
    /// The same as an Intercept has them.
    pub(crate) fn matches(&self) -> Match {
        let path = [&self.path_prefix, &self.path, &self.path_regex].into_iter().flatten().next();
        Match {
            headers: self.headers.clone(),
            baggage: self.baggage.clone(),
            path: path.cloned(),
            method: self.method.clone(),
        }
    }
}

// === impl Mode ===

impl From<Mode> for rules::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Intercept => Self::Intercept,
            Mode::Wiretap => Self::Wiretap,
        }
    }
}

// === impl Unavailable ===

impl From<Unavailable> for OnUnavailable {
    fn from(unavailable: Unavailable) -> Self {
        match unavailable {
            Unavailable::PassThrough => Self::PassThrough,
            Unavailable::Reject => Self::Reject,
        }
    }
}

// === impl Steering ===

impl From<Steering> for rules::Steering {
    fn from(steering: Steering) -> Self {
        match steering {
            Steering::Auto => Self::Auto,
            Steering::Insertion => Self::Insertion,
            Steering::Lookup => Self::Lookup,
        }
    }
}
