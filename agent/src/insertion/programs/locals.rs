//! The local ports that the packet programs know, and where in the kernel's arrays they are.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData, MapError};
use sluice_ebpf_common::insertion::{Asked, LOCALS_MAP, LOCALS_MAX, Local, SLOTS_MAP, SLOTS_ROW};

use super::ProgramsError;

/// Nothing at this place.
const EMPTY: Local = Local::new(0, 0, 0, 0, 0, Asked::NOTHING);

/// See the module.
pub(super) struct Locals {
    slots: Array<MapData, [u16; SLOTS_ROW]>,
    entries: Array<MapData, Local>,
    taken: BTreeMap<u16, u16>,
}

/// The row of a port, and its place there.
fn place(port: u16) -> (u32, usize) {
    let port = usize::from(port);
    #[expect(clippy::cast_possible_truncation, reason = "a port is shorter")]
    ((port / SLOTS_ROW) as u32, port % SLOTS_ROW)
}

fn failed(map: &'static str) -> impl Fn(MapError) -> ProgramsError {
    move |source| ProgramsError::Map { map, source }
}

// === impl Locals ===

impl Locals {
    pub(super) const fn new(slots: Array<MapData, [u16; SLOTS_ROW]>, entries: Array<MapData, Local>) -> Self {
        Self { slots, entries, taken: BTreeMap::new() }
    }

    /// What is known of a port.
    pub(super) fn get(&self, port: u16) -> Option<Local> {
        self.entries.get(&u32::from(*self.taken.get(&port)?), 0).ok()
    }

    /// All that there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = Local> + '_ {
        self.taken.keys().filter_map(|&port| self.get(port))
    }

    /// Notes or changes one.
    ///
    /// # Errors
    /// When there is no room, or a map cannot be changed.
    pub(super) fn insert(&mut self, port: u16, local: Local) -> Result<(), ProgramsError> {
        if let Some(&slot) = self.taken.get(&port) {
            return self.entries.set(u32::from(slot), local, 0).map_err(failed(LOCALS_MAP));
        }
        let free = |slot: &u16| self.taken.values().all(|taken| taken != slot);
        let slot = (1..).take_while(|&slot| u32::from(slot) < LOCALS_MAX).find(free);
        let slot = slot.ok_or(ProgramsError::TooManyPorts { most: (LOCALS_MAX - 1) / 3 })?;
        self.entries.set(u32::from(slot), local, 0).map_err(failed(LOCALS_MAP))?;
        self.point(port, slot)?;
        self.taken.insert(port, slot);
        Ok(())
    }

    /// Forgets one.
    ///
    /// # Errors
    /// When a map cannot be changed.
    pub(super) fn remove(&mut self, port: u16) -> Result<(), ProgramsError> {
        let Some(&slot) = self.taken.get(&port) else { return Ok(()) };
        self.point(port, 0)?;
        self.entries.set(u32::from(slot), EMPTY, 0).map_err(failed(LOCALS_MAP))?;
        self.taken.remove(&port);
        Ok(())
    }

    fn point(&mut self, port: u16, slot: u16) -> Result<(), ProgramsError> {
        let (row, column) = place(port);
        let mut ports = self.slots.get(&row, 0).map_err(failed(SLOTS_MAP))?;
        ports[column] = slot;
        self.slots.set(row, ports, 0).map_err(failed(SLOTS_MAP))
    }
}
