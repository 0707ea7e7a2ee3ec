use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;
use crate::testing::Guests;
use crate::testing::Tunnel;
use crate::testing::agent_endpoint;
use crate::testing::attempt;
use crate::testing::client_endpoint;
use crate::testing::identity;
use crate::testing::soon;

/// What a client shows instead of its key.
#[derive(Debug)]
enum Shows {
    Nothing,
    /// A certificate type of its own choice, and nothing behind it.
    NothingRaw,
    Key(Arc<CertifiedKey>),
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::Nothing | Self::NothingRaw => None,
            Self::Key(key) => Some(key.clone()),
        }
    }

    fn only_raw_public_keys(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A client that deviates from [`client_config`] in what it shows or speaks.
fn odd_client(agent: KeyHash, shows: Shows, alpn: &[&[u8]]) -> quinn::ClientConfig {
    let provider = provider();
    let verifier = Arc::new(verify::Agent::new(agent, &provider));
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(shows));
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// The public key of `owner` with somebody else's private key.
fn stolen(owner: &Identity) -> Arc<CertifiedKey> {
    let public_key = CertificateDer::from(owner.public_key().to_vec());
    Arc::new(CertifiedKey::new(vec![public_key], identity().signing_key()))
}

#[tokio::test]
async fn d08_the_right_keys_connect_and_know_each_other() {
    let (agent_identity, client_identity) = (identity(), identity());
    let guests = Guests::new([client_identity.hash()]);
    let agent = agent_endpoint(&agent_identity, guests.clone());
    let client = client_endpoint();
    let config = client_config(&client_identity, agent_identity.hash()).unwrap();
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
    assert_eq!(peer_key(&accepted), Some(client_identity.hash()));
    assert_eq!(peer_key(&dialled), Some(agent_identity.hash()));
    let data = dialled.handshake_data().unwrap().downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
    assert_eq!(data.protocol.as_deref(), Some(ALPN));
    assert!(guests.refused.lock().unwrap().is_empty());
    assert!(guests.unproven.lock().unwrap().is_empty());
}

#[tokio::test]
async fn d08_a_client_with_another_key_is_refused_and_reported() {
    let agent_identity = identity();
    let guests = Guests::new([identity().hash()]);
    let agent = agent_endpoint(&agent_identity, guests.clone());
    let client = client_endpoint();
    let stranger = identity();
    let config = client_config(&stranger, agent_identity.hash()).unwrap();
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    accepted.unwrap_err();
    assert_eq!(Refusal::of(&dialled.unwrap_err()), Some(Refusal::OurKey));
    assert_eq!(*guests.refused.lock().unwrap(), [stranger.hash()]);
    assert!(guests.unproven.lock().unwrap().is_empty());
}

#[tokio::test]
async fn d08_a_public_key_without_its_private_key_is_refused_and_reported() {
    let (agent_identity, victim) = (identity(), identity());
    let guests = Guests::new([victim.hash()]);
    let agent = agent_endpoint(&agent_identity, guests.clone());
    let client = client_endpoint();
    let config = odd_client(agent_identity.hash(), Shows::Key(stolen(&victim)), &[ALPN]);
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    accepted.unwrap_err();
    assert_eq!(Refusal::of(&dialled.unwrap_err()), Some(Refusal::Unproven));
    assert_eq!(*guests.unproven.lock().unwrap(), [victim.hash()]);
    assert!(guests.refused.lock().unwrap().is_empty(), "the victim did nothing");
}

#[tokio::test]
async fn d08_a_client_without_a_key_is_refused_and_reported() {
    let agent_identity = identity();
    let agent = agent_endpoint(&agent_identity, Guests::new([]));
    let client = client_endpoint();
    for (shows, refusal) in [(Shows::Nothing, Refusal::Version), (Shows::NothingRaw, Refusal::NoKey)] {
        let what = format!("{shows:?}");
        let (accepted, dialled) = attempt(&agent, &client, odd_client(agent_identity.hash(), shows, &[ALPN])).await;
        assert!(accepted.is_err(), "{what}");
        assert!(dialled.is_err(), "{what}");
        let error = accepted.unwrap_err();
        assert_eq!(Refusal::of(&error), Some(refusal), "{what}: {error:?}");
    }
}

#[tokio::test]
async fn d08_an_agent_with_another_key_is_refused() {
    let (agent_identity, client_identity) = (identity(), identity());
    let guests = Guests::new([client_identity.hash()]);
    let agent = agent_endpoint(&agent_identity, guests.clone());
    let client = client_endpoint();
    let expected = identity().hash();
    let config = client_config(&client_identity, expected).unwrap();
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    accepted.unwrap_err();
    let error = dialled.unwrap_err();
    assert_eq!(Refusal::of(&error), Some(Refusal::PeerKey));
    let text = error.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains(&agent_identity.hash().to_string()), "{text}");
}

#[tokio::test]
async fn d08_an_agent_with_the_right_public_key_only_is_refused() {
    let (victim, client_identity) = (identity(), identity());
    let guests = Guests::new([client_identity.hash()]);
    let provider = provider();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verify::Clients::new(guests.clone(), &provider)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(stolen(&victim))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let agent = agent_endpoint(&victim, guests);
    agent.set_server_config(Some(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))));
    let client = client_endpoint();
    let config = client_config(&client_identity, victim.hash()).unwrap();
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    accepted.unwrap_err();
    assert_eq!(Refusal::of(&dialled.unwrap_err()), Some(Refusal::Unproven));
}

/// An agent that would rather show a certificate, whatever key is in it.
#[tokio::test]
async fn d08_an_agent_with_a_certificate_is_refused() {
    #[derive(Debug)]
    struct Certificate(Arc<CertifiedKey>);
    impl rustls::server::ResolvesServerCert for Certificate {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    let (agent_identity, client_identity) = (identity(), identity());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificate(certified_key(&agent_identity))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let agent = agent_endpoint(&agent_identity, Guests::new([]));
    agent.set_server_config(Some(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))));
    let config = client_config(&client_identity, agent_identity.hash()).unwrap();
    let (accepted, dialled) = attempt(&agent, &client_endpoint(), config).await;
    accepted.unwrap_err();
    assert_eq!(Refusal::of(&dialled.unwrap_err()), Some(Refusal::Version));
}

#[tokio::test]
async fn d08_another_protocol_is_refused() {
    let (agent_identity, client_identity) = (identity(), identity());
    let guests = Guests::new([client_identity.hash()]);
    let agent = agent_endpoint(&agent_identity, guests.clone());
    let client = client_endpoint();
    for alpn in [&[b"sluice/2".as_slice()] as &[&[u8]], &[b"h3"], &[]] {
        let config = odd_client(agent_identity.hash(), Shows::Key(certified_key(&client_identity)), alpn);
        let (accepted, dialled) = attempt(&agent, &client, config).await;
        assert_eq!(Refusal::of(&accepted.unwrap_err()), Some(Refusal::Version), "{alpn:?}");
        assert_eq!(Refusal::of(&dialled.unwrap_err()), Some(Refusal::Version), "{alpn:?}");
    }
    let both = odd_client(agent_identity.hash(), Shows::Key(certified_key(&client_identity)), &[b"sluice/2", ALPN]);
    attempt(&agent, &client, both).await.0.expect("a client that speaks both gets through");
}

#[tokio::test]
async fn d08_a_key_of_another_type_is_refused() {
    let agent_identity = identity();
    let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(
        &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        &ring::rand::SystemRandom::new(),
    )
    .unwrap();
    let key = rustls::crypto::ring::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref()).into()).unwrap();
    let public_key = CertificateDer::from(key.public_key().unwrap().to_vec());
    let guests = Guests::new([KeyHash::of_public_key(&public_key)]);
    let agent = agent_endpoint(&agent_identity, guests);
    let client = client_endpoint();
    let shows = Shows::Key(Arc::new(CertifiedKey::new(vec![public_key], key)));
    let (accepted, dialled) = attempt(&agent, &client, odd_client(agent_identity.hash(), shows, &[ALPN])).await;
    accepted.unwrap_err();
    dialled.unwrap_err();
}

/// A session ticket would let a client in without its key being looked at.
#[tokio::test]
async fn d08_a_key_that_is_taken_out_is_refused_at_the_next_connection() {
    let (agent_identity, client_identity) = (identity(), identity());
    let guests = Guests::new([client_identity.hash()]);
    let agent = agent_endpoint(&agent_identity, guests.clone());
    let client = client_endpoint();
    let config = client_config(&client_identity, agent_identity.hash()).unwrap();
    for _ in 0..2 {
        let (accepted, dialled) = attempt(&agent, &client, config.clone()).await;
        accepted.unwrap();
        crate::close::CloseCode::Stopped.close(&dialled.unwrap());
    }
    guests.forget(client_identity.hash());
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    accepted.unwrap_err();
    assert_eq!(Refusal::of(&dialled.unwrap_err()), Some(Refusal::OurKey));
    assert_eq!(*guests.refused.lock().unwrap(), [client_identity.hash()]);
}

#[tokio::test]
async fn close_codes_arrive() {
    use crate::close::CloseCode;

    for code in
        [CloseCode::Stopped, CloseCode::Replaced, CloseCode::NotAllowed, CloseCode::AgentStopping, CloseCode::Protocol]
    {
        let tunnel = Tunnel::new().await;
        code.close(&tunnel.agent);
        let error = soon("close", tunnel.client.closed()).await;
        assert_eq!(CloseCode::of(&error), Some(code));
        assert!(error.to_string().contains(&code.to_string()), "{error}");
    }
    let tunnel = Tunnel::new().await;
    let Tunnel { agent, client, .. } = &tunnel;
    agent.close(quinn::VarInt::from_u32(0), b"");
    assert_eq!(CloseCode::of(&soon("close", client.closed()).await), None, "0 is no reason");
}
