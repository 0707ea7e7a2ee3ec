//! HTTP/2 towards developers' processes: one stream through the tunnel per caller's connection and intercept, opened
//! with the first request that fits.

use std::{collections::BTreeMap, future::poll_fn, sync::Arc};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use sluice_protocol::{rules::matcher::Rule, stream::Kind};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Mutex,
};
use tokio_util::task::AbortOnDropHandle;

use super::{SteeredBy, client};
use crate::hub::Unavailable;

/// The clients that requests of one connection have gone to, by intercept.
#[derive(Debug, Default)]
pub(super) struct Laptops(Mutex<BTreeMap<String, Arc<Mutex<Slot>>>>);

#[derive(Debug, Default)]
struct Slot {
    current: Option<Laptop>,
    /// Connections whose server said goodbye, until their last answers have ended.
    leaving: Vec<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Laptop {
    requests: SendRequest<Bytes>,
    /// Drives the connection; it ends when that does.
    driver: AbortOnDropHandle<()>,
}

// === impl Laptops ===

impl Laptops {
    /// With a connection that is there already.
    pub(super) fn with<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        rule: &Rule,
        requests: SendRequest<Bytes>,
        connection: Connection<S>,
    ) -> Self {
        let laptop = Laptop::new(requests, connection);
        let slot = Arc::new(Mutex::new(Slot { current: Some(laptop), leaving: Vec::new() }));
        Self(Mutex::new(BTreeMap::from([(rule.intercept.name.clone(), slot)])))
    }

    /// The connection to the client of `rule`: the one that is there, or a new one. Requests that come meanwhile wait
    /// for the same one.
    pub(super) async fn get(&self, by: &SteeredBy, rule: &Rule) -> Result<SendRequest<Bytes>, Unavailable> {
        let slot = self.0.lock().await.entry(rule.intercept.name.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        slot.leaving.retain(|driver| !driver.is_finished());
        if let Some(mut laptop) = slot.current.take().filter(|l| !l.driver.is_finished()) {
            if poll_fn(|cx| laptop.requests.poll_ready(cx)).await.is_ok() {
                return Ok(slot.current.insert(laptop).requests.clone());
            }
            slot.leaving.push(laptop.driver);
        }
        let open = by.open(rule, Kind::Http);
        let stream = by.shared.hub.open(rule.intercept.client.key_hash, open, &[]).await?;
        let (requests, connection) = client().handshake(stream).await.map_err(|_| Unavailable::Lost)?;
        slot.current = Some(Laptop::new(requests.clone(), connection));
        Ok(requests)
    }
}

// === impl Laptop ===

impl Laptop {
    fn new<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        requests: SendRequest<Bytes>,
        connection: Connection<S>,
    ) -> Self {
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a client's HTTP/2 connection broke");
            }
        });
        Self { requests, driver: AbortOnDropHandle::new(driver) }
    }
}
