//! Proof that nothing is left: what a process holds in the kernel while it lives, and what is still there afterwards.
//!
//! Kernel objects are told apart by id, never by name: other runs on the same machine have objects of the same names.
//! Whose an id is, `/proc/PID/fdinfo` says while the process lives; whether it still exists, `bpftool` says.

use std::{collections::BTreeSet, fmt, fs};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::command;

/// Ids of BPF objects in this machine's kernel.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BpfObjects {
    /// Program ids.
    pub programs: BTreeSet<u32>,
    /// Map ids.
    pub maps: BTreeSet<u32>,
    /// Link ids.
    pub links: BTreeSet<u32>,
}

impl BpfObjects {
    /// What a process holds open now. Empty when there is no such process.
    pub fn of_process(pid: u32) -> Self {
        let mut objects = Self::default();
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return objects };
        for entry in entries.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            for line in text.lines() {
                let Some((name, value)) = line.split_once(':') else { continue };
                let Ok(id) = value.trim().parse() else { continue };
                match name {
                    "prog_id" => objects.programs.insert(id),
                    "map_id" => objects.maps.insert(id),
                    "link_id" => objects.links.insert(id),
                    _ => continue,
                };
            }
        }
        objects
    }

    /// Everything that the kernel has now.
    pub fn of_system() -> Result<Self> {
        let ids = |kind| Ok::<_, anyhow::Error>(list::<Numbered>(kind)?.into_iter().map(|object| object.id).collect());
        Ok(Self { programs: ids("prog")?, maps: ids("map")?, links: ids("link")? })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those that are in both.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let common = |a: &BTreeSet<u32>, b: &BTreeSet<u32>| a.intersection(b).copied().collect();
        Self {
            programs: common(&self.programs, &other.programs),
            maps: common(&self.maps, &other.maps),
            links: common(&self.links, &other.links),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }
}

impl fmt::Display for BpfObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "programs {:?}, maps {:?}, links {:?}", self.programs, self.maps, self.links)
    }
}

/// Ids of the links that are attached to the network namespace with this inode.
pub(crate) fn links_in_namespace(inode: u64) -> Result<BTreeSet<u32>> {
    Ok(list::<LinkShown>("link")?
        .into_iter()
        .filter(|link| link.netns_ino == Some(inode))
        .map(|link| link.id)
        .collect())
}

/// What an agent could have changed in the calling thread's namespace: addresses, routes, rules, packet filters, traffic
/// control. Sorted lines, without lifetimes and counters, so that two states can be compared.
pub(crate) fn network_state() -> Result<BTreeSet<String>> {
    let shown: [(&str, &[&str]); 7] = [
        ("ip", &["-o", "addr", "show"]),
        ("ip", &["-4", "route", "show", "table", "all"]),
        ("ip", &["-6", "route", "show", "table", "all"]),
        ("ip", &["-4", "rule", "show"]),
        ("ip", &["-6", "rule", "show"]),
        ("tc", &["qdisc", "show"]),
        ("nft", &["list", "tables"]),
    ];
    let mut lines = BTreeSet::new();
    for (program, arguments) in shown {
        for line in command::run(program, arguments, "")?.lines() {
            // The lab's own: a link that is cut or loses packets.
            if line.starts_with("table netdev sl") {
                continue;
            }
            let stable = line.split(" valid_lft ").next().unwrap_or(line).split(" expires ").next().unwrap_or(line);
            lines.insert(format!("{program} {}: {}", arguments.join(" "), stable.trim()));
        }
    }
    Ok(lines)
}

/// What the second state has more and less than the first, a line each.
pub(crate) fn differences(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let added = after.difference(before).map(|line| format!("+ {line}"));
    let missing = before.difference(after).map(|line| format!("- {line}"));
    added.chain(missing).collect()
}

#[derive(Deserialize)]
struct Numbered {
    id: u32,
}

#[derive(Deserialize)]
struct LinkShown {
    id: u32,
    netns_ino: Option<u64>,
}

/// What `bpftool` shows of one kind of objects: `prog`, `map` or `link`.
pub(crate) fn list<T: for<'de> Deserialize<'de>>(kind: &str) -> Result<Vec<T>> {
    // It gives up where an object goes between its being listed and its being looked at: other labs come and go.
    const ATTEMPTS: u32 = 20;
    let show = || command::run("bpftool", &["--json", kind, "show"], "");
    let mut shown = show();
    for _ in 1..ATTEMPTS {
        if shown.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        shown = show();
    }
    let text = shown?;
    serde_json::from_str(&text).with_context(|| format!("reading what `bpftool {kind} show` printed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_came_and_what_went() {
        let state = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<BTreeSet<_>>();
        let found = differences(&state(&["a", "b"]), &state(&["b", "c"]));
        assert_eq!(found, ["+ c", "- a"]);
    }

    #[test]
    fn a_process_without_bpf_holds_none() {
        assert!(BpfObjects::of_process(std::process::id()).is_empty());
    }
}
