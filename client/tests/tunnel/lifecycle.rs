//! Connecting, losing, coming back, stopping.

use std::io::ErrorKind;
use std::time::Duration;
use std::time::Instant;

use sluice::DialError;
use sluice::Identity;
use sluice::Lost;
use sluice::State;
use sluice::Tunnel;
use sluice_protocol::close::CloseCode;
use sluice_protocol::tls;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::agent::Agent;
use crate::agent::accepted;
use crate::config;
use crate::connected;
use crate::local::Local;
use crate::reaches;
use crate::soon;

#[tokio::test]
async fn the_state_says_when_the_agent_has_agreed() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let tunnel = Tunnel::start(config(&agent, &identity, &[(1, 1)])).unwrap();
    assert!(matches!(*tunnel.state().borrow(), State::Connecting));
    let state = reaches(&tunnel, "connected", |state| matches!(state, State::Connected { .. })).await;
    assert!(matches!(state, State::Connected { address, way: "direct" } if address == agent.address()));
    let client = agent.client().await;
    assert_eq!(tls::peer_key(&client), Some(identity.hash()));
}

#[tokio::test]
async fn c02_an_agent_that_is_killed_and_started_again_gets_its_client_back() {
    let local = Local::new().await;
    let (mut agent, tunnel) = connected(&[(local.port, 8080)]).await;
    local.echo();
    agent.kill().await;
    agent.run();
    ping(&agent.client().await).await;
    reaches(&tunnel, "connected again", |state| matches!(state, State::Connected { .. })).await;

    // A second time, with the agent away for longer than the client takes to notice.
    agent.kill().await;
    reaches(&tunnel, "loss", |state| matches!(state, State::Lost(_) | State::Failed(_))).await;
    agent.run();
    ping(&agent.client().await).await;
}

#[tokio::test]
async fn an_agent_that_says_goodbye_gets_its_client_back() {
    let local = Local::new().await;
    let (mut agent, tunnel) = connected(&[(local.port, 8080)]).await;
    local.echo();
    reaches(&tunnel, "connected", |state| matches!(state, State::Connected { .. })).await;
    let mut state = tunnel.state();
    state.mark_unchanged();
    agent.terminate().await;
    soon("loss", state.changed()).await.unwrap();
    assert!(
        matches!(
            &*state.borrow(),
            State::Lost(Lost::Closed(CloseCode::AgentStopping)) | State::Connecting | State::Failed(_)
        ),
        "{:?}",
        *state.borrow()
    );
    agent.run();
    ping(&agent.client().await).await;
}

#[tokio::test]
async fn an_agent_that_comes_later_is_found() {
    let identity = Identity::generate().unwrap();
    let mut agent = Agent::start([identity.hash()]);
    agent.kill().await;
    let tunnel = Tunnel::start(config(&agent, &identity, &[(1, 1)])).unwrap();
    let state = reaches(&tunnel, "failure", |state| matches!(state, State::Failed(_))).await;
    assert!(matches!(&state, State::Failed(error) if matches!(**error, DialError::Silent { .. })), "{state:?}");
    agent.run();
    agent.client().await;
}

#[tokio::test]
async fn a_name_that_cannot_be_found_is_tried_again() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([]);
    let mut config = config(&agent, &identity, &[(1, 1)]);
    config.agent = "agent.sluice.invalid".parse().unwrap();
    let tunnel = Tunnel::start(config).unwrap();
    let mut state = tunnel.state();
    for _ in 0..2 {
        let failed = soon("failure", state.wait_for(|state| matches!(state, State::Failed(_)))).await.unwrap().clone();
        assert!(matches!(&failed, State::Failed(error) if matches!(**error, DialError::Resolve { .. })), "{failed:?}");
        soon("next attempt", state.wait_for(|state| matches!(state, State::Connecting))).await.unwrap();
    }
}

#[tokio::test]
async fn d08_a_refused_key_is_named_and_tried_again() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([]);
    let tunnel = Tunnel::start(config(&agent, &identity, &[(1, 1)])).unwrap();
    let state = reaches(&tunnel, "refusal", |state| matches!(state, State::Failed(_))).await;
    let State::Failed(error) = state else { unreachable!() };
    assert!(matches!(*error, DialError::KeyRefused { key, .. } if key == identity.hash()), "{error:?}");
    assert!(error.to_string().contains(&format!("keyHash \"{}\"", identity.hash())), "{error}");
    assert_eq!(agent.refused().first(), Some(&identity.hash()));
    agent.admit(identity.hash());
    agent.client().await;
    reaches(&tunnel, "connected", |state| matches!(state, State::Connected { .. })).await;
}

#[tokio::test]
async fn d08_another_agent_is_not_talked_to() {
    let identity = Identity::generate().unwrap();
    let (agent, other) = (Agent::start([identity.hash()]), Agent::start([identity.hash()]));
    let mut config = config(&agent, &identity, &[(1, 1)]);
    config.agent = other.address().into();
    let tunnel = Tunnel::start(config).unwrap();
    let state = reaches(&tunnel, "failure", |state| matches!(state, State::Failed(_))).await;
    assert!(matches!(&state, State::Failed(error) if matches!(**error, DialError::OtherAgent { .. })), "{state:?}");
}

#[tokio::test]
async fn d08_a_key_that_is_taken_out_of_the_rules_may_come_back() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let tunnel = Tunnel::start(config(&agent, &identity, &[(1, 1)])).unwrap();
    let client = agent.client().await;
    agent.forget(identity.hash());
    CloseCode::NotAllowed.close(&client);
    let state = reaches(&tunnel, "refusal", |state| matches!(state, State::Lost(_) | State::Failed(_))).await;
    if let State::Lost(lost) = &state {
        assert!(matches!(lost, Lost::NotAllowed { key } if *key == identity.hash()), "{lost:?}");
        assert!(lost.to_string().contains(&identity.hash().to_string()), "{lost}");
    }
    reaches(
        &tunnel,
        "refused key",
        |state| matches!(state, State::Failed(error) if matches!(**error, DialError::KeyRefused { .. })),
    )
    .await;
    agent.admit(identity.hash());
    agent.client().await;
}

#[tokio::test]
async fn another_client_with_the_same_key_ends_the_first() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let mut first = Tunnel::start(config(&agent, &identity, &[(1, 1)])).unwrap();
    let client = agent.client().await;
    CloseCode::Replaced.close(&client);
    let taken_over = soon("end", first.ended()).await;
    assert_eq!(taken_over.address, agent.address());
    assert!(taken_over.to_string().contains("another client with the same key"), "{taken_over}");
    assert!(first.stop().await.is_err());
}

#[tokio::test]
async fn c01_a_clean_stop_is_noticed_by_the_agent_at_once() {
    let local = Local::new().await;
    for by_drop in [false, true] {
        let (agent, tunnel) = connected(&[(local.port, 8080)]).await;
        let client = agent.current();
        let mut stream = accepted(&client, 8080).await;
        let mut server = local.accept().await;
        stream.write_all(b"in the middle of it").await.unwrap();
        server.read_exact(&mut [0; 19]).await.unwrap();

        let since = Instant::now();
        let stopping = async {
            if by_drop {
                drop(tunnel);
            } else {
                tunnel.stop().await.unwrap();
            }
            since.elapsed()
        };
        let noticing = async { (client.closed().await, since.elapsed()) };
        let (stopped, (error, noticed)) = soon("stop", async { tokio::join!(stopping, noticing) }).await;
        assert_eq!(CloseCode::of(&error), Some(CloseCode::Stopped));
        assert!(noticed < Duration::from_millis(200), "{noticed:?}");
        assert!(stopped < Duration::from_millis(1500), "{stopped:?}");
        // What was open locally is reset, not ended as if it were complete.
        let error = soon("reset", server.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_tunnel_without_an_agent_stops_at_once() {
    let identity = Identity::generate().unwrap();
    let mut agent = Agent::start([]);
    agent.kill().await;
    let tunnel = Tunnel::start(config(&agent, &identity, &[(1, 1)])).unwrap();
    let since = Instant::now();
    soon("stop", tunnel.stop()).await.unwrap();
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
}

async fn ping(client: &quinn::Connection) {
    let mut stream = accepted(client, 8080).await;
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    soon("echo", stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"ping");
}
