//! `sluice-cluster`: a real Kubernetes on this machine, up, down and looked at. `cargo xtask cluster` becomes this.

#![forbid(unsafe_code)]

use std::{
    env,
    io::{IsTerminal as _, Write as _},
    net::TcpListener,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand};
use sluice_tests::cluster::{self, Cluster, Folder, node, program};
use tokio::signal::unix::{SignalKind, signal};

/// A real Kubernetes on this machine, for tests and for trying
#[derive(Parser)]
#[command(name = "sluice-cluster")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build the program with all of Kubernetes in it, if there is none yet
    Build,
    /// Start the cluster and wait until it is ready
    Up,
    /// Take it down; nothing is left
    Down,
    /// Say what runs
    Status,
    /// Print the path of the administrator's kubeconfig
    Kubeconfig {
        /// Print its content instead
        #[arg(long)]
        content: bool,
    },
    /// Make an image known to the node
    Load {
        /// The file
        file: PathBuf,
    },
    /// Run a shell, or a command, in the node's network, with KUBECONFIG set and kubectl on PATH
    Shell {
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Be the node; `up` starts this in namespaces of its own
    #[command(hide = true)]
    Node {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        program: PathBuf,
        #[arg(long)]
        port: u16,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().action {
        // Without the runtime: the node waits for all its children itself.
        Action::Node { folder, program, port } => be_node(&node::Plan { folder, program, port }),
        action => run(action),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main(flavor = "current_thread")]
async fn run(action: Action) -> Result<ExitCode> {
    let given = cluster::given();
    let folder = Folder::of_checkout()?;
    match (action, given) {
        (Action::Build, None) => println!("{}", program::ensure()?.display()),
        (Action::Up, None) => up(&folder).await?,
        (Action::Down, None) => down(&folder)?,
        (Action::Build | Action::Up | Action::Down, Some(path)) => {
            println!("KUBECONFIG is set: the cluster of {} is used, and left as it is", path.display());
        }
        (Action::Status, _) => return status(&folder).await,
        (Action::Kubeconfig { content }, _) => {
            let cluster = Box::pin(existing(&folder)).await?;
            if content {
                std::io::stdout().write_all(&std::fs::read(cluster.kubeconfig())?)?;
            } else {
                println!("{}", cluster.kubeconfig().display());
            }
        }
        (Action::Load { file }, _) => Box::pin(existing(&folder)).await?.import(&file).await?,
        (Action::Shell { command }, _) => shell(&Box::pin(existing(&folder)).await?, &command)?,
        (Action::Node { .. }, _) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn be_node(plan: &node::Plan) -> Result<ExitCode> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned().context("the socket on standard input")?;
    node::run(plan, TcpListener::from(listener))?;
    Ok(ExitCode::SUCCESS)
}

async fn up(folder: &Folder) -> Result<()> {
    for other in cluster::others(folder) {
        eprintln!("another cluster is up ({}): they do not meet, but each takes about 1 GB", other.path().display());
    }
    program::ensure()?;
    let began = Instant::now();
    let started = tokio::select! {
        biased;
        // Not resumed: what was begun is taken down.
        interrupted = interrupted() => {
            cluster::down(folder)?;
            anyhow::bail!("stopped by {}; nothing is left", interrupted?);
        }
        started = cluster::up(folder) => started?,
    };
    if started {
        println!("Kubernetes {} is up ({:.1} s)", cluster::kubernetes()?, began.elapsed().as_secs_f32());
    } else {
        println!("already up");
    }
    println!("  export KUBECONFIG={}", folder.kubeconfig().display());
    println!("  cargo xtask cluster shell   # kubectl, and pods and Services within reach");
    Ok(())
}

/// Waits for a signal that ends this program. Cancel-safe: a signal that has come stays noted.
async fn interrupted() -> Result<&'static str> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

fn down(folder: &Folder) -> Result<()> {
    let began = Instant::now();
    let found = cluster::down(folder)?;
    if found.is_empty() {
        println!("no cluster was up");
    } else {
        println!("down, and nothing is left ({:.1} s)", began.elapsed().as_secs_f32());
    }
    Ok(())
}

async fn status(folder: &Folder) -> Result<ExitCode> {
    let cluster = match Box::pin(existing(folder)).await {
        Ok(cluster) => cluster,
        Err(error) => {
            println!("{error:#}");
            let traces = cluster::traces(folder)?;
            if !traces.is_empty() {
                println!(
                    "left of one that was killed (`cargo xtask cluster down` removes it):\n  {}",
                    traces.join("\n  ")
                );
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    let ready = cluster.is_ready().await;
    println!("{} ({})", if ready { "ready" } else { "not ready" }, cluster.kubeconfig().display());
    for component in cluster.components().into_iter().filter(|_| cluster.is_own()) {
        let state = component.pid.map_or_else(|| "does not run".to_owned(), |pid| format!("process {pid}"));
        println!("  {:24} {state}", component.name);
    }
    if ready {
        print!("{}", cluster.kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"]).run().await?);
    }
    for other in cluster::others(folder) {
        println!("another cluster is up: {}", other.path().display());
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shell(cluster: &Cluster, words: &[String]) -> Result<()> {
    let own_shell = [env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let (name, arguments) = words.split_first().or_else(|| own_shell.split_first()).context("no command")?;
    let mut command = if cluster.is_own() { cluster.command(name)? } else { Command::new(name) };
    command.args(arguments).env("KUBECONFIG", cluster.kubeconfig());
    if let Some(folder) = program::folder() {
        let old = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([folder].into_iter().chain(env::split_paths(&old)))?;
        command.env("PATH", path);
    }
    if words.is_empty() && std::io::stderr().is_terminal() {
        eprintln!(
            "a shell in the cluster's network; kubectl is there, and pods and Services can be reached. `exit` leaves it"
        );
    }
    Err(anyhow!("cannot run {name}: {}", command.exec()))
}

/// The cluster that is there, or a word about how to get one.
async fn existing(folder: &Folder) -> Result<Cluster> {
    if cluster::given().is_some() { Cluster::get().await } else { Cluster::at(folder) }
}
