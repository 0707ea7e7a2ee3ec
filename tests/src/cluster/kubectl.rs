//! Runs kubectl, with a time limit, as one or another user of a cluster.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;

use super::{folder::Folder, program};

/// How long a command may take that says nothing else.
const LIMIT: Duration = Duration::from_secs(60);

/// How kubectl is called, and for which cluster.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The program and its first arguments.
    pub(crate) words: Vec<OsString>,
    pub(crate) kubeconfig: PathBuf,
    /// Where it keeps what it has learned about the API, if not where it always does.
    pub(crate) cache: Option<PathBuf>,
}

/// A command about to run.
#[derive(Debug)]
#[must_use = "`run` runs it"]
pub struct Kubectl {
    program: Program,
    arguments: Vec<String>,
    input: String,
    within: Duration,
}

/// kubectl for a cluster of our own.
pub(crate) fn own(folder: &Folder) -> Result<Program> {
    let program = program::built().context("Kubernetes has not been built yet: cargo xtask cluster up")?;
    Ok(Program {
        words: vec![program.into(), "kubectl".into()],
        kubeconfig: folder.kubeconfig(),
        cache: Some(folder.path().join("kubectl")),
    })
}

/// kubectl for somebody else's cluster: theirs if there is one, else ours.
pub(crate) fn for_kubeconfig(kubeconfig: PathBuf) -> Result<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|program| program.exists());
    let words = match (found, program::built()) {
        (Some(kubectl), _) => vec![kubectl.into()],
        (None, Some(built)) => vec![built.into(), "kubectl".into()],
        (None, None) => bail!("no kubectl on PATH, which the cluster of KUBECONFIG takes"),
    };
    Ok(Program { words, kubeconfig, cache: None })
}

// === impl Kubectl ===

impl Kubectl {
    pub(crate) fn new(program: Program, arguments: &[&str]) -> Self {
        Self { program, arguments: Vec::new(), input: String::new(), within: LIMIT }.arguments(arguments)
    }

    /// Adds arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// What it reads on its standard input (`-f -`).
    pub fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    /// How long it may take; a minute otherwise.
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// As another user, named by the kubeconfig's path.
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.program.kubeconfig = path.into();
        self
    }

    /// The command itself, for one that goes on for a while.
    pub fn command(&self) -> Result<Command> {
        let mut words = self.program.words.iter();
        let mut command = Command::new(words.next().context("no kubectl")?);
        // By the variable and not by the flag: it may name several files.
        command.args(words).args(&self.arguments).env("KUBECONFIG", &self.program.kubeconfig);
        if let Some(folder) = &self.program.cache {
            command.env("KUBECACHEDIR", folder);
        }
        Ok(command)
    }

    /// Runs it and returns what it printed; an error says what it complained about.
    pub async fn run(self) -> Result<String> {
        let command = self.command()?;
        let name = format!("kubectl {}", self.arguments.join(" "));
        output(command, &self.input, self.within).await.with_context(|| name)
    }

    /// Runs it with `-o json` and returns the object.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        let text = self.arguments(&["-o", "json"]).run().await?;
        serde_json::from_str(&text).with_context(|| format!("reading what kubectl printed: {text}"))
    }
}

/// Runs a program that ends by itself; it is killed when it does not within the time, or when nobody waits any more.
pub(crate) fn output(command: Command, input: &str, within: Duration) -> impl Future<Output = Result<String>> {
    // Boxed: a future with a process in it is large, and there is one in every step of a test.
    Box::pin(ended(command, input, within))
}

async fn ended(command: Command, input: &str, within: Duration) -> Result<String> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("cannot be run")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let ended = tokio::time::timeout(within, async {
        // One that has already failed closes its input; its exit status says so better than a broken pipe does.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    });
    let Ok(output) = ended.await else { bail!("did not end within {within:?}") };
    let output = output?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
