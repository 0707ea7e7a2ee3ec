//! The certificate by which API servers and agents know the control plane.
//!
//! Owns all of its life: made, kept in one Secret, renewed, replaced while connections are being accepted, made known
//! to the API server. Every replica follows the Secret and serves what is in it; only the leader writes it. No other
//! product is needed for it, and no restart, ever.
//!
//! | Module | Owns |
//! |---|---|
//! | [`rotation`] | when what is to be renewed, as a pure function of time |
//! | [`chain`] | keys and certificates, and their place in a Secret |
//! | [`keeper`] | the Secret, the `caBundle`, and what is served |

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

pub mod chain;
pub mod keeper;
pub mod rotation;

use chain::{Chain, ChainError};

/// The certificate that is served now. Replaced as a whole: a handshake gets the old one or the new one, and a
/// connection that is open does not notice.
#[derive(Debug, Default)]
pub struct Current {
    material: ArcSwapOption<Material>,
}

#[derive(Debug)]
struct Material {
    certified: Arc<CertifiedKey>,
    authorities: String,
}

// === impl Current ===

impl Current {
    /// Serves `chain` from the next handshake on, if an API server would accept it. Otherwise what is served stays.
    ///
    /// # Errors
    /// When key and certificate are not a pair, or those who have the authorities would not accept it for `host`.
    pub fn replace(
        &self,
        chain: &Chain,
        host: &str,
        now: Timestamp,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(), ChainError> {
        let certified = Arc::new(chain.certified(host, now, provider)?);
        self.material.store(Some(Arc::new(Material { certified, authorities: chain.authorities() })));
        Ok(())
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.material.load().is_some()
    }

    /// Those to trust, in PEM; `None` before the first certificate.
    #[must_use]
    pub fn authorities(&self) -> Option<String> {
        self.material.load().as_ref().map(|material| material.authorities.clone())
    }

    /// The certificate itself, for comparison.
    #[must_use]
    pub fn certificate(&self) -> Option<Vec<u8>> {
        self.material.load().as_ref().and_then(|material| Some(material.certified.cert.first()?.to_vec()))
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.material.load().as_ref().map(|material| material.certified.clone())
    }
}

/// A server's configuration that always serves the current certificate.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub fn server_config(current: Arc<Current>, provider: Arc<CryptoProvider>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests;
