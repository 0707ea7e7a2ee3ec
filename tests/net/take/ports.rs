//! a01, a02: whole ports, one or several, under the same number or another one on the laptop.

use anyhow::{Result, ensure};
use sluice_tests::{
    Agent, Client,
    peers::{
        http1::Http1App,
        raw::{RawApp, RawCaller, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{SOON, any, asked};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a01_all_tcp_on_a_port_goes_to_the_laptop_and_back_to_the_app() -> Result<()> {
    let stage = Stage::new("a01_port")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let _apps = [Http1App::start(pod, any(8080), "pod")?, Http1App::start(pod, any(8081), "pod")?];
    let _local = Http1App::start(laptop, any(8080), "laptop")?;

    let agent = Agent::start(pod, &Rule::file(&[])).await?;
    ensure!(!agent.status().await?.kernel.attached, "nothing is intercepted, and the program is attached");
    ensure!(asked(caller, pod.at(8080), OTHER).await? == "pod");

    agent.set_rules(&Rule::file(&[stage.tcp("a01", &[8080])])).await?;
    let _client = Client::start(laptop, &agent, &stage.key, &["8080"]).await?;
    for _ in 0..10 {
        for (header, to) in [(OTHER, pod.at(8080)), (MATCHING, pod.at_v6(8080)?)] {
            ensure!(asked(caller, to, header).await? == "laptop");
        }
        ensure!(asked(caller, pod.at(8081), MATCHING).await? == "pod", "a port that was not asked for");
    }
    ensure!(agent.counter("diverted").await? == 20 && agent.counter("passed").await? == 0);

    agent.set_rules(&Rule::file(&[])).await?;
    for to in [pod.at(8080), pod.at_v6(8080)?, pod.at(8081)] {
        ensure!(asked(caller, to, MATCHING).await? == "pod", "{to} after the rule was removed");
    }
    ensure!(!agent.status().await?.kernel.attached, "nothing is intercepted any more, and the program is attached");
    ensure!(agent.terminate().await?.success());
    ensure!(asked(caller, pod.at(8080), MATCHING).await? == "pod", "after the agent has ended");
    pod.nothing_left(SOON).await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a01_bytes_of_no_protocol_at_all_are_taken_too() -> Result<()> {
    const NOISE: &[u8] = b"\x00\xff\x16\x03\r\n\r\nGET \n\n";
    let stage = Stage::new("a01_bytes")?;
    let app = RawApp::start(&stage.pod, any(7), Script::new().send(b"pod speaks first").half_close())?;
    let _other = RawApp::start(&stage.pod, any(8), Script::new().send(b"pod speaks first").half_close())?;
    let local = RawApp::start(&stage.laptop, any(7), Script::new().send(b"laptop speaks first").half_close())?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.tcp("a01", &[7])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["7"]).await?;

    for (port, first) in [(7, "laptop speaks first"), (8, "pod speaks first")] {
        let script = Script::new().read(first.len()).send(NOISE).half_close();
        let caller = RawCaller::connect(&stage.caller, stage.pod.at(port), script).await?;
        let seen = caller.ended(SOON).await?;
        ensure!(seen.bytes == first.as_bytes(), "port {port}: {:?}", String::from_utf8_lossy(&seen.bytes));
    }
    ensure!(local.ended(0, SOON).await?.bytes == NOISE);
    ensure!(app.connections().is_empty(), "the app has seen the connection as well");
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a02_ports_have_other_numbers_on_the_laptop() -> Result<()> {
    let stage = Stage::new("a02")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let ports = [8080, 9090, 7070, 6060, 5050];
    let _apps: Vec<_> = ports.iter().map(|&port| Http1App::start(pod, any(port), "pod")).collect::<Result<_>>()?;
    let locals = [(10121, "local 10121"), (9090, "local 9090"), (10070, "local 10070")];
    let _locals: Vec<_> =
        locals.iter().map(|&(port, name)| Http1App::start(laptop, any(port), name)).collect::<Result<_>>()?;
    // Remote ports as they are, and one that is only in a rule: the user has named none of them as local.
    let unnamed: Vec<_> =
        [8080, 7070, 6060].iter().map(|&port| Http1App::start(laptop, any(port), "wrong")).collect::<Result<_>>()?;

    // Several ports in one rule, several rules for one client, two of them on the same port.
    let rules = [stage.tcp("both", &[8080, 9090]), stage.header("some", &[7070, 6060]), stage.header("again", &[7070])];
    let agent = Agent::start(pod, &Rule::file(&rules)).await?;
    let _client = Client::start(laptop, &agent, &stage.key, &["10121:8080", "9090", "10070:7070"]).await?;
    for (port, header, by) in [
        (8080, OTHER, "local 10121"),
        (9090, OTHER, "local 9090"),
        (7070, MATCHING, "local 10070"),
        (7070, OTHER, "pod"),
        // In a rule, but the client was not told of a local port for it.
        (6060, MATCHING, "pod"),
        (6060, OTHER, "pod"),
        // In no rule.
        (5050, MATCHING, "pod"),
    ] {
        for to in [pod.at(port), pod.at_v6(port)?] {
            let answered = asked(caller, to, header).await?;
            ensure!(answered == by, "{to} with {header:?}: {answered} instead of {by}");
        }
    }
    let reached: usize = unnamed.iter().map(|app| app.connections().len()).sum();
    ensure!(reached == 0, "a local port that the user did not name was reached");

    // One port fewer: the others stay taken.
    agent.set_rules(&Rule::file(&[stage.tcp("both", &[8080]), stage.header("some", &[7070])])).await?;
    for (port, header, by) in [(8080, OTHER, "local 10121"), (9090, OTHER, "pod"), (7070, MATCHING, "local 10070")] {
        ensure!(asked(caller, pod.at(port), header).await? == by, "{port} after one port was given up");
    }
    stage.finish()
}
