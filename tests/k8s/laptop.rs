//! A developer's own `add`, on the machine.

use std::net::SocketAddr;

use anyhow::Result;
use sluice_tests::peers::http1::Http1App;
use tokio::net::TcpListener;

/// A local HTTP server that answers everything with its name.
#[derive(Debug)]
pub struct Laptop {
    address: SocketAddr,
    app: Http1App,
}

// === impl Laptop ===

impl Laptop {
    /// Listens on a free port.
    pub async fn start(name: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        Ok(Self { address, app: Http1App::over(listener, name, sluice_tests::peers::http1::Answer::identity)? })
    }

    /// `LOCAL:REMOTE` for `--port`.
    pub fn port(&self, remote: &str) -> String {
        format!("{}:{remote}", self.address.port())
    }

    /// How many requests it got.
    pub fn requests(&self) -> usize {
        self.app.requests().len()
    }
}
