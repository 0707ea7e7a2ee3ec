//! What the packet programs keep of each connection, as `bpftool` shows it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{BpfObjects, command, guard};

/// The map's name, and states of a connection, in `sluice-ebpf-common`.
const NAME: &str = "FLOWS";
const SPLIT: u32 = 2;

/// All connections that the programs of some processes know.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// How many.
    pub count: usize,
    /// Ports of their callers.
    pub callers: BTreeSet<u16>,
    /// Those in whose connections the agent is.
    pub inserted: BTreeSet<u16>,
    /// How many of each kind: their state and flags, and whether their numbers are shifted.
    pub kinds: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Map {
    id: u32,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    formatted: Formatted,
}

#[derive(Deserialize)]
struct Formatted {
    key: Key,
    value: Value,
}

#[derive(Deserialize)]
struct Key {
    caller_port: u16,
}

#[derive(Deserialize)]
struct Value {
    state: u32,
    flags: u32,
    din: u32,
    dout: u32,
    time_in: u32,
    time_out: u32,
}

/// What `bpftool` prints of each map of flows that is wanted, by its number.
fn dumps(wanted: impl Fn(u32) -> bool) -> Result<Vec<(u32, String)>> {
    let maps = guard::list::<Map>("map")?.into_iter();
    maps.filter(|map| map.name.as_deref() == Some(NAME) && wanted(map.id))
        .map(|map| Ok((map.id, command::run("bpftool", &["--json", "map", "dump", "id", &map.id.to_string()], "")?)))
        .collect()
}

// === impl Flows ===

impl Flows {
    /// Those of a process.
    ///
    /// # Errors
    /// When `bpftool` does not tell.
    pub fn of(pid: u32) -> Result<Self> {
        Self::within(&BpfObjects::of_process(pid).maps)
    }

    /// Those that a process has and another one has not.
    ///
    /// # Errors
    /// As [`Flows::of`].
    pub fn of_one_only(pid: u32, other: u32) -> Result<Self> {
        Self::within(&(&BpfObjects::of_process(pid).maps - &BpfObjects::of_process(other).maps))
    }

    /// All that any packet program keeps of the connections of a caller's port, as text.
    ///
    /// # Errors
    /// As [`Flows::of`].
    pub fn of_port(port: u16) -> Result<String> {
        let mut found = String::new();
        for (id, text) in dumps(|_| true)? {
            let entries: Vec<serde_json::Value> = serde_json::from_str(&text)?;
            let formatted = entries.iter().filter_map(|entry| entry.get("formatted"));
            for flow in formatted.filter(|flow| flow["key"]["caller_port"] == port) {
                found += &format!("map {id}: {}\n", flow["value"]);
            }
        }
        Ok(found)
    }

    fn within(held: &BTreeSet<u32>) -> Result<Self> {
        let mut flows = Self::default();
        for (_, text) in dumps(|id| held.contains(&id))? {
            flows.read(&text).with_context(|| format!("reading what `bpftool map dump` printed: {text}"))?;
        }
        Ok(flows)
    }

    fn read(&mut self, text: &str) -> Result<()> {
        let entries: Vec<Entry> = serde_json::from_str(text)?;
        self.count += entries.len();
        for Formatted { key, value } in entries.iter().map(|entry| &entry.formatted) {
            let Value { state, flags, din, dout, time_in, time_out } = value;
            let shifted = if din | dout | time_in | time_out == 0 { "" } else { ", shifted" };
            self.callers.insert(key.caller_port);
            if *state == SPLIT {
                self.inserted.insert(key.caller_port);
            }
            *self.kinds.entry(format!("state {state}, flags {flags:#x}{shifted}")).or_default() += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_counted_and_inserted_ones_known_by_their_callers_port() {
        let entry = |port, state, [dout, time_in]: [u32; 2]| {
            format!(
                r#"{{"key":["0x00"],"value":["0x00"],"formatted":{{"key":{{"caller":[0,0,4294901760,16796938],
                "caller_port":{port},"port":8080}},"value":{{"lock":{{"val":0}},"state":{state},"flags":192,"din":0,"dout":{dout},
                "time_in":{time_in},"time_out":0}}}}}}"#
            )
        };
        let mut flows = Flows::default();
        flows.read(&format!("[{},{}]", entry(60928, 2, [0, 0]), entry(60929, 0, [1, 0]))).unwrap();
        flows.read(&format!("[{},{}]", entry(60930, 0, [0, 3]), entry(60931, 0, [0, 0]))).unwrap();
        flows.read("[]").unwrap();
        assert_eq!((flows.count, flows.inserted), (4, BTreeSet::from([60928])));
        assert_eq!(flows.callers, BTreeSet::from_iter(60928..60932));
        assert_eq!(
            flows.kinds.keys().collect::<Vec<_>>(),
            ["state 0, flags 0xc0", "state 0, flags 0xc0, shifted", "state 2, flags 0xc0"]
        );
    }
}
