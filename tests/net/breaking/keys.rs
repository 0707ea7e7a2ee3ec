//! d08: nobody gets in without the key that a rule names, and no client talks to an agent other than the one it was
//! given. Who is refused is logged and counted, and disturbs nobody.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use sluice_protocol::{
    ALPN,
    key::Identity,
    tls::{self, Refusal},
};
use sluice_tests::{
    Agent, Client, ClientKey, Host, eventually,
    peers::http1::Http1App,
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{PORT, SOON, any, asked};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn d08_a_client_with_another_key_is_refused_logged_and_counted() -> Result<()> {
    let stage = Stage::new("d08_other")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    // The stranger has a laptop as well.
    let _theirs = Http1App::start(caller, any(PORT), "stranger")?;
    let stranger = ClientKey::new(&stage.lab, "stranger")?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("d08", &[PORT])])).await?;
    let to = pod.at(PORT);

    let theirs = Client::spawn(caller, agent.address(), agent.key(), &stranger, &["8080"])?;
    let told = theirs.process().printed("does not admit this client", SOON).await?;
    ensure!(told.contains(stranger.hash()), "it was not told which key the rules would have to name: {told}");
    refused(&agent, stranger.hash(), "no rule names its key").await?;
    ensure!(agent.status().await?.clients.is_empty());
    ensure!(asked(caller, to, MATCHING).await? == "pod", "nobody with the right key is there");

    // It goes on trying and is in nobody's way.
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let before = agent.counter("keysRefused").await?;
    eventually(SOON, "the stranger tries again", || async {
        agent.counter("keysRefused").await.is_ok_and(|refused| refused > before)
    })
    .await?;
    ensure!(asked(caller, to, MATCHING).await? == "laptop" && asked(caller, to, OTHER).await? == "pod");
    ensure!(agent.status().await?.clients.iter().all(|client| client.key_hash == stage.key.hash()));

    // The right goes with the rule, at once and without a new command.
    agent.set_rules(&Rule::file(&[Rule::header("d08", &[PORT], &stranger)])).await?;
    agent.connected(&stranger).await?;
    agent.disconnected(&stage.key, SOON).await?;
    ensure!(asked(caller, to, MATCHING).await? == "stranger" && asked(caller, to, OTHER).await? == "pod");
    refused(&agent, stage.key.hash(), "no rule names its key").await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn d08_a_public_key_without_its_private_key_is_refused_logged_and_counted() -> Result<()> {
    let stage = Stage::new("d08_stolen")?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(laptop, any(PORT), "laptop")?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("d08", &[PORT])])).await?;
    let to = pod.at(PORT);
    let public_key = Identity::load_or_create(stage.key.file())?.public_key().to_vec();

    // With nobody there, and with the owner of the key connected, who must not be thrown out.
    for (expected, connected) in [("pod", false), ("laptop", true)] {
        let client = match connected {
            true => Some(Client::start(laptop, &agent, &stage.key, &["8080"]).await?),
            false => None,
        };
        let before = agent.counter("keysRefused").await?;
        let refusal = dial(caller, agent.address(), Shows::Stolen(public_key.clone())).await?;
        ensure!(refusal == Some(Refusal::Unproven), "{refusal:?}");
        refused(&agent, stage.key.hash(), "could not prove").await?;
        ensure!(agent.counter("keysRefused").await? == before + 1);
        ensure!(asked(caller, to, MATCHING).await? == expected && asked(caller, to, OTHER).await? == "pod");
        ensure!(agent.status().await?.clients.len() == usize::from(connected));
        if let Some(client) = client {
            let connections = client.process().output().matches("connected to").count();
            ensure!(connections == 1, "the owner of the key had to connect {connections} times");
        }
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn d08_without_a_key_or_with_noise_nobody_gets_in() -> Result<()> {
    let stage = Stage::new("d08_none")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("d08", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let address = agent.address();

    let refusal = dial(caller, address, Shows::Nothing).await?;
    ensure!(refusal.is_some(), "somebody without a key was not refused");
    caller.enter(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for length in 0..1400_u32 {
            // Of all lengths and first bytes: QUIC's long and short headers among them.
            let noise: Vec<_> = (0..length).map(|at| (at * 7 + length * 31).to_le_bytes()[0]).collect();
            socket.send_to(&noise, address)?;
        }
        std::io::Result::Ok(())
    })??;
    for _ in 0..10 {
        ensure!(asked(caller, pod.at(PORT), MATCHING).await? == "laptop");
        ensure!(asked(caller, pod.at(PORT), OTHER).await? == "pod");
    }
    let clients = agent.status().await?.clients;
    ensure!(clients.len() == 1 && clients[0].key_hash == stage.key.hash(), "{clients:?}");
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn d08_an_agent_other_than_the_pinned_one_is_refused() -> Result<()> {
    let stage = Stage::new("d08_agent")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("d08", &[PORT])])).await?;
    let other = ClientKey::new(&stage.lab, "other")?;

    let client = Client::spawn(&stage.laptop, agent.address(), other.hash(), &stage.key, &["8080"])?;
    let told = client.process().printed("is not the one given by --agent-key", SOON).await?;
    ensure!(told.contains(agent.key()) && told.contains(other.hash()), "not told which key was found: {told}");
    ensure!(agent.status().await?.clients.is_empty(), "it is connected all the same");
    ensure!(
        asked(caller, pod.at(PORT), MATCHING).await? == "pod" && asked(caller, pod.at(PORT), OTHER).await? == "pod"
    );
    ensure!(local.connections().is_empty());
    drop(client);

    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    ensure!(asked(caller, pod.at(PORT), MATCHING).await? == "laptop", "with the right key of the agent");
    stage.finish()
}

/// Waits until the agent has logged that it refused this key, and why.
async fn refused(agent: &Agent, key: &str, why: &str) -> Result<()> {
    let what = format!("the agent logs that it has refused {key}");
    eventually(SOON, &what, || async {
        let output = agent.process().output();
        output.lines().any(|line| line.contains(key) && line.contains("refused") && line.contains(why))
    })
    .await?;
    ensure!(agent.counter("keysRefused").await? > 0, "logged and not counted");
    let metrics = agent.metrics().await?;
    ensure!(metrics.lines().any(|line| line.starts_with("sluice_agent_keys_refused_total ") && !line.ends_with(" 0")));
    Ok(())
}

/// What a client by hand shows for a key.
enum Shows {
    /// Somebody's public key, and signatures made with another private one.
    Stolen(Vec<u8>),
    Nothing,
}

/// Tries to connect as no client of ours would; what the refusal says, if there is one.
async fn dial(from: &Host, to: SocketAddr, shows: Shows) -> Result<Option<Refusal>> {
    let config = by_hand(shows)?;
    let dialled = from.run(move || async move {
        let endpoint = quinn::Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
        let error = match endpoint.connect_with(config, to, tls::SERVER_NAME)?.await {
            Err(error) => error,
            // In TLS 1.3 a client is done first; the refusal comes a round trip later.
            Ok(connection) => match tls::confirmed(&connection).await {
                Err(error) => error,
                Ok(()) => return Ok(None),
            },
        };
        anyhow::Ok(Some(Refusal::of(&error).with_context(|| format!("failed for another reason: {error}"))?))
    })?;
    dialled.await?
}

fn by_hand(shows: Shows) -> Result<quinn::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyAgent));
    let mut config = match shows {
        Shows::Nothing => builder.with_no_client_auth(),
        Shows::Stolen(public_key) => {
            let random = ring::rand::SystemRandom::new();
            let pkcs8 =
                ring::signature::Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| anyhow::anyhow!("no key"))?;
            let own = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref()))?;
            let key = CertifiedKey::new(vec![CertificateDer::from(public_key)], own);
            builder.with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(key))))
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
}

/// Takes any agent for the right one.
#[derive(Debug)]
struct AnyAgent;

impl ServerCertVerifier for AnyAgent {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
