//! TLS 1.3 with raw public keys (RFC 7250), pinned on both ends.
//!
//! Owns how the two ends prove who they are. Runs inside quinn's handshake on both. There are no certificates, no names
//! and no authority: an end *is* its key, and who may be one's peer is said by [`KeyPolicy`] (agent) or by one hash
//! (client). It does not fall back to X.509, to TLS 1.2 or to another key type, keeps no session tickets (a resumed
//! session would skip the policy) and installs no process-wide crypto provider.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use quinn::ConnectionError;
use quinn::TransportErrorCode;
use quinn::crypto::rustls::NoInitialCipherSuite;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::AlertDescription;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;

use crate::ALPN;
use crate::key::Identity;
use crate::key::KeyHash;
use crate::transport;

mod verify;

/// The name that a client passes to [`quinn::Endpoint::connect`]. It is not sent and not checked: keys are.
pub const SERVER_NAME: &str = "agent.sluice.invalid";

/// Why no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The crypto provider lacks TLS 1.3.
    #[error("the crypto provider cannot do TLS 1.3")]
    Version(#[source] rustls::Error),
    /// The crypto provider lacks what QUIC needs for its first packets.
    #[error("the crypto provider cannot protect QUIC's first packets")]
    InitialSuite(#[source] NoInitialCipherSuite),
}

/// Whose connections an agent takes. Called from within handshakes: must not block.
pub trait KeyPolicy: Send + Sync + fmt::Debug {
    /// Whether the owner of this key may connect. The signature was checked already.
    fn admits(&self, key: &KeyHash) -> bool;

    /// The owner of this key tried to connect and was turned away: to be logged and counted.
    fn refused(&self, key: &KeyHash);

    /// Somebody showed this public key and could not prove to own it. Says nothing about the owner of the key.
    fn unproven(&self, key: &KeyHash) {
        self.refused(key);
    }
}

/// Why a handshake came to nothing, as far as keys and versions are concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The peer does not admit our key: no rule names it.
    OurKey,
    /// The peer's key is not the pinned one.
    PeerKey,
    /// One of the two could not prove to own its key.
    Unproven,
    /// The peer showed no key at all.
    NoKey,
    /// The two ends have no version of Sluice's protocol in common, or one of them wants certificates.
    Version,
}

/// QUIC configuration of an agent: shows `identity`, admits whom `policy` admits.
///
/// # Errors
/// The crypto provider lacks something: not to be expected.
pub fn server_config(identity: &Identity, policy: Arc<dyn KeyPolicy>) -> Result<quinn::ServerConfig, TlsError> {
    let provider = provider();
    let verifier = Arc::new(verify::Clients::new(policy, &provider));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Version)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified_key(identity))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(TlsError::InitialSuite)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport::agent()));
    Ok(config)
}

/// QUIC configuration of a client: shows `identity`, talks to the owner of the key `agent` only.
///
/// A handshake that succeeds here says nothing yet about the agent's decision: see [`confirmed`].
///
/// # Errors
/// The crypto provider lacks something: not to be expected.
pub fn client_config(identity: &Identity, agent: KeyHash) -> Result<quinn::ClientConfig, TlsError> {
    let provider = provider();
    let verifier = Arc::new(verify::Agent::new(agent, &provider));
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Version)?
        .dangerous() // rustls's word for any verifier other than its own
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified_key(identity))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_sni = false;
    let crypto = QuicClientConfig::try_from(tls).map_err(TlsError::InitialSuite)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport::client()));
    Ok(config)
}

/// The hash of the key that the peer proved to own; `None` while the handshake is under way.
#[must_use]
pub fn peer_key(connection: &Connection) -> Option<KeyHash> {
    let keys = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(KeyHash::of_public_key(keys.first()?))
}

/// Waits until the agent has taken the client's key too.
///
/// In TLS 1.3 a client is done before the server has seen its key, so a client that will be refused looks connected
/// for one round trip. The agent's word is QUIC's HANDSHAKE_DONE frame (RFC 9001, 4.1.2).
///
/// # Errors
/// The connection was lost or refused: see [`Refusal::of`]. One that the agent has taken and closed since is no error
/// here: it says why as soon as it is used.
pub async fn confirmed(connection: &Connection) -> Result<(), ConnectionError> {
    // quinn counts that frame and wakes nobody for it, so this looks for it: for one round trip per connection.
    const LONGEST_PAUSE: Duration = Duration::from_millis(20);
    let mut pause = Duration::from_millis(1);
    while connection.stats().frame_rx.handshake_done == 0 {
        let error = tokio::select! {
            biased;
            error = connection.closed() => error,
            () = tokio::time::sleep(pause) => {
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        // Only an agent that is done with the handshake can close with a code of its own.
        return if matches!(error, ConnectionError::ApplicationClosed(_)) { Ok(()) } else { Err(error) };
    }
    Ok(())
}

// === impl Refusal ===

impl Refusal {
    /// What an error of a handshake has to say about keys and versions, if anything.
    #[must_use]
    pub fn of(error: &ConnectionError) -> Option<Self> {
        let (code, by_peer) = match error {
            ConnectionError::TransportError(error) => (error.code, false),
            ConnectionError::ConnectionClosed(close) => (close.error_code, true),
            ConnectionError::VersionMismatch => return Some(Self::Version),
            _ => return None,
        };
        let is = |alert: AlertDescription| code == TransportErrorCode::crypto(alert.into());
        if is(AlertDescription::AccessDenied) || is(AlertDescription::CertificateUnknown) {
            Some(if by_peer { Self::OurKey } else { Self::PeerKey })
        } else if is(AlertDescription::DecryptError) {
            Some(Self::Unproven)
        } else if is(AlertDescription::CertificateRequired) {
            Some(Self::NoKey)
        } else if is(AlertDescription::NoApplicationProtocol) || is(AlertDescription::HandshakeFailure) {
            Some(Self::Version)
        } else {
            None
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified_key(identity: &Identity) -> Arc<CertifiedKey> {
    let public_key = CertificateDer::from(identity.public_key().to_vec());
    Arc::new(CertifiedKey::new(vec![public_key], identity.signing_key()))
}

#[cfg(test)]
mod tests;
