//! c11: the kubelet's probes of an intercepted port are answered by the app, whatever the laptop does. In a cluster they come
//! from addresses that are exempt; here they come like any other request and are known by their user agent.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use sluice_tests::{
    Agent, Client, Host, eventually,
    peers::{
        http1::{Http1App, Http1Caller},
        http2::{Http2App, Http2Caller},
        raw::{RawApp, Script},
    },
    stage::{Rule, Stage},
};

use super::stage::{LAPTOP, POD, PORT, SECOND_PORT, SOON, on};

/// As kubelets of Kubernetes 1.37 send them.
const HTTP_PROBE: (&str, &str) = ("user-agent", "kube-probe/1.37");
const GRPC_PROBE: (&str, &str) = ("user-agent", "kube-probe/1.37 grpc-go/1.80.0");
const NO_PROBE: (&str, &str) = ("user-agent", "curl/8.0 kube-probe/1.37");

async fn over_http1(caller: &Host, pod: &Host, header: (&str, &str)) -> Result<Option<String>> {
    let mut connection = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let answer = tokio::time::timeout(SOON, connection.get("/healthz", &[header])).await;
    Ok(answer.with_context(|| format!("{header:?} is not answered"))??.answered_by().map(str::to_owned))
}

async fn over_http2(caller: &Host, pod: &Host, header: (&str, &str)) -> Result<Option<String>> {
    let connection = Http2Caller::connect(caller, pod.at(SECOND_PORT)).await?;
    let headers = [header, ("content-type", "application/grpc"), ("te", "trailers")];
    let call = connection.call("POST", "/grpc.health.v1.Health/Check", &headers, Bytes::from_static(&[0; 5]));
    let answer = tokio::time::timeout(SOON, call).await.with_context(|| format!("{header:?} is not answered"))??;
    Ok(answer.answered_by().map(str::to_owned))
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c11_probes_are_answered_by_the_app_unless_a_rule_includes_them() -> Result<()> {
    let stage = Stage::new("c11")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let _apps = (Http1App::start(pod, on(PORT), POD)?, Http2App::start(pod, on(SECOND_PORT), POD)?);
    let all = || stage.tcp("all", &[PORT, SECOND_PORT]).with("match", json!({"path": {"value": "/"}}));
    let agent = Agent::start(pod, &Rule::file(&[all()])).await?;
    let _client = Client::start(laptop, &agent, &stage.key, &["8080", "9090"]).await?;

    // At a breakpoint: connections are taken, and nothing is answered.
    let breakpoint = [PORT, SECOND_PORT].map(|port| RawApp::start(laptop, on(port), Script::new().hold()));
    let breakpoint = breakpoint.into_iter().collect::<Result<Vec<_>>>()?;
    let mut stuck = Http1Caller::connect(caller, pod.at(PORT)).await?;
    stuck.send(b"GET / HTTP/1.1\r\nhost: a\r\nuser-agent: curl/8.0 kube-probe/1.37\r\n\r\n").await?;
    for _ in 0..5 {
        ensure!(over_http1(caller, pod, HTTP_PROBE).await?.as_deref() == Some(POD));
        ensure!(over_http2(caller, pod, GRPC_PROBE).await?.as_deref() == Some(POD));
        // A TCP probe only connects.
        drop(caller.connect(pod.at(PORT)).await?);
    }
    ensure!(agent.counter("passed").await? == 10);
    drop((stuck, breakpoint));

    let start = || async {
        anyhow::Ok((Http1App::start(laptop, on(PORT), LAPTOP)?, Http2App::start(laptop, on(SECOND_PORT), LAPTOP)?))
    };
    let _locals = eventually(SOON, "the ports are free again", start).await?;
    ensure!(over_http1(caller, pod, NO_PROBE).await?.as_deref() == Some(LAPTOP));
    ensure!(over_http2(caller, pod, NO_PROBE).await?.as_deref() == Some(LAPTOP));
    ensure!(over_http1(caller, pod, HTTP_PROBE).await?.as_deref() == Some(POD));
    ensure!(over_http2(caller, pod, GRPC_PROBE).await?.as_deref() == Some(POD));

    agent.set_rules(&Rule::file(&[all().with("includeProbes", json!(true))])).await?;
    ensure!(over_http1(caller, pod, HTTP_PROBE).await?.as_deref() == Some(LAPTOP));
    ensure!(over_http2(caller, pod, GRPC_PROBE).await?.as_deref() == Some(LAPTOP));
    stage.finish()
}
