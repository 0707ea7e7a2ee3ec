//! Going on in the background.
//!
//! Owns both ends of it: the command that was typed starts itself again, waits for the report and returns; the other one
//! reports. The report is the summary and one zero byte on the pipe that is the other one's standard output. If the
//! pipe that is its input ends before that, nobody waits any more, and it stops and leaves nothing behind.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::key::Files;
use super::view;

const END_OF_REPORT: u8 = 0;

/// The option that tells the second process what it is.
const FLAG: &str = "--in-background";

/// Starts this command again in the background and waits until that reports.
pub(crate) fn start(name: &str, files: &Files) -> anyhow::Result<ExitCode> {
    let log = files.log();
    let file = create(&log).with_context(|| format!("cannot write the log file {}", log.display()))?;
    let program = std::env::current_exe().context("cannot find out where this program is")?;
    let mut command = Command::new(program);
    // `intercept add` and then the rest, which may end with a `--`.
    let mut arguments = std::env::args_os().skip(1);
    command.args(arguments.by_ref().take(2)).arg(FLAG).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
    aside(&mut command);
    let mut child = command.spawn().context("cannot start the background process")?;
    // Kept open: its end tells the other process that this one is gone.
    let _input = child.stdin.take();
    let mut output = child.stdout.take().context("the background process has no output")?;
    match report(&mut output).context("cannot hear from the background process")? {
        Some(summary) => {
            view::show(&summary)?;
            eprintln!(
                "running in the background (process {}, log {}); `sluice intercept remove {name}` ends it",
                child.id(),
                log.display()
            );
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let status = child.wait().context("cannot wait for the background process")?;
            eprint!("{}", std::fs::read_to_string(&log).unwrap_or_default());
            let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
            Ok(ExitCode::from(code.unwrap_or(1)))
        }
    }
}

/// In the background: says that all is ready. Nothing may be written to standard output afterwards.
pub(crate) fn announce(summary: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(summary.as_bytes())?;
    output.write_all(&[END_OF_REPORT])?;
    output.flush()
}

/// In the background: cancelled when whoever waits for the report is gone.
pub(crate) fn abandoned() -> CancellationToken {
    let token = CancellationToken::new();
    let cancel = token.clone();
    // A thread, as a read from a pipe cannot be given up; it ends with the process.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        cancel.cancel();
    });
    token
}

/// The summary, or `None` if the other process ended without one.
fn report(output: &mut impl io::Read) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer)? {
            0 => return Ok(None),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
        if let Some((&END_OF_REPORT, summary)) = bytes.split_last() {
            return Ok(Some(String::from_utf8_lossy(summary).into_owned()));
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Keeps the terminal's Ctrl-C away from it.
fn aside(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(windows)]
    {
        const DETACHED_PROCESS: u32 = 0x8;
        const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
        std::os::windows::process::CommandExt::creation_flags(command, DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
    }
    #[cfg(not(any(unix, windows)))]
    let _ = command;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_an_end() {
        assert_eq!(report(&mut b"summary\n\0".as_slice()).unwrap().as_deref(), Some("summary\n"));
        assert_eq!(report(&mut b"summary\n".as_slice()).unwrap(), None);
        assert_eq!(report(&mut b"".as_slice()).unwrap(), None);
        assert_eq!(report(&mut b"\0".as_slice()).unwrap().as_deref(), Some(""));
    }
}
