//! Which way each port is intercepted is told with its reason, and what cannot be is refused.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{
    Agent,
    stage::{Rule, Stage},
};

use super::stage::{PORT, SECOND_PORT};

/// That the agent tells these ways, with the port and the reason of each, and no others.
async fn tells(agent: &Agent, expected: &[(u16, &str, &str)]) -> Result<()> {
    let ways = agent.status().await?.rules.ways;
    let told: Vec<_> =
        ways.iter().map(|port| (port.port, &*port.way, port.why.as_deref().unwrap_or_default())).collect();
    ensure!(told == expected, "{ways:?} and not {expected:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn the_way_of_each_port_is_told_and_insertion_without_conditions_is_refused() -> Result<()> {
    let stage = Stage::new("ways")?;
    let http = || stage.header("http", &[SECOND_PORT]);
    let both = Rule::file(&[stage.tcp("tcp", &[PORT]), http()]);
    let agent = Agent::builder(&stage.pod).argument("--steering=auto").start(&both).await?;
    tells(&agent, &[(PORT, "lookup", "all TCP"), (SECOND_PORT, "insertion", "")]).await?;
    agent.terminate().await?;
    let agent = Agent::builder(&stage.pod).argument("--steering=lookup").start(&both).await?;
    let usual = "this agent's way unless a rule asks for another";
    tells(&agent, &[(PORT, "lookup", "all TCP"), (SECOND_PORT, "lookup", usual)]).await?;
    agent.set_rules(&Rule::file(&[http().with("steering", json!("lookup"))])).await?;
    tells(&agent, &[(SECOND_PORT, "lookup", "asked for")]).await?;
    agent.set_rules(&Rule::file(&[http().with("steering", json!("insertion"))])).await?;
    tells(&agent, &[(SECOND_PORT, "insertion", "")]).await?;

    let all_tcp = format!(
        "exempt: []\nintercepts:\n- name: tcp\n  ports: [{{port: {PORT}}}]\n  steering: insertion\n  client: {{keyHash: \"{}\"}}\n",
        stage.key.hash()
    );
    let said = agent.set_bad_rules(&all_tcp).await?;
    ensure!(said.contains("line 3: intercept \"tcp\"") && said.contains("insertion needs HTTP conditions"), "{said}");
    ensure!(said.contains("add a `match`, or leave out `steering`"), "{said}");
    tells(&agent, &[(SECOND_PORT, "insertion", "")]).await?;
    stage.finish()
}
