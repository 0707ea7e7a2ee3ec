//! A program that runs inside a host.
//!
//! Its output goes to a file of the lab, which is shown when the test fails. It is killed by its id when the handle is
//! dropped, when the lab is finished, and by the kernel when the test process dies.

pub(crate) mod usage;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    fs::File,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::{eventually, guard::BpfObjects, run_id::RUN_VARIABLE};

/// Handle of a program that was started with [`Host::spawn`](crate::Host::spawn).
#[derive(Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

/// What the lab keeps of each process, so that it can end it and look after its leftovers.
#[derive(Debug)]
pub(crate) struct Inner {
    name: String,
    pid: u32,
    /// Inode of the network namespace that it runs in.
    pub(crate) namespace: u64,
    child: Mutex<Child>,
    log: PathBuf,
    /// Everything that it was seen to hold in the kernel.
    held: Mutex<BpfObjects>,
}

// === impl Process ===

impl Process {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        self.inner.end();
    }

    /// Sends a signal, if the process still runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.signal(signal)
    }

    /// SIGTERM, and the exit status of a program that ends within the time.
    pub async fn terminate(&self, within: Duration) -> Result<ExitStatus> {
        self.inner.signal(Signal::SIGTERM)?;
        self.exited(within).await
    }

    /// The exit status of a program that ends by itself.
    pub async fn exited(&self, within: Duration) -> Result<ExitStatus> {
        eventually(within, &format!("{} has ended", self.inner.name), || async { self.inner.status().transpose() })
            .await?
            .context("waiting for a child")
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.inner.status(), Ok(None))
    }

    /// What it has printed so far, on both outputs.
    pub fn output(&self) -> String {
        fs::read(&self.inner.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Waits until it has printed a line that contains `text`, and returns the line. Fails early when it ends.
    pub async fn printed(&self, text: &str, within: Duration) -> Result<String> {
        let what = format!("{} prints {text:?}", self.inner.name);
        let line = eventually(within, &what, || async {
            let running = self.is_running();
            let output = self.output();
            match output.lines().find(|line| line.contains(text)) {
                Some(line) => Ok(Ok(line.to_owned())),
                None if !running => Ok(Err(anyhow::anyhow!("{what}: it ended instead and had printed:\n{output}"))),
                None => Err(format!("output {output:?}")),
            }
        });
        line.await?
    }

    /// Memory that is resident now, in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        usage::rss_kib(self.inner.pid).with_context(|| self.inner.name.clone())
    }

    /// Number of files, sockets included, that are open now.
    pub fn open_files(&self) -> Result<usize> {
        usage::open_files(self.inner.pid)
    }

    /// Number of sockets that are open now.
    pub fn open_sockets(&self) -> Result<usize> {
        usage::open_sockets(self.inner.pid)
    }

    /// The id of its one child, such as a supervised agent's worker.
    pub fn child(&self) -> Result<u32> {
        let pid = self.inner.pid;
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        text.trim().parse().with_context(|| format!("{} has not one child, but these: {text:?}", self.inner.name))
    }

    /// Processor time used so far, by the program and on its behalf in the kernel, to the nanosecond.
    pub fn run_time(&self) -> Result<Duration> {
        let clock = nix::time::clock_getcpuclockid(Pid::from_raw(i32::try_from(self.inner.pid)?))
            .with_context(|| format!("the processor time of {}: has it ended?", self.inner.name))?;
        Ok(clock.now()?.into())
    }

    /// Processor time used so far, by the program and on its behalf in the kernel.
    pub fn cpu_time(&self) -> Result<Duration> {
        /// Kernel ticks in `/proc` are a hundredth of a second on every architecture Linux supports today.
        const TICK: Duration = Duration::from_millis(10);
        let path = format!("/proc/{}/stat", self.inner.pid);
        let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<u32> = after_name
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("reading {path}"))?;
        Ok(TICK * fields.iter().sum())
    }

    /// What it holds in the kernel now.
    pub fn bpf_objects(&self) -> BpfObjects {
        self.inner.note_held();
        BpfObjects::of_process(self.inner.pid)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.inner.end();
    }
}

// === impl Inner ===

impl Inner {
    /// Starts `command` in the calling thread's namespace. That thread must outlive the process.
    pub(crate) fn start(
        command: &Command,
        name: String,
        log: PathBuf,
        lab: &str,
        namespace: u64,
        stdin: Stdio,
        stdout: Option<Stdio>,
    ) -> Result<(Self, Option<std::process::ChildStdin>, Option<std::process::ChildStdout>)> {
        let file = File::options().create(true).append(true).open(&log)?;
        let mut child = supervised(command)
            .env(RUN_VARIABLE, lab)
            .process_group(0)
            .stdin(stdin)
            .stdout(stdout.map_or_else(|| file.try_clone().map(Stdio::from), Ok)?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} through setpriv (package util-linux)"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let inner = Self { name, pid: child.id(), namespace, child: Mutex::new(child), log, held: Mutex::default() };
        Ok((inner, stdin, stdout))
    }

    /// SIGKILL, and waits. Does nothing when it has ended before.
    pub(crate) fn end(&self) {
        self.note_held();
        let mut child = lock(&self.child);
        // Both fail only for a child that has been waited for, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Remembers what the process holds in the kernel, to look for it when the process is gone.
    pub(crate) fn note_held(&self) {
        let held = BpfObjects::of_process(self.pid);
        lock(&self.held).add(held);
    }

    /// What of its objects a system still has that has `present`. Nothing as long as the process lives.
    pub(crate) fn left(&self, present: &BpfObjects) -> Option<String> {
        if matches!(self.status(), Ok(None)) {
            return None;
        }
        let left = lock(&self.held).common(present);
        (!left.is_empty()).then(|| format!("{} (pid {}) left in the kernel: {left}", self.name, self.pid))
    }

    /// Ids of the links that it holds now.
    pub(crate) fn running_links(&self) -> BTreeSet<u32> {
        BpfObjects::of_process(self.pid).links
    }

    pub(crate) fn status(&self) -> io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.note_held();
        // Holding the child: its id cannot be given to another process before it has been waited for.
        let mut child = lock(&self.child);
        if child.try_wait()?.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.pid)?);
            nix::sys::signal::kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))?;
        }
        Ok(())
    }
}

/// The last lines of each of the lab's output files, for the report of a failed test.
pub(crate) fn show_outputs(folder: &Path) -> String {
    const LINES: usize = 80;
    let mut report = String::new();
    let mut logs: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    for path in logs {
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LINES);
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let _ = writeln!(report, "--- {name}{}", if skipped > 0 { " (last lines)" } else { "" });
        for line in &lines[skipped..] {
            let _ = writeln!(report, "{line}");
        }
    }
    report
}

/// The same command, but killed by the kernel when the thread that starts it is gone: a test that is killed itself
/// leaves no process behind. `setpriv` becomes the program, so the process's id is the program's.
fn supervised(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
