//! Connections to the app while its port is steered: each must reach the app, or the agent would talk to itself.

use std::time::{Duration, Instant};

use sluice_agent::dialer::{AppDialer, is_own_source};

use crate::namespace::{By, Scene, in_namespace_async, run};

const OWN_V4: &str = "10.9.0.1:8080";
const OWN_V6: &str = "[fd00:9::1]:8080";
const ROUTE: &str = "local fd91:f3ea:b62:eebf::/64 dev lo";

/// An app that listens on one address, reached by the dialer for callers that used others.
fn reaches(app: &'static str, v6only: bool, originals: &'static [&'static str], needs_route: bool) {
    in_namespace_async(move || async move {
        run("ip link add name pod type veth peer name other");
        run("ip addr add 10.9.0.1/24 dev pod");
        run("ip addr add fd00:9::1/64 dev pod nodad");
        run("ip link set pod up");
        run("ip link set other up");
        let mut scene = Scene::new();
        scene.app(app, v6only);
        scene.steer(&[8080]);
        let dialer = AppDialer::new();
        // Twice each: the first time the address is found, then it is known.
        for original in originals.iter().chain(originals) {
            let connection = dialer.connect(original.parse().unwrap()).await.unwrap();
            let (by, accepted) = scene.accept();
            assert_eq!(by, By::App, "{original}");
            let (seen, own) = (accepted.peer_addr().unwrap(), connection.local_addr().unwrap());
            assert_eq!((seen.ip().to_canonical(), seen.port()), (own.ip(), own.port()));
            assert!(is_own_source(seen.ip()));
        }
        assert_eq!(scene.kernel.counters().unwrap().steered, 0);
        assert_eq!(has_route(), needs_route, "{}", routes());
        drop(dialer);
        assert!(!has_route(), "removed with the dialer");
    });
}

fn routes() -> String {
    run("ip -6 route show table local")
}

fn has_route() -> bool {
    routes().contains(ROUTE)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_127_0_0_1_only() {
    reaches("127.0.0.1:8080", false, &["127.0.0.1:8080", OWN_V4], false);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_all_addresses() {
    reaches("0.0.0.0:8080", false, &["127.0.0.1:8080", OWN_V4], false);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_both_families_without_a_route() {
    reaches("[::]:8080", false, &["127.0.0.1:8080", OWN_V4, "[::1]:8080", OWN_V6, "[::ffff:10.9.0.1]:8080"], false);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_ipv6_only() {
    reaches("[::]:8080", true, &["[::1]:8080", OWN_V6], true);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_the_ipv6_loopback_only() {
    reaches("[::1]:8080", true, &["[::1]:8080"], true);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_the_pods_own_ipv4_address_only() {
    reaches(OWN_V4, false, &[OWN_V4, "[::ffff:10.9.0.1]:8080"], false);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn reaches_an_app_on_the_pods_own_ipv6_address_only() {
    reaches(OWN_V6, true, &[OWN_V6], true);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_app_that_is_down_is_refused_and_needs_no_route() {
    in_namespace_async(|| async {
        run("ip addr add fd00:9::1/128 dev lo nodad");
        let mut scene = Scene::new();
        scene.steer(&[8080]);
        let dialer = AppDialer::new();
        for original in ["127.0.0.1:8080", "[::1]:8080", OWN_V6] {
            let error = dialer.connect(original.parse().unwrap()).await.unwrap_err();
            assert!(error.is_refused(), "{original}: {error}");
        }
        assert!(!has_route(), "{}", routes());
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_app_that_moves_to_another_address_is_found_again() {
    in_namespace_async(|| async {
        let mut scene = Scene::new();
        scene.steer(&[8080]);
        let dialer = AppDialer::new();
        for address in ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8080"] {
            scene.app(address, true);
            dialer.connect("127.0.0.1:8080".parse().unwrap()).await.unwrap();
            assert_eq!(scene.accept().0, By::App, "{address}");
            scene.apps.clear();
            let error = dialer.connect("127.0.0.1:8080".parse().unwrap()).await.unwrap_err();
            assert!(error.is_refused(), "{error}");
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_host_without_ipv6_is_served_and_refuses_as_any_other() {
    in_namespace_async(|| async {
        run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1");
        let mut scene = Scene::new();
        assert!(scene.agent.as_ref().unwrap().v6.is_none());
        scene.steer(&[8080]);
        let dialer = AppDialer::new();
        let error = dialer.connect("127.0.0.1:8080".parse().unwrap()).await.unwrap_err();
        assert!(error.is_refused(), "{error}");
        scene.app("127.0.0.1:8080", false);
        assert_eq!(scene.connect("127.0.0.1:8080"), By::Agent);
        dialer.connect("127.0.0.1:8080".parse().unwrap()).await.unwrap();
        assert_eq!(scene.accept().0, By::App);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_route_expires_by_itself() {
    in_namespace_async(|| async {
        let mut scene = Scene::new();
        scene.app("[::1]:8080", true);
        let dialer = AppDialer::new();
        dialer.connect("[::1]:8080".parse().unwrap()).await.unwrap();
        let routes = routes();
        let line = routes.lines().find(|line| line.contains(ROUTE)).expect("the route is there");
        let expires: u32 =
            line.split("expires ").nth(1).and_then(|rest| rest.split("sec").next()).unwrap().parse().unwrap();
        assert!((10..=15).contains(&expires), "{line}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn thirty_thousand_connections_within_a_minute() {
    const CONNECTIONS: u32 = 30_000;
    in_namespace_async(|| async {
        let mut scene = Scene::new();
        scene.app("127.0.0.1:8080", false);
        scene.steer(&[8080]);
        let dialer = AppDialer::new();
        let target = "127.0.0.1:8080".parse().unwrap();
        let started = Instant::now();
        for _ in 0..CONNECTIONS {
            // Closed by the dialer's side first, so that each of its ports goes to TIME_WAIT.
            drop(dialer.connect(target).await.unwrap());
            drop(scene.apps[0].accept().unwrap());
        }
        let took = started.elapsed();
        println!("{CONNECTIONS} connections in {took:?}");
        // Where the ports run out it takes minutes.
        assert!(took < Duration::from_secs(40), "{took:?}");
        let counters = scene.kernel.counters().unwrap();
        assert!(counters.own >= u64::from(CONNECTIONS) && counters.steered == 0, "{counters:?}");
    });
}
