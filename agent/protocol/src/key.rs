//! Key pairs, their files and their hashes.
//!
//! Owns the only secret there is in Sluice: an Ed25519 key pair per client and per agent. Runs in both; blocking file
//! access happens in [`Identity::load_or_create`] only, which is called once at start. It does not decide whose key is
//! admitted ([`crate::tls::KeyPolicy`]) and keeps no list of keys.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest;
use ring::hkdf;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::SigningKey;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

mod file;

const PREFIX: &str = "sha256:";

/// Why a string is not the hash of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseHashError {
    /// The scheme is missing or another one.
    #[error("a key's hash starts with \"sha256:\"")]
    Prefix,
    /// Not 64 hexadecimal digits behind the scheme.
    #[error("\"sha256:\" must be followed by 64 hexadecimal digits")]
    Digits,
}

/// Why there is no key pair.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("cannot make a new key: the system gives no randomness")]
    Generate,
    /// The file exists and cannot be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others may read the file, so the key in it is no secret any more.
    #[error(
        "the key file {} may be read by others (mode {mode:04o}): run `chmod 600 {}`, or delete it to get a new key",
        path.display(), path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not in PEM format.
    #[error("the key file {} is not a PEM file with a private key", path.display())]
    Pem {
        /// The key file.
        path: PathBuf,
        /// What the decoder said.
        #[source]
        source: pem_rfc7468::Error,
    },
    /// The file is PEM and holds something else.
    #[error("the key file {} must start with \"-----BEGIN PRIVATE KEY-----\" (PKCS#8)", path.display())]
    Label {
        /// The key file.
        path: PathBuf,
    },
    /// The file holds no Ed25519 key.
    #[error("the key file {} holds no usable Ed25519 key", path.display())]
    Unusable {
        /// The key file.
        path: PathBuf,
        /// What the cryptographic library said.
        #[source]
        source: rustls::Error,
    },
    /// The cryptographic library does not take the key it just made.
    #[error("the new key is unusable")]
    Fresh(#[source] rustls::Error),
    /// What was to be a key pair of before is none.
    #[error("the key that was handed on is unusable")]
    HandedOn(#[source] rustls::Error),
    /// The new key cannot be stored.
    #[error("cannot write the new key to {}", path.display())]
    Write {
        /// The file or folder that could not be made.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// SHA-256 over a public key in its X.509 form (SubjectPublicKeyInfo, DER): what two ends know each other by.
///
/// The same value as `openssl pkey -in key -pubout -outform der | sha256sum`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyHash([u8; 32]);

/// An Ed25519 key pair: who an end of the tunnel is.
#[derive(Clone)]
pub struct Identity {
    signing_key: Arc<dyn SigningKey>,
    spki: Arc<[u8]>,
    hash: KeyHash,
    // Derived from the private key, so that it is the same after a restart with the same key file.
    reset_key: [u8; 32],
}

// === impl KeyHash ===

impl KeyHash {
    /// The hash of a public key given as SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_public_key(spki: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
        Self(bytes)
    }

    /// The hash itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseHashError::Prefix)?.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(ParseHashError::Digits);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = KeyHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"sha256:\" and 64 hexadecimal digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<KeyHash, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

// === impl Identity ===

impl Identity {
    /// Makes a new key pair that lives in memory only.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        Self::from_pkcs8(&generate_pkcs8()?).map_err(KeyError::Fresh)
    }

    /// The same, with the secret that [`Identity::from_secret`] makes the same key pair of: for another process of the same
    /// program that takes this one's place.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate_with_secret() -> Result<(Self, Vec<u8>), KeyError> {
        let pkcs8 = generate_pkcs8()?;
        Ok((Self::from_pkcs8(&pkcs8).map_err(KeyError::Fresh)?, pkcs8))
    }

    /// The key pair of [`Identity::generate_with_secret`].
    ///
    /// # Errors
    /// The secret is none.
    pub fn from_secret(pkcs8: &[u8]) -> Result<Self, KeyError> {
        Self::from_pkcs8(pkcs8).map_err(KeyError::HandedOn)
    }

    /// Reads the key pair in `path`, a PKCS#8 file in PEM format, or makes one and stores it there.
    ///
    /// A new file has mode 0600 and appears complete or not at all; of two processes that create it at once, both end
    /// up with the key that is in the file. A file that its group or others may read is refused, as `ssh` does.
    ///
    /// # Errors
    /// The file or its folder cannot be read or written, is exposed to others, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let pkcs8 = match file::read(path)? {
            Some(pkcs8) => pkcs8,
            None => file::create(path, &generate_pkcs8()?)?,
        };
        Self::from_pkcs8(&pkcs8).map_err(|source| KeyError::Unusable { path: path.into(), source })
    }

    /// The hash of the public key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }

    /// The public key as SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    pub(crate) fn signing_key(&self) -> Arc<dyn SigningKey> {
        self.signing_key.clone()
    }

    /// Key for QUIC's stateless reset tokens: the same after a restart, so that a restarted agent can tell a peer at
    /// once that its connection is gone (RFC 9000, 10.3.2).
    pub(crate) fn reset_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.reset_key)
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, rustls::Error> {
        let signing_key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))?;
        let no_public_key = || rustls::Error::General("no public key can be had from the private one".to_owned());
        let spki = signing_key.public_key().ok_or_else(no_public_key)?;
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"sluice");
        let mut reset_key = [0; 32];
        salt.extract(pkcs8)
            .expand(&[b"quic stateless reset"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut reset_key))
            .map_err(|_| rustls::Error::General("no reset key can be derived".to_owned()))?;
        Ok(Self { hash: KeyHash::of_public_key(&spki), spki: spki.as_ref().into(), signing_key, reset_key })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("hash", &self.hash).finish_non_exhaustive()
    }
}

fn generate_pkcs8() -> Result<Vec<u8>, KeyError> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Generate)?;
    Ok(pkcs8.as_ref().to_vec())
}

fn nibble(digit: u8) -> Result<u8, ParseHashError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(ParseHashError::Digits),
    }
}

#[cfg(test)]
mod tests;
