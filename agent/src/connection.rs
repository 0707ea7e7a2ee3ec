//! One steered connection: who called whom, by which rules, and how it is told when a side breaks off.
//!
//! Runs as one task per connection in the agent's thread, in the pod's network namespace. Owns the choice between a
//! rule for all TCP, HTTP rules and none; the reading of HTTP is [`crate::http1`]'s and `http2`'s.

use std::{io, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use sluice_protocol::{
    duplex::Duplex as _,
    join::join,
    rules::{
        OnUnavailable,
        matcher::{Fits, Request, Rule, RuleSet},
    },
    stream::{Kind, Open},
};
use tokio_util::sync::CancellationToken;

use crate::{
    dialer::{AppDialer, DialError},
    http1,
    hub::Hub,
    insertion::{Inserted, Position},
    metrics::{ConnectionMode, Decision, Metrics},
    socket::Socket,
    wiretap::{ConnectionTaps, Wiretaps},
};

/// Why a connection ended before both sides had sent their last byte.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The caller reset it, or cannot be written to.
    #[error("the caller broke off")]
    Caller(#[source] io::Error),
    /// The app reset it, or cannot be written to.
    #[error("the app broke off")]
    App(#[source] io::Error),
    /// The app does not take connections.
    #[error("the app cannot be reached")]
    NoApp(#[source] DialError),
    /// The developer's side broke off in the middle of an answer.
    #[error("the client broke off")]
    Laptop(#[source] io::Error),
    /// HTTP/2 failed as a whole on the caller's side.
    #[error("HTTP/2 with the caller failed")]
    Http2(#[source] h2::Error),
}

/// What a client is told when a stream is opened for the connection of `peer` to `destination`.
pub(crate) fn opening(rule: &Rule, kind: Kind, peer: SocketAddr, destination: SocketAddr) -> Open {
    Open { intercept: rule.intercept.name.clone(), kind, port: destination.port(), peer, destination, copy: false }
}

/// What all connections of an agent share.
#[derive(Debug)]
pub struct Shared {
    /// The rules in force; replaced as a whole.
    pub rules: ArcSwap<RuleSet>,
    /// The clients that are connected.
    pub hub: Arc<Hub>,
    /// The way to the app.
    pub dialer: AppDialer,
    /// What is counted.
    pub metrics: Metrics,
    /// Copies that are under way.
    pub wiretaps: Wiretaps,
    /// Cancelled when the agent is being stopped: what can ask its peers to come again elsewhere does.
    pub stopping: CancellationToken,
}

/// A caller's connection that the agent serves: one that the kernel steered to it, or one that it was inserted into.
#[derive(Debug)]
pub(crate) struct Steered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) caller: Socket,
    /// Who called.
    pub(crate) peer: SocketAddr,
    /// Whom it called.
    pub(crate) destination: SocketAddr,
    /// The port of `destination`, by which rules are found.
    pub(crate) port: u16,
    /// The app's end, where it is there already.
    pub(crate) app: Option<Socket>,
    /// Where in the exchange of requests and answers the connection is.
    pub(crate) position: Position,
    /// The way back, where the agent was inserted.
    pub(crate) inserted: Option<Box<Inserted>>,
}

// === impl Steered ===

impl Steered {
    /// Serves it until it ends, whatever its port's rules are.
    pub(crate) async fn serve(mut self) -> Result<(), End> {
        self.shared.metrics.steered(self.port);
        let (mut all_tcp, mut http, mut copied) = (None, false, false);
        if let Some(rules) = self.shared.rules.load().port(self.port) {
            (all_tcp, http) = (rules.all_tcp().cloned(), rules.has_http());
            if !rules.tcp_wiretaps().is_empty() {
                copied = true;
                let open = |rule: &Rule| self.open(rule, Kind::Tcp);
                let taps = ConnectionTaps::new(&self.shared, rules.tcp_wiretaps(), open);
                self.caller.copy_to(taps);
            }
        }
        let metrics = &self.shared.metrics;
        match all_tcp {
            Some(rule) => {
                metrics.connection(ConnectionMode::Tcp);
                Box::pin(self.divert_all(&rule)).await
            }
            None if http => {
                metrics.connection(ConnectionMode::Http);
                Box::pin(http1::serve(self)).await
            }
            None if copied => {
                metrics.connection(ConnectionMode::Tcp);
                metrics.request(Decision::Passed);
                Box::pin(self.pass_all()).await
            }
            // The rules have gone while the connection was on its way.
            None => {
                metrics.connection(ConnectionMode::Passed);
                Box::pin(self.pass_all()).await
            }
        }
    }

    /// The HTTP rules of the port that `request` fits, of those in force now.
    pub(crate) fn decide(&self, request: &impl Request) -> Fits {
        self.shared.rules.load().port(self.port).map(|rules| rules.decide(request)).unwrap_or_default()
    }

    /// Connects to the app; where it takes no connection, the caller gets the reset that the app's kernel would send.
    pub(crate) async fn connect_app(&mut self) -> Result<Socket, End> {
        if let Some(app) = self.app.take() {
            return Ok(app);
        }
        let connected = self.shared.dialer.connect(self.destination).await;
        connected.map(Socket::new).map_err(|error| {
            self.shared.metrics.app_unreachable();
            self.caller.abort();
            End::NoApp(error)
        })
    }

    /// [`opening`] for this connection.
    pub(crate) fn open(&self, rule: &Rule, kind: Kind) -> Open {
        opening(rule, kind, self.peer, self.destination)
    }

    async fn divert_all(mut self, rule: &Rule) -> Result<(), End> {
        let open = self.open(rule, Kind::Tcp);
        match self.shared.hub.open(rule.intercept.client.key_hash, open, &[]).await {
            Ok(mut laptop) => {
                self.shared.metrics.rule(rule, Decision::Diverted);
                join(&mut self.caller, &mut laptop).await;
                Ok(())
            }
            Err(why) => {
                tracing::debug!(intercept = rule.intercept.name, peer = %self.peer, "client unavailable: {why}");
                match rule.intercept.on_unavailable {
                    OnUnavailable::PassThrough => {
                        self.shared.metrics.rule(rule, Decision::UnavailablePassed);
                        self.pass_all().await
                    }
                    OnUnavailable::Reject => {
                        self.shared.metrics.rule(rule, Decision::Rejected);
                        self.caller.abort();
                        Ok(())
                    }
                }
            }
        }
    }

    async fn pass_all(mut self) -> Result<(), End> {
        let mut app = self.connect_app().await?;
        join(&mut self.caller, &mut app).await;
        Ok(())
    }
}
