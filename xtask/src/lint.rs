//! `cargo xtask lint`: what a change must pass before anybody reads it.

use std::{env, fs, path::Path, process::Command, process::ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, system};

/// Runs every check, even after one has failed.
pub(crate) fn run() -> Result<ExitCode> {
    type Check = (&'static str, fn() -> Result<()>);
    let checks: [Check; 6] = [
        ("formatting", formatting),
        ("lints", lints),
        ("documentation", documentation),
        ("every member inherits the workspace's lints", inheritance),
        ("the committed kernel program", kernel_program),
        ("the generated manifests", manifests),
    ];
    let mut failed = 0;
    for (name, check) in checks {
        eprintln!("== {name}");
        if let Err(error) = check() {
            eprintln!("FAILED: {name}: {error:#}");
            failed += 1;
        }
    }
    eprintln!("== {failed} of {} checks failed", checks.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn formatting() -> Result<()> {
    succeed(&mut cargo::command(&["fmt", "--all", "--check"])?)
}

fn lints() -> Result<()> {
    succeed(&mut cargo::command(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?)
}

fn documentation() -> Result<()> {
    succeed(cargo::command(&["doc", "--workspace", "--no-deps", "--quiet"])?.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Lints declared for a workspace hold only for members that ask for them, which is easily forgotten.
fn inheritance() -> Result<()> {
    let root = cargo::root()?;
    let manifest = read(&root.join("Cargo.toml"))?;
    let members = members(&manifest).context("no members in the workspace's Cargo.toml")?;
    ensure!(!members.is_empty(), "no members in the workspace's Cargo.toml");
    let forgetful: Vec<_> = members
        .into_iter()
        .map(|member| Ok((member, inherits(&read(&root.join(member).join("Cargo.toml"))?))))
        .filter_map(|checked: Result<_>| match checked {
            Ok((_, true)) => None,
            Ok((member, false)) => Some(Ok(member)),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<_>>()?;
    ensure!(forgetful.is_empty(), "no `[lints] workspace = true` in {}", forgetful.join(", "));
    Ok(())
}

fn kernel_program() -> Result<()> {
    if !system::is_root() && !Path::new("/usr/bin/rustc").exists() {
        eprintln!("SKIPPED: rebuilding it takes Debian's compiler, which only root can install");
        return Ok(());
    }
    succeed(Command::new(env::current_exe()?).args(["ebpf", "--check"]))
}

fn manifests() -> Result<()> {
    succeed(Command::new(env::current_exe()?).args(["manifests", "--check"]))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "ended with {status}");
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The members' folders in a workspace's manifest.
fn members(manifest: &str) -> Option<Vec<&str>> {
    let list = manifest.split_once("members = [")?.1.split_once(']')?.0;
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Whether a manifest has a table `[lints]` that asks for the workspace's.
fn inherits(manifest: &str) -> bool {
    let table = manifest.lines().skip_while(|line| line.trim() != "[lints]").skip(1);
    table.take_while(|line| !line.trim_start().starts_with('[')).any(|line| line.replace(' ', "") == "workspace=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found() {
        let manifest = "[workspace]\nmembers = [\"a\",\n  \"b/c\"]\n[workspace.package]\nkeywords = [\"x\"]\n";
        assert_eq!(members(manifest).unwrap(), ["a", "b/c"]);
        assert_eq!(members("[package]\n"), None);
    }

    #[test]
    fn only_the_right_table_counts() {
        assert!(inherits("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n\n[dependencies]\n"));
        assert!(!inherits("[package]\nname = \"a\"\n[lints.rust]\nunsafe_code = \"deny\"\n"));
        assert!(!inherits("[lints]\n[dependencies.x]\nworkspace = true\n"));
    }
}
