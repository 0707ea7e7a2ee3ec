//! The two judges of a handshake: [`Clients`] on the agent, [`Agent`] on the client.
//!
//! Both check that the peer signed this very handshake with the private half of the key it showed, and that this key is
//! one they want. Neither looks at names, dates or chains: raw public keys have none.

use std::fmt;
use std::sync::Arc;

use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::Error;
use rustls::OtherError;
use rustls::PeerIncompatible;
use rustls::PeerMisbehaved;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;

use super::KeyPolicy;
use crate::key::KeyHash;

/// Judges clients on the agent.
#[derive(Debug)]
pub(super) struct Clients {
    policy: Arc<dyn KeyPolicy>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Judges the agent on the client.
#[derive(Debug)]
pub(super) struct Agent {
    pinned: KeyHash,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The text that ends up in quinn's error, which carries no other details.
struct NotPinned {
    pinned: KeyHash,
    shown: KeyHash,
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(policy: Arc<dyn KeyPolicy>, provider: &CryptoProvider) -> Self {
        Self { policy, algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    /// Takes any key for now: only once its owner has signed is there somebody to refuse, and to name in a log.
    fn verify_client_cert(
        &self,
        _key: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        lone(chain).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let hash = KeyHash::of_public_key(key);
        let valid = verify(message, key, signature, &self.algorithms).inspect_err(|_| self.policy.unproven(&hash))?;
        if self.policy.admits(&hash) {
            return Ok(valid);
        }
        self.policy.refused(&hash);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

// === impl Agent ===

impl Agent {
    pub(super) fn new(pinned: KeyHash, provider: &CryptoProvider) -> Self {
        Self { pinned, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Agent {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        lone(chain)?;
        let shown = KeyHash::of_public_key(key);
        if shown == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        let difference = NotPinned { pinned: self.pinned, shown };
        Err(CertificateError::Other(OtherError(Arc::new(difference))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

// === impl NotPinned ===

impl fmt::Display for NotPinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the agent's key is {}, expected was {}", self.shown, self.pinned)
    }
}

impl fmt::Debug for NotPinned {
    // rustls prints unknown certificate errors with `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for NotPinned {}

fn verify(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key.as_ref()), signature, algorithms)
}

/// A raw public key comes alone (RFC 7250, 3).
fn lone(chain: &[CertificateDer<'_>]) -> Result<(), Error> {
    if chain.is_empty() { Ok(()) } else { Err(CertificateError::BadEncoding.into()) }
}

/// Unreachable, as only TLS 1.3 is configured; fails all the same.
fn no_tls12() -> Error {
    PeerIncompatible::Tls12NotOffered.into()
}
