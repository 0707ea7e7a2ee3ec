//! `cargo xtask manifests`: makes what of `manifests/` is generated, or shows where it is not what the code says.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::cargo;

#[derive(Debug, clap::Args)]
pub(crate) struct ManifestsArgs {
    /// Change nothing; fail and show the difference if a file is not current.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &ManifestsArgs) -> Result<ExitCode> {
    let folder = cargo::root()?.join("manifests");
    if !args.check {
        generate(&folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    let fresh = cargo::root()?.join("target/manifests");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    generate(&fresh)?;
    let mut stale = Vec::new();
    for path in files_below(&fresh)? {
        let name = path.strip_prefix(&fresh).context("a path outside its folder")?;
        let committed = fs::read_to_string(folder.join(name)).unwrap_or_default();
        let current = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if let Some(difference) = difference(&committed, &current) {
            eprintln!("manifests/{}: not what webhook/api says\n{difference}", name.display());
            stale.push(name.display().to_string());
        }
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: {} not current: run `cargo xtask manifests` and commit the result", stale.join(", "));
    Ok(ExitCode::FAILURE)
}

fn generate(folder: &Path) -> Result<()> {
    let mut command: Command = cargo::command(&["run", "--quiet", "-p", "sluice-api", "--example", "manifests", "--"])?;
    let status = command.arg(folder).status().context("cannot run cargo")?;
    ensure!(status.success(), "the manifests cannot be made");
    Ok(())
}

fn files_below(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.append(&mut files_below(&path)?);
        } else {
            files.insert(path);
        }
    }
    Ok(files)
}

/// The lines between the first and the last that differ, as `-` committed and `+` current; `None` if none does.
fn difference(committed: &str, current: &str) -> Option<String> {
    if committed == current {
        return None;
    }
    let (old, new): (Vec<_>, Vec<_>) = (committed.lines().collect(), current.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let mut text = format!("@@ line {} @@\n", head + 1);
    for (sign, lines) in [('-', &old[head..old.len() - tail]), ('+', &new[head..new.len() - tail])] {
        for line in lines {
            text.push(sign);
            text.push_str(line);
            text.push('\n');
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn only_what_differs_is_shown() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n").unwrap(), "@@ line 2 @@\n-b\n+x\n+y\n");
        assert_eq!(difference("", "a\n").unwrap(), "@@ line 1 @@\n+a\n");
        assert_eq!(difference("a\na\n", "a\n").unwrap(), "@@ line 2 @@\n-a\n");
        assert!(difference("a", "a\n").is_some());
    }
}
