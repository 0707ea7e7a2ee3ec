use std::net::TcpListener;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn own_sources_are_told_from_others_also_v4_mapped() {
    for own in ["127.77.0.1", "127.77.255.255", "::ffff:127.77.3.4", "fd91:f3ea:b62:eebf::1"] {
        assert!(is_own_source(own.parse().unwrap()), "{own}");
    }
    for other in ["127.0.0.1", "127.78.0.1", "10.77.0.1", "::1", "fd91:f3ea:b62:eebe::1", "::ffff:127.0.0.1"] {
        assert!(!is_own_source(other.parse().unwrap()), "{other}");
    }
}

#[test]
fn addresses_are_tried_in_order_without_repeating_one() {
    let tried = |original, remembered| -> Vec<String> {
        Place::order(remembered).filter_map(|place| place.address(address(original))).map(|a| a.to_string()).collect()
    };
    assert_eq!(tried("10.0.0.1:80", None), ["127.0.0.1:80", "[::1]:80", "10.0.0.1:80"]);
    assert_eq!(tried("127.0.0.1:80", None), ["127.0.0.1:80", "[::1]:80"]);
    assert_eq!(tried("[::1]:80", Some(Place::LoopbackV6)), ["[::1]:80", "127.0.0.1:80"]);
    assert_eq!(tried("[fd00::1]:80", Some(Place::Original)), ["[fd00::1]:80", "127.0.0.1:80", "[::1]:80"]);
}

#[test]
fn mapped_addresses_become_ipv4_and_link_local_ones_keep_their_interface() {
    assert_eq!(canonical(address("[::ffff:10.0.0.1]:80")), address("10.0.0.1:80"));
    assert_eq!(canonical(address("[fe80::1%3]:80")), address("[fe80::1%3]:80"));
}

#[tokio::test]
async fn connects_from_an_own_source_and_remembers_where() {
    let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = app.local_addr().unwrap().port();
    let dialer = AppDialer::new();
    let first = dialer.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap();
    let second = dialer.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap();

    assert!(is_own_source(first.local_addr().unwrap().ip()));
    assert_ne!(first.local_addr().unwrap().ip(), second.local_addr().unwrap().ip());
    assert_eq!(app.accept().unwrap().1, first.local_addr().unwrap());
    assert!(first.nodelay().unwrap());
    assert_eq!(dialer.shared.remembered(port), Some(Place::LoopbackV4));
}

#[tokio::test]
async fn a_full_backlog_is_waited_for() {
    let app = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    app.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    app.listen(0).unwrap();
    let app: TcpListener = app.into();
    let target = app.local_addr().unwrap();
    let dialer = AppDialer::new();
    let first = dialer.connect(target).await.unwrap();

    let mut second = Box::pin(dialer.connect(target));
    tokio::select! {
        biased;
        // Nobody accepts, so the handshake cannot end while this waits.
        result = &mut second => panic!("the backlog holds one connection only: {result:?}"),
        () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
    }
    drop(app.accept().unwrap());
    drop(first);
    second.await.unwrap();
}

#[tokio::test]
async fn nobody_listening_is_told_from_other_errors() {
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let error = AppDialer::new().connect(gone).await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert_eq!(
        error.to_string(),
        format!("nobody listens on port {}, neither on a loopback address nor on 127.0.0.1", gone.port())
    );
}
