//! Tests of the demo: it shows what it says, and leaves nothing behind, however it ends.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sluice_tests::{Lab, binaries, eventually};

const SOON: Duration = Duration::from_secs(10);

/// A demo that was started. It is killed when a test fails.
struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(binaries::find("sluice-demo")?);
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, output })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Reads up to a line that contains the text.
    fn read_to(&mut self, text: &str) -> Result<()> {
        let mut all = String::new();
        loop {
            let begin = all.len();
            ensure!(self.output.read_line(&mut all)? > 0, "it has never printed {text:?}, but:\n{all}");
            if all[begin..].contains(text) {
                return Ok(());
            }
        }
    }

    /// Reads the rest and waits for the end: what was printed, the exit code, the signal that has ended it.
    fn end(mut self) -> Result<(String, Option<i32>, Option<i32>)> {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest)?;
        let status = self.child.wait()?;
        Ok((rest, status.code(), status.signal()))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nothing_left_by(pid: u32) -> Result<()> {
    let left = Lab::left_by(pid);
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_demo_prints_one_document() -> Result<()> {
    let demo = Demo::start(&["--json"])?;
    let pid = demo.pid();
    let (text, code, _) = demo.end()?;
    ensure!(text.lines().count() == 1, "{text}");
    let document: Value = serde_json::from_str(&text)?;
    ensure!(code == Some(0) && document["ok"] == true, "{code:?} {text}");
    let scenes = document["scenes"].as_array().context("no scenes")?;
    let names: Vec<_> = scenes.iter().map(|scene| &scene["name"]).collect();
    ensure!(names == ["before", "all-tcp", "header"], "{names:?}");
    for scene in scenes {
        for request in scene["requests"].as_array().context("no requests")? {
            let mine = request["header"] == "x-user: adam";
            let expected = match scene["name"].as_str() {
                Some("before") => "pod",
                Some("all-tcp") => "laptop",
                _ if mine => "laptop",
                _ => "pod",
            };
            ensure!(request["answered_by"] == expected && request["expected"] == expected, "{request}");
            ensure!(request["what"] == "POST /tic" && request["micros"].as_u64().is_some_and(|micros| micros > 0));
            ensure!(mine || request["header"].is_null() || request["header"] == "x-user: eva", "{request}");
        }
    }
    let last = scenes[2]["requests"].as_array().context("no requests")?;
    ensure!(last.iter().any(|request| request["answered_by"] == "pod"));
    ensure!(last.iter().any(|request| request["answered_by"] == "laptop"));
    nothing_left_by(pid)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_demo_can_be_stopped_at_any_moment() -> Result<()> {
    let moments = [
        "Sluice:",
        "making four hosts",
        "starting the services",
        "starting Sluice's agent",
        "1  Before",
        "2  All TCP",
        "answered by laptop",
        "3  Only requests",
        "GET /tac says",
    ];
    for (number, moment) in moments.into_iter().enumerate() {
        let (signal, expected) = if number % 2 == 0 { (Signal::SIGINT, 130) } else { (Signal::SIGTERM, 143) };
        let mut demo = Demo::start(&["--stay"])?;
        let pid = demo.pid();
        demo.read_to(moment)?;
        demo.signal(signal)?;
        let (rest, code, _) = demo.end()?;
        // Behind its last line it stays to be looked at, and a signal is the orderly end.
        let shown_to_the_end = rest.contains("Now you") || rest.contains("GET /tac");
        ensure!(code == Some(expected) || (shown_to_the_end && code == Some(0)), "{moment}: {code:?}\n{rest}");
        ensure!(rest.contains("Nothing is left behind"), "{moment}: {rest}");
        nothing_left_by(pid).context(moment)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_demo_can_be_stopped_while_it_starts() -> Result<()> {
    for millis in [0, 1, 3, 10, 20, 40, 80, 160, 320] {
        let demo = Demo::start(&["--json"])?;
        let pid = demo.pid();
        // The moment is the point here, nothing is waited for.
        std::thread::sleep(Duration::from_millis(millis));
        demo.signal(Signal::SIGTERM)?;
        let (text, code, signal) = demo.end()?;
        match (code, signal) {
            // Before it could know of any signal, and before it had made anything.
            (None, Some(15)) => ensure!(text.is_empty(), "{text}"),
            (Some(1), None) => {
                let document: Value = serde_json::from_str(&text)?;
                ensure!(document["ok"] == false && document["error"] == "stopped by SIGTERM", "{text}");
            }
            // Faster than expected.
            (Some(0), None) => ensure!(serde_json::from_str::<Value>(&text)?["ok"] == true, "{text}"),
            other => anyhow::bail!("after {millis} ms: {other:?} {text}"),
        }
        nothing_left_by(pid).with_context(|| format!("after {millis} ms"))?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn what_a_killed_demo_leaves_the_next_one_removes() -> Result<()> {
    let mut killed = Demo::start(&["--stay"])?;
    let pid = killed.pid();
    killed.read_to("Now you")?;
    let running = Lab::left_by(pid).iter().filter(|left| left.starts_with("process")).count();
    ensure!(running == 5, "two adds, tictac, agent and client should run, not {running}");
    killed.signal(Signal::SIGKILL)?;
    killed.end()?;
    eventually(SOON, "its programs die with it", || async {
        let left = Lab::left_by(pid);
        if left.iter().any(|left| left.starts_with("process")) { Err(format!("{left:?}")) } else { Ok(()) }
    })
    .await?;

    let (_, code, _) = Demo::start(&["--json"])?.end()?;
    ensure!(code == Some(0));
    nothing_left_by(pid)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn without_root_the_demo_says_how() -> Result<()> {
    let binary = binaries::find("sluice-demo")?;
    let readable_by_all = std::env::temp_dir().join(format!("sluice-demo-{}", std::process::id()));
    std::fs::copy(&binary, &readable_by_all)?;
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&readable_by_all)
        .output();
    std::fs::remove_file(&readable_by_all)?;
    let output = output?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("root") && said.contains("sudo"), "{said}");
    Ok(())
}
