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
    if !args.check {
        generate(&cargo::root()?.join("manifests"))?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if is_current()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether what is committed is what the code says; shows the difference where it is not.
pub(crate) fn is_current() -> Result<bool> {
    let folder = cargo::root()?.join("manifests");
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
    if !stale.is_empty() {
        eprintln!("error: {} not current: run `cargo xtask manifests` and commit the result", stale.join(", "));
    }
    Ok(stale.is_empty())
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

/// Lines shown before and after each that differs.
const CONTEXT: usize = 2;

/// What differs, line by line: `-` committed, `+` current; `None` if nothing does.
fn difference(committed: &str, current: &str) -> Option<String> {
    if committed == current {
        return None;
    }
    let (old, new): (Vec<_>, Vec<_>) = (committed.lines().collect(), current.lines().collect());
    let lines = aligned(&old, &new);
    let changed: Vec<_> = (0..lines.len()).filter(|&at| lines[at].0 != ' ').collect();
    let shown = |at: usize| changed.iter().any(|&change| change.abs_diff(at) <= CONTEXT);
    let mut text = String::new();
    let mut number = 0;
    for (at, (sign, line)) in lines.iter().enumerate() {
        number += usize::from(*sign != '+');
        if shown(at) {
            if at == 0 || !shown(at - 1) {
                text.push_str(&format!("@@ line {} @@\n", number.max(1)));
            }
            text.push_str(&format!("{sign}{line}\n"));
        }
    }
    if text.is_empty() {
        text.push_str("only the line breaks differ\n");
    }
    Some(text)
}

/// Both texts as one, by their longest common subsequence of lines; the files have hundreds of lines, not more.
fn aligned<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::with_capacity(old.len() + new.len()));
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn only_what_differs_is_shown() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n").unwrap(), "@@ line 1 @@\n a\n-b\n+x\n+y\n c\n");
        assert_eq!(difference("", "a\n").unwrap(), "@@ line 1 @@\n+a\n");
        assert_eq!(difference("a\na\n", "a\n").unwrap(), "@@ line 1 @@\n a\n-a\n");
        assert!(difference("a", "a\n").is_some());
    }

    #[test]
    fn what_is_far_apart_is_shown_apart() {
        let old: Vec<_> = (1..=20).map(|line| line.to_string()).collect();
        let mut new = old.clone();
        new[2] = "x".to_owned();
        new[17] = "y".to_owned();
        let text = difference(&old.join("\n"), &new.join("\n")).unwrap();
        assert_eq!(text, "@@ line 1 @@\n 1\n 2\n-3\n+x\n 4\n 5\n@@ line 16 @@\n 16\n 17\n-18\n+y\n 19\n 20\n");
    }
}
