//! `sluice-demo`: shows on one machine what Sluice does, and leaves nothing behind, however it ends.

#![forbid(unsafe_code)]

use std::{
    io::Write as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use sluice_tests::{
    Lab,
    demo::{
        on_cluster::{ClusterStage, Found},
        report::{Document, SceneReport, Terminal},
        scenes,
        stage::Stage,
    },
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Shows what Sluice does: three scenes between four hosts, each a network namespace of this machine
#[derive(Clone, Copy, Parser)]
#[command(name = "sluice-demo")]
struct Arguments {
    /// Print one JSON document instead
    #[arg(long)]
    json: bool,
    /// On a real Kubernetes: one on this machine, or the one that KUBECONFIG names
    #[arg(long)]
    cluster: bool,
    /// Keep everything up afterwards and print commands to try, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    stay: bool,
}

/// What ends the demo early. By convention the exit status is 128 and the signal's number.
#[derive(Clone, Copy, Debug)]
struct Interrupted {
    name: &'static str,
    exit_code: u8,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let terminal = Terminal::new(arguments.json);
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments, terminal)),
        Err(error) => fail(arguments, &error.into(), Vec::new()),
    }
}

async fn run(arguments: Arguments, terminal: Terminal) -> ExitCode {
    // Before anything is made: from here on no signal can end this without the lab being taken down.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(arguments, &error, Vec::new()),
    };
    if arguments.cluster {
        return Box::pin(on_cluster(arguments, terminal, &mut signals)).await;
    }
    let lab = match start_lab() {
        Ok(lab) => lab,
        Err(error) => return fail(arguments, &error, Vec::new()),
    };
    let mut played = Vec::new();
    let ended = tokio::select! {
        biased;
        // Not resumed: all that was begun is taken down with the lab.
        interrupted = signals.next() => Ok(Some(interrupted)),
        shown = show(&lab, arguments, terminal, &mut played) => shown.map(|()| None),
    };
    let outputs = if ended.is_err() { lab.outputs() } else { String::new() };
    terminal.line("");
    terminal.line("Taking everything down.");
    let down = lab.finish();
    eprint!("{outputs}");
    conclude(arguments, terminal, ended, down, played)
}

/// The same scenes in a cluster.
async fn on_cluster(arguments: Arguments, terminal: Terminal, signals: &mut Signals) -> ExitCode {
    scenes::introduce(terminal, "   The laptop is this machine; the others are pods of a real Kubernetes.");
    let progress = |what: &str| terminal.aside(&format!("   … {what}"));
    let (mut played, mut found, mut stage) = (Vec::new(), None, None);
    let showing = async {
        let found = found.insert(Found::get(progress).await?);
        let stage = stage.insert(Box::pin(ClusterStage::set_up(found, progress)).await?);
        Box::pin(scenes::play(stage, terminal, &mut played)).await?;
        if arguments.stay {
            scenes::offer(terminal, &stage.invite());
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let ended = tokio::select! {
        biased;
        // Not resumed: all that was begun is taken down.
        interrupted = signals.next() => Ok(Some(interrupted)),
        shown = showing => shown.map(|()| None),
    };
    terminal.line("");
    terminal.line("Taking everything down.");
    let down = async {
        let finished = match stage {
            Some(stage) => Box::pin(stage.finish()).await,
            None => Ok(()),
        };
        match found {
            Some(found) => finished.and(Box::pin(found.restore()).await),
            None => finished,
        }
    };
    let down = down.await;
    conclude(arguments, terminal, ended, down, played)
}

fn conclude(
    arguments: Arguments,
    terminal: Terminal,
    ended: Result<Option<Interrupted>>,
    down: Result<()>,
    played: Vec<SceneReport>,
) -> ExitCode {
    match (ended, down) {
        (Err(error), Ok(())) => fail(arguments, &error, played),
        (Err(error), Err(left)) => fail(arguments, &error.context(format!("besides, {left:#}")), played),
        (Ok(_), Err(left)) => fail(arguments, &left, played),
        // Whoever is shown around ends it this way.
        (Ok(Some(_)), Ok(())) if arguments.stay && played.len() == scenes::COUNT => {
            finish(arguments, terminal, &Document::complete(played))
        }
        (Ok(Some(interrupted)), Ok(())) if !arguments.json => {
            terminal.line(&format!("Stopped by {}. Nothing is left behind.", interrupted.name));
            ExitCode::from(interrupted.exit_code)
        }
        (Ok(Some(interrupted)), Ok(())) => {
            finish(arguments, terminal, &Document::stopped(format!("stopped by {}", interrupted.name), played))
        }
        (Ok(None), Ok(())) => finish(arguments, terminal, &Document::complete(played)),
    }
}

fn start_lab() -> Result<Lab> {
    if !nix::unistd::geteuid().is_root() {
        let this = std::env::current_exe().unwrap_or_else(|_| "sluice-demo".into());
        anyhow::bail!(
            "the demo makes network namespaces and loads a program into the kernel, which only root may. \
             Run it as root: sudo {}",
            this.display()
        );
    }
    // Said at once instead of half-way.
    for (program, package) in [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"), ("bpftool", "bpftool")] {
        let found = Command::new(program).arg("-V").output();
        found.with_context(|| format!("`{program}` is missing: install the package {package}"))?;
    }
    Lab::new("demo")
}

async fn show(lab: &Lab, arguments: Arguments, terminal: Terminal, played: &mut Vec<SceneReport>) -> Result<()> {
    scenes::introduce(terminal, "   Each of the four is a host of its own: a network namespace on this machine.");
    let mut stage = Stage::set_up(lab, |what| terminal.aside(&format!("   … {what}"))).await?;
    scenes::play(&mut stage, terminal, played).await?;
    if arguments.stay {
        scenes::invite(&stage, terminal);
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn finish(arguments: Arguments, terminal: Terminal, document: &Document) -> ExitCode {
    if arguments.json {
        print_document(document);
    } else if document.ok {
        terminal.line("Nothing is left behind: no process, no namespace, nothing in the kernel.");
    } else {
        terminal.line("Not everything was answered by whom it should have been: see above.");
    }
    if document.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fail(arguments: Arguments, error: &anyhow::Error, played: Vec<SceneReport>) -> ExitCode {
    eprintln!("sluice-demo: {error:#}");
    if arguments.json {
        print_document(&Document::stopped(format!("{error:#}"), played));
    }
    ExitCode::FAILURE
}

fn print_document(document: &Document) {
    if let Ok(text) = serde_json::to_string(document) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

// === impl Signals ===

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one that ends the demo. Cancel-safe: a signal that has come stays noted.
    async fn next(&mut self) -> Interrupted {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupted { name: "SIGINT", exit_code: 130 },
            _ = self.terminate.recv() => Interrupted { name: "SIGTERM", exit_code: 143 },
            _ = self.hangup.recv() => Interrupted { name: "SIGHUP", exit_code: 129 },
        }
    }
}
