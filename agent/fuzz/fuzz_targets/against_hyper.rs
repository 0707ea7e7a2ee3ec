#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_agent_fuzz::against_hyper(data));
