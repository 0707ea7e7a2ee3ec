//! The agent's side of the conversation with the controller.
//!
//! Runs as one task in the agent's thread, in the pod's network namespace. Owns the connection, which it makes again for
//! as long as the agent lives. It hands rules on and never judges them, and it drops none: while the controller is away
//! the rules that are in force stay so.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use sluice_protocol::control::{
    Assignment, HEARTBEAT, LineError, Lines, PATH, Report, SILENCE, ToAgent, UID_HEADER, line,
};
use tokio::{net::TcpStream, sync::watch, time::Instant};
use tokio_rustls::TlsConnector;

/// How long connecting may take, the answer to the request included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Pause behind a conversation that failed; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Pause behind the answer of a replica that does not lead, the first [`MISDIRECTED`] times: another attempt is most
/// likely all it takes, and a pod that has just started waits for its rules.
const MISDIRECTED_PAUSE: Duration = Duration::from_millis(20);

/// See [`MISDIRECTED_PAUSE`].
const MISDIRECTED: u32 = 10;

/// Most bytes of an answer that says why not.
const MAX_REFUSAL: usize = 4 << 10;

/// Why the controller cannot be talked to at all.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address cannot be used.
    #[error("the controller's address {url:?} is none: give https://HOST:PORT")]
    Address {
        /// What was given.
        url: String,
    },
    /// No certificate to know the controller by.
    #[error("the controller's authorities cannot be used: they must be certificates in PEM")]
    Authorities,
    /// The cryptographic library cannot do what is needed.
    #[error("cannot prepare TLS")]
    Tls(#[source] rustls::Error),
}

/// Why a conversation ended. All of these are tried again.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot read the token {}", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} did not answer within {} s", CONNECT_LIMIT.as_secs())]
    Slow { address: String },
    #[error("HTTP/2 failed")]
    Http2(#[from] h2::Error),
    #[error("the controller refused: {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("the controller's rules cannot be read")]
    Line(#[from] LineError),
    #[error("the controller closed the conversation")]
    Closed,
    #[error("the controller was silent for {} s", SILENCE.as_secs())]
    Silent,
}

/// Whom to talk to, and who we are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Base address, `https://HOST:PORT`.
    pub controller: String,
    /// Certificates of the authorities that may have issued the controller's, in PEM.
    pub authorities: String,
    /// File of the token to show; read for each connection.
    pub token_file: PathBuf,
    /// The pod's uid.
    pub uid: String,
}

/// The conversation.
pub(crate) struct Control {
    host: String,
    port: u16,
    tls: TlsConnector,
    name: ServerName<'static>,
    token_file: PathBuf,
    uid: String,
    /// What there is to report at this moment.
    report: Box<dyn Fn() -> Report + Send + Sync>,
    /// agent --something has changed--> here
    news_rx: watch::Receiver<()>,
    /// here --rules--> agent; only the newest count
    rules_tx: watch::Sender<Option<Assignment>>,
}

// === impl Control ===

impl Control {
    pub(crate) fn new(
        settings: Settings,
        report: Box<dyn Fn() -> Report + Send + Sync>,
        news_rx: watch::Receiver<()>,
        rules_tx: watch::Sender<Option<Assignment>>,
    ) -> Result<Self, ControlError> {
        let bad_address = || ControlError::Address { url: settings.controller.clone() };
        let uri: http::Uri = settings.controller.parse().map_err(|_| bad_address())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(bad_address)?.to_owned();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| bad_address())?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(settings.authorities.as_bytes()) {
            let added = certificate.map(|certificate| roots.add(certificate));
            if !matches!(added, Ok(Ok(()))) {
                return Err(ControlError::Authorities);
            }
        }
        if roots.is_empty() {
            return Err(ControlError::Authorities);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ControlError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            port: uri.port_u16().unwrap_or(443),
            host,
            tls: TlsConnector::from(Arc::new(tls)),
            name,
            token_file: settings.token_file,
            uid: settings.uid,
            report,
            news_rx,
            rules_tx,
        })
    }

    /// Talks for ever.
    pub(crate) async fn run(mut self) {
        let (mut pause, mut told, mut misdirected) = (FIRST_PAUSE, false, 0);
        loop {
            let began = Instant::now();
            let Err(ended) = Box::pin(self.converse()).await;
            // Of several replicas one leads, and chance decides which one a connection gets to: that is no failure.
            let other = matches!(&ended, Ended::Refused { status, .. } if *status == StatusCode::MISDIRECTED_REQUEST);
            if began.elapsed() > SILENCE {
                (pause, told, misdirected) = (FIRST_PAUSE, false, 0);
            }
            let error = format!("{:#}", anyhow::Error::new(ended));
            if other || std::mem::replace(&mut told, true) {
                tracing::debug!(error, "no conversation with the controller");
            } else {
                tracing::warn!(error, "no conversation with the controller; rules stay as they are, trying again");
            }
            if other && misdirected < MISDIRECTED {
                misdirected += 1;
                tokio::time::sleep(MISDIRECTED_PAUSE).await;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, Ended> {
        let address = format!("{}:{}", self.host, self.port);
        let deadline = Instant::now() + CONNECT_LIMIT;
        let slow = || Ended::Slow { address: address.clone() };
        let failed = |source| Ended::Connect { address: address.clone(), source };
        let token = read_token(&self.token_file)?;
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout_at(deadline, connecting).await.map_err(|_| slow())?.map_err(failed)?;
        let (requests, connection) =
            tokio::time::timeout_at(deadline, Box::pin(h2::client::handshake(stream))).await.map_err(|_| slow())??;
        let request = Request::post(format!("https://{address}{PATH}"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(UID_HEADER, &self.uid)
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(());
        let request = request.map_err(|_| failed(io::Error::other("the token or the uid is no header value")))?;
        tokio::select! {
            biased;
            ended = self.talk(requests, request, deadline, &slow) => ended,
            // Not cancel safe, and the conversation ends with it.
            ended = connection => Err(ended.err().map_or(Ended::Closed, Ended::Http2)),
        }
    }

    async fn talk(
        &mut self,
        requests: h2::client::SendRequest<Bytes>,
        request: Request<()>,
        deadline: Instant,
        slow: &(dyn Fn() -> Ended + Sync),
    ) -> Result<std::convert::Infallible, Ended> {
        let mut requests = requests.ready().await?;
        let (answer, mut to_controller) = requests.send_request(request, false)?;
        self.news_rx.mark_unchanged();
        to_controller.send_data(line(&(self.report)()), false)?;
        let answer = tokio::time::timeout_at(deadline, answer).await.map_err(|_| slow())??;
        let status = answer.status();
        let mut body = answer.into_body();
        if status != StatusCode::OK {
            return Err(Ended::Refused { status, reason: refusal(&mut body).await });
        }
        tracing::info!(controller = self.host, "talks to the controller");
        let mut lines = Lines::default();
        let mut silent = Instant::now() + SILENCE;
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            // Each arm is cancel safe: data stay in the stream until they are taken.
            tokio::select! {
                biased;
                data = body.data() => {
                    let data = data.ok_or(Ended::Closed)??;
                    silent = Instant::now() + SILENCE;
                    body.flow_control().release_capacity(data.len())?;
                    lines.push(&data);
                    while let Some(said) = lines.next_line::<ToAgent>()? {
                        if let ToAgent::Rules(assignment) = said {
                            self.rules_tx.send_replace(Some(assignment));
                        }
                    }
                }
                Ok(()) = self.news_rx.changed() => to_controller.send_data(line(&(self.report)()), false)?,
                _ = heartbeat.tick() => to_controller.send_data(line(&(self.report)()), false)?,
                () = tokio::time::sleep_until(silent) => return Err(Ended::Silent),
            }
        }
    }
}

async fn refusal(body: &mut h2::RecvStream) -> String {
    let mut text = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        text.extend_from_slice(&data);
        if text.len() > MAX_REFUSAL {
            text.truncate(MAX_REFUSAL);
            break;
        }
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn read_token(path: &Path) -> Result<String, Ended> {
    let token = std::fs::read_to_string(path).map_err(|source| Ended::Token { path: path.to_owned(), source })?;
    Ok(token.trim().to_owned())
}
