use super::*;
use sluice_protocol::rules::RuleFile;

fn request(text: &str) -> Parsed<(RequestHead, ())> {
    parse_request(text.as_bytes(), |_| ())
}

fn head(text: &str) -> RequestHead {
    match request(text) {
        Parsed::Head((head, ())) => head,
        other => panic!("{other:?}: {text}"),
    }
}

#[test]
fn framing_of_requests() {
    let get = head("GET / HTTP/1.1\r\nHost: a\r\n\r\nrest");
    assert_eq!((get.len, get.body, get.kind, get.close), (27, Body::EMPTY, RequestKind::Other, false));
    assert_eq!(head("POST / HTTP/1.1\r\nCONTENT-length:  12 \r\n\r\n").body, Body::Length(12));
    assert_eq!(head("POST / HTTP/1.1\r\ntransfer-Encoding: Chunked\r\n\r\n").body, Body::CHUNKED);
    assert_eq!(head("HEAD / HTTP/1.1\r\n\r\n").kind, RequestKind::Head);
    assert!(head("GET / HTTP/1.0\r\n\r\n").close);
    assert!(!head("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").close);
    assert!(head("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n").close);
    assert_eq!(
        head("GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n").upgrade,
        Upgrade::Other
    );
    assert_eq!(
        head("GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n").upgrade,
        Upgrade::H2c
    );
    assert_eq!(head("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n").upgrade, Upgrade::None);
    for several in
        ["Upgrade: websocket\r\nUpgrade: h2c", "Upgrade: h2c\r\nUpgrade: websocket", "Upgrade: h2c, websocket"]
    {
        let head = head(&format!("GET / HTTP/1.1\r\nConnection: Upgrade\r\n{several}\r\n\r\n"));
        assert_eq!(head.upgrade, Upgrade::Other, "{several}");
    }
    assert!(head("PUT / HTTP/1.1\r\n\r\n").idempotent && !head("POST / HTTP/1.1\r\n\r\n").idempotent);
}

#[test]
fn doubtful_requests_are_doubted() {
    let cases = [
        ("GET / HTTP/1.1\nHost: a\n\n", Doubt::Grammar),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", Doubt::Grammar),
        ("GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n", Doubt::Grammar),
        ("GET / HTTP/1.1\r\na : b\r\n\r\n", Doubt::Grammar),
        ("GET / HTTP/1.1\r\na: b\0\r\n\r\n", Doubt::Grammar),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Doubt::Length),
        ("POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", Doubt::Length),
        ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Doubt::Length),
        ("POST / HTTP/1.1\r\nContent-Length: 1234567890123456789\r\n\r\n", Doubt::Length),
        ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", Doubt::Length),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Doubt::Length),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Doubt::Coding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Doubt::Coding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", Doubt::Coding),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Doubt::Coding),
        ("CONNECT a:1 HTTP/1.1\r\n\r\n", Doubt::Connect),
        ("GET /\r\n\r\n", Doubt::NotHttp),
        ("get / HTTP/1.1\r\n\r\n", Doubt::NotHttp),
        ("\nGET / HTTP/1.1\r\n\r\n", Doubt::NotHttp),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1\r\n\r\n", Doubt::NotHttp),
        ("PRI * HTTP/2.0\r\n\r\n", Doubt::NotHttp),
        ("\x16\x03\x01\x02", Doubt::NotHttp),
    ];
    for (text, doubt) in cases {
        assert_eq!(request(text), Parsed::Doubt(doubt), "{text:?}");
    }
}

#[test]
fn many_headers_and_long_heads_are_read_up_to_the_limits() {
    let headers = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
    assert_eq!(head(&headers(MAX_HEADERS)).body, Body::EMPTY);
    assert_eq!(request(&headers(MAX_HEADERS + 1)), Parsed::Doubt(Doubt::TooLarge));
    let long = |n: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(n));
    assert_eq!(head(&long(MAX_HEAD - 23)).len, MAX_HEAD);
    assert_eq!(request(&long(MAX_HEAD - 22)), Parsed::Doubt(Doubt::TooLarge));
    assert_eq!(request(&long(MAX_HEAD)[..MAX_HEAD]), Parsed::Doubt(Doubt::TooLarge));
    assert_eq!(request(&long(MAX_HEAD)[..MAX_HEAD - 1]), Parsed::Partial);
}

#[test]
fn the_path_is_without_query_in_every_form() {
    for (target, path) in [
        ("/a/b?c=/d", "/a/b"),
        ("/", "/"),
        ("*", "*"),
        ("http://host:80/a?b", "/a"),
        ("http://host", "/"),
        ("http://host?q=/x", "/"),
        ("http://ho#st/x", "/"),
        ("/redirect?to=http://other/x", "/redirect"),
    ] {
        assert_eq!(path_of(target), path, "{target}");
    }
}

#[test]
fn rules_see_every_occurrence_without_blanks_around() {
    let rules = RuleFile::parse(&format!(
        "intercepts:\n- name: a\n  ports: [{{port: 80}}]\n  client: {{keyHash: \"sha256:{:064}\"}}\n  match: {{method: GET, \
         path: {{type: Exact, value: /p}}, headers: [{{name: x-user, value: eve}}, {{name: x-user, value: café adam}}]}}",
        1
    ));
    let rules = matcher::RuleSet::compile(&rules.unwrap()).unwrap();
    let fits = |text: &str| match parse_request(text.as_bytes(), |view| rules.port(80).unwrap().decide(view)) {
        Parsed::Head((_, fits)) => fits.taken_by.is_some(),
        _ => panic!("no head"),
    };
    assert!(fits("GET /p?q HTTP/1.1\r\nX-User:\t eve \r\nx-USER: caf\u{e9} adam\t\r\n\r\n"));
    assert!(!fits("GET /p?q HTTP/1.1\r\nX-User:\t eve \r\n\r\n"));
    assert!(!fits("GET /p/q HTTP/1.1\r\nX-User: eve\r\nx-user: caf\u{e9} adam\r\n\r\n"));
}
