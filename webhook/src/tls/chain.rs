//! Keys and certificates, and their place in a Secret.
//!
//! Owns making, storing and checking them: ECDSA on P-256, which every API server verifies quickly. Knows no API.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use time::OffsetDateTime;

use super::rotation::{Inventory, Policy, Span, Step};

/// Keys of the Secret's data.
mod entry {
    pub(super) const LEAF: &str = "tls.crt";
    pub(super) const LEAF_KEY: &str = "tls.key";
    pub(super) const CURRENT: &str = "ca.crt";
    pub(super) const CURRENT_KEY: &str = "ca.key";
    pub(super) const NEXT: &str = "ca-next.crt";
    pub(super) const NEXT_KEY: &str = "ca-next.key";
    pub(super) const PREVIOUS: &str = "ca-previous.crt";
}

/// Why keys or certificates cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Making one failed.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// The validity is beyond what a certificate can say.
    #[error("a certificate cannot be valid until {until}")]
    Time {
        /// The end.
        until: Timestamp,
    },
    /// The Secret lacks an entry, or it is no text.
    #[error("the Secret has no usable entry {entry}")]
    Entry {
        /// Its key.
        entry: &'static str,
    },
    /// An entry is not PEM of the right kind.
    #[error("the Secret's entry {entry} is no PEM of its kind")]
    Pem {
        /// Its key.
        entry: &'static str,
    },
    /// An entry is PEM, but no certificate.
    #[error("the Secret's entry {entry} is no certificate")]
    Certificate {
        /// Its key.
        entry: &'static str,
    },
    /// The private key is of no kind that can be used.
    #[error("the private key cannot be used")]
    Key(#[source] rustls::Error),
    /// Key and certificate are not a pair.
    #[error("the private key does not belong to the certificate")]
    Mismatch(#[source] rustls::Error),
    /// Those who have the authorities would refuse it.
    #[error("those who trust the Secret's authorities would refuse its certificate")]
    Untrusted(#[source] rustls::Error),
    /// An authority cannot be one.
    #[error("the Secret's authorities cannot be used")]
    Authorities(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host's name is none.
    #[error("{host:?} is no host name")]
    Host {
        /// The name.
        host: String,
    },
}

/// Everything that the Secret holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Chain {
    current: Pair,
    next: Option<Pair>,
    previous: Option<Dated>,
    leaf: Pair,
}

/// A certificate and when it is valid.
#[derive(Clone, PartialEq, Eq)]
struct Dated {
    pem: String,
    span: Span,
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: Dated,
    key: String,
}

// === impl Chain ===

impl Chain {
    /// A new authority and its first leaf for `hosts`.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn new(now: Timestamp, policy: &Policy, hosts: &[String]) -> Result<Self, ChainError> {
        let current = Pair::authority(policy.authority(now))?;
        let leaf = current.issue(policy.leaf(now, current.certificate.span), hosts)?;
        Ok(Self { current, next: None, previous: None, leaf })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// When a certificate cannot be made; nothing has changed then.
    pub fn take(&self, step: Step, now: Timestamp, policy: &Policy, hosts: &[String]) -> Result<Self, ChainError> {
        let mut chain = self.clone();
        match (step, chain.next.take()) {
            (Step::StartOver, _) | (Step::Promote, None) => return Self::new(now, policy, hosts),
            (Step::Promote, Some(next)) => {
                chain.previous = Some(std::mem::replace(&mut chain.current, next).certificate);
                chain.leaf = chain.current.issue(policy.leaf(now, chain.current.certificate.span), hosts)?;
            }
            (Step::AddSuccessor, _) => chain.next = Some(Pair::authority(policy.authority(now))?),
            (Step::DropPrevious, next) => (chain.previous, chain.next) = (None, next),
            (Step::RenewLeaf, next) => {
                chain.leaf = chain.current.issue(policy.leaf(now, chain.current.certificate.span), hosts)?;
                chain.next = next;
            }
        }
        Ok(chain)
    }

    /// What there is, for [`next_step`](super::rotation::next_step).
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        Inventory {
            current: self.current.certificate.span,
            next: self.next.as_ref().map(|next| next.certificate.span),
            previous: self.previous.as_ref().map(|previous| previous.span),
            leaf: self.leaf.certificate.span,
        }
    }

    /// Everybody's who may have issued what is served now or soon, in PEM.
    #[must_use]
    pub fn authorities(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.certificate);
        [Some(&self.current.certificate), next, self.previous.as_ref()]
            .into_iter()
            .flatten()
            .map(|certificate| certificate.pem.as_str())
            .collect()
    }

    /// The leaf with its key, ready to be served, if those who have the authorities accept it for `host` at `now`.
    ///
    /// # Errors
    /// When they would not, or when key and certificate are not a pair.
    pub fn certified(
        &self,
        host: &str,
        now: Timestamp,
        provider: &Arc<CryptoProvider>,
    ) -> Result<CertifiedKey, ChainError> {
        let leaf = der(&self.leaf.certificate.pem, entry::LEAF)?;
        let key = PrivateKeyDer::from_pem_slice(self.leaf.key.as_bytes())
            .map_err(|_| ChainError::Pem { entry: entry::LEAF_KEY })?;
        let key = provider.key_provider.load_private_key(key).map_err(ChainError::Key)?;

        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(self.authorities().as_bytes()) {
            let authority = authority.map_err(|_| ChainError::Pem { entry: entry::CURRENT })?;
            roots.add(authority).map_err(|error| ChainError::Authorities(error.into()))?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| ChainError::Authorities(error.into()))?;
        let name = ServerName::try_from(host).map_err(|_| ChainError::Host { host: host.to_owned() })?;
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        verifier.verify_server_cert(&leaf, &[], &name, &[], at).map_err(ChainError::Untrusted)?;

        let certified = CertifiedKey::new(vec![leaf], key);
        certified.keys_match().map_err(ChainError::Mismatch)?;
        Ok(certified)
    }

    /// The Secret's data.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::new();
        let mut put = |entry: &str, text: &String| data.insert(entry.to_owned(), text.clone());
        put(entry::LEAF, &self.leaf.certificate.pem);
        put(entry::LEAF_KEY, &self.leaf.key);
        put(entry::CURRENT, &self.current.certificate.pem);
        put(entry::CURRENT_KEY, &self.current.key);
        if let Some(next) = &self.next {
            put(entry::NEXT, &next.certificate.pem);
            put(entry::NEXT_KEY, &next.key);
        }
        if let Some(previous) = &self.previous {
            put(entry::PREVIOUS, &previous.pem);
        }
        data
    }

    /// Reads a Secret's data.
    ///
    /// # Errors
    /// When an entry is missing or not what it should be.
    pub fn from_data(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, ChainError> {
        let text = |entry| {
            let bytes = data.get(entry).ok_or(ChainError::Entry { entry })?;
            String::from_utf8(bytes.clone()).map_err(|_| ChainError::Entry { entry })
        };
        let pair =
            |certificate, key| Ok(Pair { certificate: Dated::read(text(certificate)?, certificate)?, key: text(key)? });
        let next = data.contains_key(entry::NEXT).then(|| pair(entry::NEXT, entry::NEXT_KEY)).transpose()?;
        let previous = data
            .contains_key(entry::PREVIOUS)
            .then(|| Dated::read(text(entry::PREVIOUS)?, entry::PREVIOUS))
            .transpose()?;
        let current = pair(entry::CURRENT, entry::CURRENT_KEY)?;
        Ok(Self { current, next, previous, leaf: pair(entry::LEAF, entry::LEAF_KEY)? })
    }
}

/// Not derived: keys do not belong in a log.
impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("inventory", &self.inventory()).finish_non_exhaustive()
    }
}

// === impl Dated ===

impl Dated {
    fn read(pem: String, entry: &'static str) -> Result<Self, ChainError> {
        let der = der(&pem, entry)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| ChainError::Certificate { entry })?;
        let time = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|_| ChainError::Certificate { entry })
        };
        let validity = parsed.validity();
        let span = Span { from: time(validity.not_before)?, until: time(validity.not_after)? };
        Ok(Self { pem, span })
    }
}

// === impl Pair ===

impl Pair {
    fn authority(span: Span) -> Result<Self, ChainError> {
        let mut params = params(span, Vec::new())?;
        // Of two authorities a verifier must be able to tell which is which.
        params.distinguished_name.push(DnType::CommonName, format!("Sluice control plane {}", span.from));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = key()?;
        let certificate = params.self_signed(&key).map_err(ChainError::Make)?;
        Self::of(&certificate, &key, entry::CURRENT)
    }

    fn issue(&self, span: Span, hosts: &[String]) -> Result<Self, ChainError> {
        let mut params = params(span, hosts.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "Sluice control plane");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer_key = KeyPair::from_pem(&self.key).map_err(ChainError::Make)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate.pem, issuer_key).map_err(ChainError::Make)?;
        let key = key()?;
        let certificate = params.signed_by(&key, &issuer).map_err(ChainError::Make)?;
        Self::of(&certificate, &key, entry::LEAF)
    }

    fn of(certificate: &Certificate, key: &KeyPair, entry: &'static str) -> Result<Self, ChainError> {
        Ok(Self { certificate: Dated::read(certificate.pem(), entry)?, key: key.serialize_pem() })
    }
}

fn key() -> Result<KeyPair, ChainError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(ChainError::Make)
}

fn params(span: Span, hosts: Vec<String>) -> Result<CertificateParams, ChainError> {
    let time = |timestamp: Timestamp| {
        OffsetDateTime::from_unix_timestamp(timestamp.as_second()).map_err(|_| ChainError::Time { until: span.until })
    };
    let mut params = CertificateParams::new(hosts).map_err(ChainError::Make)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    (params.not_before, params.not_after) = (time(span.from)?, time(span.until)?);
    Ok(params)
}

fn der(pem: &str, entry: &'static str) -> Result<CertificateDer<'static>, ChainError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| ChainError::Pem { entry })
}

/// The names by which a Service of a namespace is reached.
#[must_use]
pub fn service_hosts(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// The time in whole seconds, as certificates have it.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests;
