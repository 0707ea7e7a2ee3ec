//! The agent goes back from a connection only if it knows all that has passed: asked of the compiled program, on a flow that is
//! written into its map. With packets it cannot be met but by chance.

use std::{fs, path::Path};

use aya::maps::{HashMap, Map, MapData};
use sluice_agent::{
    insertion::{Outcome, Programs},
    kernel::{Kernel, LoadOptions},
};
use sluice_ebpf_common::insertion::{FLAG_APP_FIN, FLAG_CALLER_FIN, FLAG_RESET, FLOWS_MAP, Flow, FlowKey, Op, State};

use crate::namespace::in_namespace;

const ID: u32 = 7;
/// Numbers of the caller wrap within what it has sent.
const FROM_CALLER: u32 = 3;
/// What the caller has got, in its own count; the app counts less, and this flow had less still when the agent came.
const TO_CALLER: u32 = 90_000;
const FROM_APP: u32 = 50_000;
const BEFORE: u32 = 10_000;

/// The maps of flows that this process has; other tests may have some as well.
fn flow_maps() -> Vec<HashMap<MapData, FlowKey, Flow>> {
    let is_map = |link: &Path| fs::read_link(link).is_ok_and(|to| to.to_string_lossy().contains("bpf-map"));
    let fds = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| Some(fd.ok()?.path()).filter(|fd| is_map(fd)));
    let info = |fd: &Path| fs::read_to_string(fd.to_string_lossy().replace("/fd/", "/fdinfo/")).ok();
    let id = |info: &str| info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
    let maps = fds.filter_map(|fd| MapData::from_id(id(&info(&fd)?)?).ok());
    let flows = maps.filter(|map| map.info().is_ok_and(|info| info.name_as_str() == Some(FLOWS_MAP)));
    flows.map(|map| Map::HashMap(map).try_into().unwrap()).collect()
}

/// What becomes of arming a flow at these numbers that the kernel knows to stand at those above.
fn armed(programs: &Programs, flags: u32, from_caller: u32, to_caller: u32, from_app: u32) -> Outcome {
    let key = FlowKey { caller: [1; 4], pod: [2; 4], caller_port: 3, port: 8080 };
    let mut flow = Flow::new(State::Split, ID);
    flow.flags = flags;
    flow.held_to = FROM_CALLER;
    flow.dout = BEFORE;
    flow.sent_end = FROM_APP + BEFORE;
    for map in &mut flow_maps() {
        map.insert(key, flow, 0).unwrap();
    }
    let (din, dout) = (FROM_CALLER.wrapping_sub(77), to_caller.wrapping_sub(from_app));
    programs.command(&key, ID, Op::Arm, &[from_caller, to_caller, din, dout, 0, 0])
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_flow_is_armed_only_where_the_agent_has_read_all_that_has_passed() {
    in_namespace(|| {
        let mut kernel = Kernel::load(LoadOptions::default()).unwrap();
        let listeners = kernel.take_listeners().unwrap();
        let programs = Programs::load(&listeners, None).unwrap();
        let armed = |flags, from_caller, from_app| armed(&programs, flags, from_caller, TO_CALLER, from_app);
        assert_eq!(armed(0, FROM_CALLER, FROM_APP), Outcome::Done);
        for behind in [1, 4, 1448] {
            assert_eq!(
                armed(0, FROM_CALLER.wrapping_sub(behind), FROM_APP),
                Outcome::Moved,
                "a request of {behind} bytes"
            );
            assert_eq!(armed(0, FROM_CALLER, FROM_APP - behind), Outcome::Moved, "{behind} bytes of the app");
        }
        for end in [FLAG_CALLER_FIN, FLAG_APP_FIN, FLAG_RESET] {
            assert_eq!(armed(end, FROM_CALLER, FROM_APP), Outcome::Moved, "an end, {end:#x}");
        }
    });
}
