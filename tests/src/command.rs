//! Runs the system's own tools (`ip`, `nft`, `bpftool`, …) and turns their failures into readable errors.
//!
//! Runs in whatever network namespace the calling thread is in. Only for tools that end by themselves within
//! moments; what keeps running is a [`Process`](crate::Process).

use std::{
    ffi::OsStr,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs `program` with `input` on its standard input and returns what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        // A Ctrl-C at the terminal goes to the foreground group. It must not stop a tool half-way: the one who
        // called it decides what happens next.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running `{program}`{}", hint(program)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that has already failed closes its input; its exit status says so better than a broken pipe does.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for `{program}`"))?;
    if !output.status.success() {
        let shown: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
        bail!(
            "`{program} {}` failed with {}: {}{}",
            shown.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            if input.is_empty() { String::new() } else { format!("\ninput:\n{input}") },
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn hint(program: &str) -> &'static str {
    match program {
        "ip" => " (package iproute2)",
        "nft" => " (package nftables)",
        "bpftool" => " (package bpftool)",
        "setpriv" => " (package util-linux)",
        _ => "",
    }
}
