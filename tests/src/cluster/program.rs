//! The program with all of Kubernetes in it: built once from `tests/cluster`, kept under `target/cluster`.

use std::{
    fs,
    io::{BufReader, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::folder::{self, hex};

/// What the program is made from; another content means another program.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// The oldest Go whose compiler takes these sources.
const GO: (u32, u32) = (1, 26);

/// How often a build says how far it is, where it cannot draw over its last line.
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// The program, built first if there is none for these sources.
pub fn ensure() -> Result<PathBuf> {
    let shared = folder::shared()?;
    let folder = shared.join(format!("program-{}", version()?));
    let program = folder.join("cluster");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&shared)?;
    let lock = fs::File::create(shared.join("program.lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another process that builds Kubernetes");
        lock.lock()?;
    }
    if !program.exists() {
        build(&shared, &folder)?;
    }
    Ok(program)
}

/// The program's path, if it has been built.
pub(crate) fn built() -> Option<PathBuf> {
    let program = folder::shared().ok()?.join(format!("program-{}", version().ok()?)).join("cluster");
    program.exists().then_some(program)
}

/// The folder in which `kubectl` is, if it has been built.
pub fn folder() -> Option<PathBuf> {
    built()?.parent().map(Path::to_owned)
}

/// The version of Kubernetes in it.
pub(crate) fn kubernetes() -> Result<String> {
    let text = fs::read_to_string(source().join("go.mod"))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    line.map(|version| version.trim().to_owned()).context("no k8s.io/kubernetes in go.mod")
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

fn version() -> Result<String> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for name in SOURCES {
        let path = source().join(name);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        hash.update(&text.len().to_le_bytes());
        hash.update(&text);
    }
    Ok(hex(&hash.finish().as_ref()[..6]))
}

fn build(shared: &Path, folder: &Path) -> Result<()> {
    require_go()?;
    let version = kubernetes()?;
    let began = Instant::now();
    eprintln!(
        "building Kubernetes {version}, etcd and CoreDNS as one program into {} (once: about 7 minutes on 2 cores, \
         2 GB of memory, 5 GB in Go's caches)",
        folder.display()
    );
    let packages = packages()?;
    let temporary = shared.join("program.new");
    fs::create_dir_all(&temporary)?;
    let flags = format!(
        "-s -w -X k8s.io/component-base/version.gitVersion={version} -X k8s.io/client-go/pkg/version.gitVersion={version}"
    );
    let mut child = go(&["build", "-v", "-trimpath", "-ldflags", &flags, "-o"])
        .arg(temporary.join("cluster"))
        .arg(".")
        .stderr(Stdio::piped())
        .spawn()
        .context("running go")?;
    let lines = child.stderr.take().context("no output of go")?;
    let said = watch(BufReader::new(lines), packages, began);
    let status = child.wait()?;
    ensure!(status.success(), "`go build` in {} failed with {status}:\n{}", source().display(), said.join("\n"));
    // Called by its name it is that component: `kubectl` for people.
    std::os::unix::fs::symlink("cluster", temporary.join("kubectl")).or_else(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })?;
    fs::rename(&temporary, folder)?;
    remove_others(shared, folder);
    eprintln!("Kubernetes {version} is built ({})", duration(began.elapsed()));
    Ok(())
}

/// How many packages it consists of. Downloads what is missing.
fn packages() -> Result<usize> {
    eprintln!("fetching its modules (once, 1 GB)");
    let output = go(&["list", "-deps", "."]).stderr(Stdio::inherit()).output().context("running go")?;
    ensure!(output.status.success(), "`go list` in {} failed", source().display());
    Ok(output.stdout.iter().filter(|&&byte| byte == b'\n').count())
}

/// Shows how far the build is, and returns what else it has said.
fn watch(output: impl std::io::BufRead + Send + 'static, packages: usize, began: Instant) -> Vec<String> {
    let (lines_tx, lines_rx) = mpsc::channel();
    // Ends with the build's output.
    thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| lines_tx.send(line)));
    let terminal = std::io::stderr().is_terminal();
    let pause = if terminal { Duration::from_secs(1) } else { REPORT_EVERY };
    let (mut said, mut compiled, mut reported) = (Vec::new(), 0_usize, Instant::now());
    loop {
        match lines_rx.recv_timeout(pause.saturating_sub(reported.elapsed())) {
            // Names of packages have neither spaces nor colons; what the compiler complains about has.
            Ok(line) if line.contains([' ', ':', '#']) => said.push(line),
            Ok(_) => compiled += 1,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let text = format!("{compiled} of at most {packages} packages compiled, {}", duration(began.elapsed()));
                if terminal {
                    eprint!("\r\x1b[K{text}");
                    let _ = std::io::stderr().flush();
                } else {
                    eprintln!("{text}");
                }
                reported = Instant::now();
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    said
}

fn go(arguments: &[&str]) -> Command {
    let mut command = Command::new("go");
    command.args(arguments).current_dir(source()).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
    command.stdin(Stdio::null());
    command
}

fn require_go() -> Result<()> {
    let remedy = format!(
        "A cluster of one's own takes Go {}.{} or newer (https://go.dev/dl), to build Kubernetes with. \
         Where there is a cluster already, set KUBECONFIG instead.",
        GO.0, GO.1
    );
    let Ok(output) = Command::new("go").arg("version").output() else { bail!("no `go` on PATH. {remedy}") };
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let numbers = text.split_whitespace().find_map(|word| word.strip_prefix("go1."));
    let minor = numbers.and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    // A Go that may fetch a newer one does so by itself.
    ensure!(minor.is_some_and(|minor| (1, minor) >= GO), "`go version` says {text:?}. {remedy}");
    Ok(())
}

/// Programs of older sources: 150 MB each.
fn remove_others(shared: &Path, keep: &Path) {
    for entry in fs::read_dir(shared).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("program-") && path != keep {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn duration(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}
