//! A developer's own server: on the machine, or in the node's network where the client is too.

use std::{net::SocketAddr, process::Stdio};

use anyhow::{Context as _, Result, bail};
use sluice_tests::{
    binaries,
    cluster::Cluster,
    eventually,
    peers::http1::{Answer, Http1App},
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
};

/// A local HTTP server that answers everything with its name.
#[derive(Debug)]
pub(crate) struct Laptop {
    address: SocketAddr,
    app: App,
}

#[derive(Debug)]
enum App {
    Here(Http1App),
    Nearby(#[expect(dead_code, reason = "killed when it is dropped")] Child),
}

// === impl Laptop ===

impl Laptop {
    /// Listens on a free port of the machine.
    pub(crate) async fn start(name: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let app = Http1App::over(listener, name, Answer::identity)?;
        Ok(Self { address, app: App::Here(app) })
    }

    /// Listens on a port of the node, for a client that runs there. `add` it is, so only `POST /sum` is answered.
    pub(crate) async fn nearby(cluster: &Cluster, name: &str) -> Result<Self> {
        // Free on this machine is as good as any guess: on the node nobody listens on high ports.
        let port = || Ok::<_, std::io::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let address = SocketAddr::from(([127, 0, 0, 1], port()?));
        let mut command = Command::from(cluster.command(binaries::find("add")?)?);
        command.args(["--signed", name, "--http", &address.to_string(), "--grpc"]);
        command.arg(format!("127.0.0.1:{}", port()?)).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().context("starting `add`")?;
        eventually(super::stage::LIMIT, "the local server listens", || cluster.connect(address)).await?;
        Ok(Self { address, app: App::Nearby(child) })
    }

    /// How many requests have come so far.
    pub(crate) fn requests(&self) -> Result<usize> {
        match &self.app {
            App::Here(app) => Ok(app.requests().len()),
            App::Nearby(_) => bail!("a server of its own does not tell"),
        }
    }

    /// `LOCAL:REMOTE` for `--port`.
    pub(crate) fn port(&self, remote: &str) -> String {
        format!("{}:{remote}", self.address.port())
    }
}
