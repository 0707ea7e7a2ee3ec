//! How long `sluice intercept add` takes until it intercepts.

use std::{
    collections::BTreeSet,
    fmt, net,
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use super::{LIMIT, WORKLOAD, report::Row};
use crate::{
    binaries,
    cluster::{Cluster, Namespace},
    eventually, product,
};

/// The way of a client within reach of the pods, as the client calls it.
const DIRECT: &str = "direct";

/// Where the client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the node's network, where pods are within reach.
    Node,
    /// On this machine, from where there may be no other way than through the API server.
    Machine,
}

/// What is needed to intercept.
#[derive(Debug)]
pub(super) struct Adding<'a> {
    cluster: &'a Cluster,
    namespace: &'a Namespace,
    /// In place of the user's configuration folder: keys are made there.
    folder: TempDir,
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "in the node's network",
            Self::Machine => "from this machine",
        })
    }
}

// === impl Adding ===

impl<'a> Adding<'a> {
    pub(super) fn new(cluster: &'a Cluster, namespace: &'a Namespace) -> Result<Self> {
        Ok(Self { cluster, namespace, folder: tempfile::tempdir()? })
    }

    /// Intercepts so many times, and once before: pods that have just become ready, and the command in nobody's cache, are
    /// not what is meant.
    pub(super) async fn measure(&self, place: Place, replicas: u32, runs: usize) -> Result<Row> {
        let (mut local, port) = self.local(place).await?;
        let mut seen = self.once(place, replicas, port).await?.1;
        let mut times = Vec::new();
        for _ in 0..runs {
            let (took, ways) = self.once(place, replicas, port).await?;
            times.push(took);
            seen.extend(ways);
        }
        local.kill().await.context("ending the local server")?;
        let way = seen.into_iter().collect::<Vec<_>>().join(", ");
        ensure!(place == Place::Machine || way == DIRECT, "beside the pods the way was {way:?}");
        let case = if way == DIRECT { "intercept-add" } else { "intercept-add-forwarded" };
        Ok(Row::of(case, replicas, way, &times))
    }

    /// One run, from the start of the process until its summary is there, and its end; and the ways to the pods.
    async fn once(&self, place: Place, replicas: u32, port: u16) -> Result<(Duration, BTreeSet<String>)> {
        let mut command = match place {
            Place::Node => Command::from(self.cluster.command(binaries::find("sluice")?)?),
            Place::Machine => Command::from(product::sluice(self.cluster)?),
        };
        command.env("KUBECONFIG", self.cluster.kubeconfig()).env("XDG_CONFIG_HOME", self.folder.path());
        command.args(["intercept", "add", "bench", "--workload", &format!("Deployment/{WORKLOAD}")]);
        command.args(["--port", &format!("{port}:http"), "--namespace", self.namespace.name(), "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let began = Instant::now();
        let mut child = command.spawn().context("starting sluice")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut summary = String::new();
        let ready = async {
            // The document's last line is the only one of its kind that is not indented.
            while let Some(line) = lines.next_line().await? {
                summary.push_str(&line);
                summary.push('\n');
                if line == "}" {
                    return Ok(true);
                }
            }
            Ok::<_, anyhow::Error>(false)
        };
        let ready = tokio::time::timeout(LIMIT, ready).await;
        let took = began.elapsed();
        if !matches!(ready, Ok(Ok(true))) {
            let _ = child.start_kill();
            let mut said = String::new();
            child.stderr.take().context("no errors")?.read_to_string(&mut said).await?;
            bail!("sluice intercept add did not become ready: {summary}{said}");
        }
        let ways = ways(&summary, replicas)?;
        let pid = i32::try_from(child.id().context("the client has ended by itself")?)?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        let status = tokio::time::timeout(LIMIT, child.wait()).await.context("the client does not end")??;
        ensure!(status.success(), "sluice intercept add: {status}");
        Ok((took, ways))
    }

    /// The user's own server, beside the client.
    async fn local(&self, place: Place) -> Result<(Child, u16)> {
        // Free on this machine is as good as any guess: on the node nobody listens on high ports.
        let free = || Ok::<_, std::io::Error>(net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let (http, grpc) = (free()?, free()?);
        let program = binaries::find("add")?;
        let mut command = match place {
            Place::Node => Command::from(self.cluster.command(program)?),
            Place::Machine => Command::new(program),
        };
        command.args(["--signed", "laptop", "--http", &format!("127.0.0.1:{http}")]);
        command.args(["--grpc", &format!("127.0.0.1:{grpc}")]).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.kill_on_drop(true).spawn().context("starting add")?;
        let address = SocketAddr::from(([127, 0, 0, 1], http));
        eventually(LIMIT, "the local server listens", || async {
            match place {
                Place::Node => self.cluster.connect(address).await,
                Place::Machine => Ok(TcpStream::connect(address).await?),
            }
        })
        .await?;
        Ok((child, http))
    }
}

/// The ways to the pods, all of which must be there. The client may hear from the cluster that a pod is connected before
/// its own end of the connection is ready: then it does not tell the way.
fn ways(summary: &str, replicas: u32) -> Result<BTreeSet<String>> {
    let view: Value = serde_json::from_str(summary).with_context(|| format!("no summary: {summary}"))?;
    ensure!(view["state"] == "Ready" && view["podsReady"] == replicas && view["podsTotal"] == replicas, "{view}");
    let pods = view["pods"].as_array().context("no pods")?.iter();
    Ok(pods.filter_map(|pod| pod["way"].as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_tells_the_ways() {
        let view = |ways: &[Option<&str>]| {
            let pods: Vec<_> = ways.iter().map(|way| json!({ "way": way })).collect();
            json!({ "state": "Ready", "podsReady": 2, "podsTotal": 2, "pods": pods }).to_string()
        };
        let seen = |found: &[Option<&str>]| ways(&view(found), 2).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(seen(&[Some("direct"), Some("direct")]), ["direct"]);
        assert_eq!(seen(&[Some("port-forward"), Some("direct")]), ["direct", "port-forward"]);
        assert_eq!(seen(&[Some("direct"), None]), ["direct"]);
        assert!(ways(&view(&[Some("direct")]), 1).is_err());
        assert!(ways("{", 1).is_err());
    }
}
