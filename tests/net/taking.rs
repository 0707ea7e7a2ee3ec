//! Taking traffic: what is asked for reaches the laptop, everything else reaches the app.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use sluice_tests::{
    Agent, Client, ClientKey, Lab,
    peers::http1::{Http1App, Http1Caller},
};

fn on(port: u16) -> SocketAddr {
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a01_all_tcp_on_a_port_goes_to_the_laptop_and_back_to_the_app() -> Result<()> {
    let lab = Lab::new("a01")?;
    let (caller, pod, laptop) = (lab.host("caller").build()?, lab.host("pod").build()?, lab.host("laptop").build()?);
    lab.connect(&caller, &pod)?;
    lab.connect(&laptop, &pod)?;
    let _app = Http1App::start(&pod, on(8080), "app")?;
    let _other_port = Http1App::start(&pod, on(8081), "app")?;
    let _local = Http1App::start(&laptop, on(8080), "laptop")?;
    let answered_by = async |port| {
        let response = Http1Caller::connect(&caller, pod.at(port)).await?.get("/", &[]).await?;
        anyhow::Ok(response.answered_by().unwrap_or("nobody").to_owned())
    };

    let key = ClientKey::new(&lab, "laptop")?;
    let hash = key.hash();
    let rules = format!("intercepts: [{{name: a01, ports: [{{port: 8080}}], client: {{keyHash: '{hash}'}}}}]");
    let agent = Agent::start(&pod, &rules).await?;
    ensure!(answered_by(8080).await? == "app", "without a client the app answers");
    let _client = Client::start(&laptop, &agent, &key, &["8080"]).await?;
    for _ in 0..20 {
        ensure!(answered_by(8080).await? == "laptop");
        ensure!(answered_by(8081).await? == "app", "a port that was not asked for");
    }

    agent.set_rules("intercepts: []").await?;
    ensure!(answered_by(8080).await? == "app");
    ensure!(!agent.status().await?.kernel.attached, "nothing is intercepted, and the program is still attached");
    agent.kill();
    pod.nothing_left(std::time::Duration::from_secs(5)).await?;
    lab.finish()
}
