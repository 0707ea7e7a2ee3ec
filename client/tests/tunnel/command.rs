//! The command `sluice`, as a process.

use std::path::Path;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use sluice::Identity;
use sluice_protocol::close::CloseCode;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::io::Lines;
use tokio::process::Child;
use tokio::process::ChildStderr;
use tokio::process::Command;

use crate::agent::Agent;
use crate::agent::accepted;
use crate::agent::message;
use crate::agent::open;
use crate::local::Local;
use crate::local::Nobody;
use crate::soon;

struct Sluice {
    process: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Sluice {
    fn tunnel(agent: &Agent, key_file: &Path, port: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.arg("tunnel").arg("--key-file").arg(key_file).args(["--port", port]);
        command.args(["--agent", &agent.address().to_string(), "--agent-key", &agent.key().to_string()]);
        let mut process = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next line that contains `part`.
    async fn says(&mut self, part: &str) -> String {
        let search = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("it ended before");
                if line.contains(part) {
                    return line;
                }
            }
        };
        soon(part, search).await
    }

    async fn ends(&mut self) -> ExitStatus {
        soon("end", self.process.wait()).await.unwrap()
    }
}

async fn output(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    soon("output", Box::pin(command.args(arguments).output())).await.unwrap()
}

#[tokio::test]
async fn key_makes_a_key_once_and_prints_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let file = file.to_str().unwrap();
    let first = output(&["key", "--key-file", file]).await;
    let second = output(&["key", "--key-file", file]).await;
    assert!(first.status.success() && second.status.success());
    assert_eq!(first.stdout, second.stdout);
    let hash = Identity::load_or_create(Path::new(file)).unwrap().hash();
    assert_eq!(String::from_utf8(first.stdout).unwrap(), format!("{hash}\n"));
}

#[tokio::test]
async fn exit_codes_are_as_documented() {
    let hash = Identity::generate().unwrap().hash().to_string();
    let folder = tempfile::tempdir().unwrap();
    let not_a_key = folder.path().join("not-a-key");
    std::fs::write(&not_a_key, "hello").unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&not_a_key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let not_a_key = not_a_key.to_str().unwrap();
    let tunnel = ["tunnel", "--agent", "127.0.0.1", "--agent-key", &hash, "--key-file", not_a_key];
    for (arguments, code, says) in [
        (vec!["version"], 0, ""),
        (vec!["key", "--key-file", not_a_key], 1, "error: the key file "),
        ([tunnel.as_slice(), &["--port", "80"]].concat(), 1, "error: the key file "),
        (
            [tunnel.as_slice(), &["--port", "80:1", "--port", "81:1"]].concat(),
            2,
            "port 1 of the workload is given twice",
        ),
        ([tunnel.as_slice(), &["--port", "0"]].concat(), 2, "each from 1 to 65535"),
        (tunnel.to_vec(), 2, "--port <LOCAL[:REMOTE]>"),
    ] {
        let output = output(&arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn tunnel_says_what_happens_and_stops_cleanly() {
    use nix::sys::signal::Signal;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let identity = Identity::load_or_create(&file).unwrap();
        let mut agent = Agent::start([identity.hash()]);
        let nobody = Nobody::new();
        let mut sluice = Sluice::tunnel(&agent, &file, &format!("{}:8080", nobody.port));
        sluice.says(&identity.hash().to_string()).await;
        assert_eq!(sluice.says("connected").await, format!("connected to {}", agent.address()));

        open(&agent.client().await, &message(8080)).await;
        sluice.says(&format!("nobody listens on 127.0.0.1:{}", nobody.port)).await;

        agent.terminate().await;
        let lost = sluice.says("lost").await;
        assert_eq!(lost, format!("warning: lost {} (the agent is stopping); trying again", agent.address()));
        agent.run();
        sluice.says("connected to").await;

        let client = agent.client().await;
        let since = Instant::now();
        let pid = nix::unistd::Pid::from_raw(sluice.process.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        let error = soon("goodbye", client.closed()).await;
        assert_eq!(CloseCode::of(&error), Some(CloseCode::Stopped));
        assert!(since.elapsed() < Duration::from_millis(200), "{:?}", since.elapsed());
        assert_eq!(sluice.ends().await.code(), Some(0));
    }
}

#[tokio::test]
async fn tunnel_ends_with_its_own_code_when_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let agent = Agent::start([Identity::load_or_create(&file).unwrap().hash()]);
    let mut sluice = Sluice::tunnel(&agent, &file, "80");
    CloseCode::Replaced.close(&agent.client().await);
    sluice.says("another client with the same key took over").await;
    assert_eq!(sluice.ends().await.code(), Some(3));
}

/// Two thousand connections leave nothing behind: no open file, no memory worth mentioning.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let agent = Agent::start([Identity::load_or_create(&file).unwrap().hash()]);
    let local = Local::new().await;
    let mut sluice = Sluice::tunnel(&agent, &file, &format!("{}:8080", local.port));
    local.echo();
    sluice.says("connected to").await;
    let client = agent.client().await;
    let pid = sluice.process.id().unwrap();
    let files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let resident_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let idle_files = files();

    run_streams(&client, 200).await;
    settles(files, idle_files).await;
    let warm = resident_kib();
    run_streams(&client, 2000).await;
    settles(files, idle_files).await;
    let grown = resident_kib().saturating_sub(warm);
    assert!(grown < 4 << 10, "{warm} KiB + {grown} KiB");
    assert!(warm + grown < 40 << 10, "{warm} KiB + {grown} KiB");
}

#[cfg(target_os = "linux")]
async fn run_streams(client: &quinn::Connection, count: usize) {
    const AT_ONCE: usize = 16;
    let request: &[u8] = &[7; 3000];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..count {
        if tasks.len() == AT_ONCE {
            tasks.join_next().await.unwrap().unwrap();
        }
        let client = client.clone();
        tasks.spawn(async move {
            let mut stream = accepted(&client, 8080).await;
            stream.write_all(request).await.unwrap();
            // Some end properly, some break off.
            if n % 3 == 0 {
                return;
            }
            stream.shutdown().await.unwrap();
            let mut got = Vec::new();
            soon("echo", stream.read_to_end(&mut got)).await.unwrap();
            assert_eq!(got, request);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[cfg(target_os = "linux")]
async fn settles(files: impl Fn() -> usize, expected: usize) {
    let wait = async {
        while files() > expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("open files back to idle", wait).await;
}
