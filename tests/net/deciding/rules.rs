//! Which requests a rule fits, the same over HTTP/1 and HTTP/2. All requests of a table go over one connection of each
//! version, those that fit and those that do not in turn.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::HeaderValue;
use sluice_tests::peers::{
    ANSWERED_BY,
    http1::{Http1App, Http1Caller, request},
    http2::{Http2App, Http2Caller, read_all},
};

use super::stage::{LAPTOP, POD, PORT, SECOND_PORT, Stage, on, on_stage};

/// Method, target and header fields.
type Ask = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// A rule, requests that it fits and requests that it does not.
struct Table {
    matching: &'static str,
    fit: &'static [Ask],
    other: &'static [Ask],
}

/// Requests that only HTTP/1 knows, byte for byte.
struct Raw {
    matching: &'static str,
    fit: &'static [&'static str],
    other: &'static [&'static str],
}

const HEADERS: &[Table] = &[
    Table {
        matching: "headers: [{name: x-user, value: adam}]",
        fit: &[
            ("GET", "/", &[("x-user", "adam")]),
            ("GET", "/any?x=y", &[("accept", "*/*"), ("x-user", "adam"), ("x-team", "b")]),
            ("DELETE", "/", &[("x-user", "adam")]),
            // Any occurrence of a repeated header, wherever it stands.
            ("GET", "/", &[("x-user", "eva"), ("x-user", "adam")]),
            ("GET", "/", &[("x-user", "adam"), ("x-user", "eva")]),
            ("GET", "/", &[("x-user", ""), ("a", "b"), ("x-user", "eva"), ("c", "d"), ("x-user", "adam")]),
        ],
        other: &[
            ("GET", "/", &[]),
            ("GET", "/", &[("x-user", "eva")]),
            ("GET", "/", &[("x-user", "")]),
            ("GET", "/", &[("x-user", "Adam")]),
            ("GET", "/", &[("x-user", "ADAM")]),
            ("GET", "/", &[("x-user", "ada")]),
            ("GET", "/", &[("x-user", "adama")]),
            ("GET", "/", &[("x-user", "ad am")]),
            ("GET", "/", &[("x-user", "\"adam\"")]),
            // One occurrence with a list in it is one value.
            ("GET", "/", &[("x-user", "eva, adam")]),
            ("GET", "/", &[("x-user", "adam, adam")]),
            ("GET", "/", &[("x-use", "adam"), ("x-user2", "adam"), ("xuser", "adam"), ("x_user", "adam")]),
            ("GET", "/x-user/adam?x-user=adam", &[("referer", "x-user: adam")]),
        ],
    },
    Table {
        matching: "headers: [{name: X-UsEr, value: \"two words, and a comma\"}]",
        fit: &[("GET", "/", &[("x-user", "two words, and a comma")])],
        other: &[
            ("GET", "/", &[("x-user", "two  words, and a comma")]),
            ("GET", "/", &[("x-user", "two words"), ("x-user", "and a comma")]),
        ],
    },
    Table {
        matching: "headers: [{name: x-user, value: ädäm}]",
        fit: &[("GET", "/", &[("x-user", "ädäm")])],
        other: &[("GET", "/", &[("x-user", "adam")]), ("GET", "/", &[("x-user", "ÄDÄM")])],
    },
    Table {
        matching: "headers: [{type: RegularExpression, name: x-user, value: \"ad.m|bert\"}]",
        fit: &[
            ("GET", "/", &[("x-user", "adam")]),
            ("GET", "/", &[("x-user", "ad m")]),
            ("GET", "/", &[("x-user", "bert")]),
            ("GET", "/", &[("x-user", "eva"), ("x-user", "bert")]),
        ],
        // The whole value has to fit, on both sides of the alternative.
        other: &[
            ("GET", "/", &[("x-user", "adamant")]),
            ("GET", "/", &[("x-user", "madam")]),
            ("GET", "/", &[("x-user", "albert")]),
            ("GET", "/", &[("x-user", "bertil")]),
            ("GET", "/", &[("x-user", "Bert")]),
            ("GET", "/", &[("x-user", "")]),
            ("GET", "/", &[]),
        ],
    },
    Table {
        matching: "headers: [{type: RegularExpression, name: x-user, value: \".*\"}]",
        fit: &[("GET", "/", &[("x-user", "")]), ("GET", "/", &[("x-user", "ä")])],
        other: &[("GET", "/", &[("x-team", "a")])],
    },
    Table {
        matching: "headers: [{name: x-user, value: adam}, \
                   {type: RegularExpression, name: x-team, value: \"a[0-9]+\"}, {name: x-zone, value: b}]",
        fit: &[
            ("GET", "/", &[("x-user", "adam"), ("x-team", "a1"), ("x-zone", "b")]),
            ("GET", "/", &[("x-zone", "b"), ("x-team", "a22"), ("x-user", "adam")]),
            ("GET", "/", &[("x-zone", "c"), ("x-team", "b"), ("x-user", "adam"), ("x-team", "a3"), ("x-zone", "b")]),
        ],
        other: &[
            ("GET", "/", &[("x-user", "adam")]),
            ("GET", "/", &[("x-user", "adam"), ("x-team", "a1")]),
            ("GET", "/", &[("x-team", "a1"), ("x-zone", "b")]),
            ("GET", "/", &[("x-user", "eva"), ("x-team", "a1"), ("x-zone", "b")]),
            ("GET", "/", &[("x-user", "adam"), ("x-team", "a"), ("x-zone", "b")]),
            ("GET", "/", &[("x-user", "adam"), ("x-team", "a1"), ("x-zone", "adam")]),
        ],
    },
    Table {
        // HTTP/2 has it in a pseudo header.
        matching: "headers: [{name: host, value: app.test}]",
        fit: &[("GET", "/", &[])],
        other: &[],
    },
];

/// What of a header HTTP/2 cannot show: the name's case, blanks around the value, and places that are no header.
const HEADERS_HTTP1: Raw = Raw {
    matching: "headers: [{name: x-user, value: adam}]",
    fit: &[
        "GET / HTTP/1.1\r\nX-User: adam\r\n\r\n",
        "GET / HTTP/1.1\r\nX-USER: adam\r\n\r\n",
        "GET / HTTP/1.1\r\nx-uSeR: adam\r\n\r\n",
        // Blanks around a value are no part of it (RFC 9110, 5.5).
        "GET / HTTP/1.1\r\nx-user:adam\r\n\r\n",
        "GET / HTTP/1.1\r\nx-user: \t adam\r\n\r\n",
        "GET / HTTP/1.1\r\nx-user: adam \t \r\n\r\n",
        "GET / HTTP/1.1\r\nx-user: eva\r\nX-User: adam\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\nx-user: adam\r\n\r\n",
    ],
    other: &[
        "GET / HTTP/1.1\r\nx-user:\r\n\r\n",
        "GET / HTTP/1.1\r\nx-user: adam eva\r\n\r\n",
        "GET / HTTP/1.1\r\nx-user: adam\t\t.\r\n\r\n",
        "GET / HTTP/1.1\r\nx-user-: adam\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 14\r\n\r\nx-user: adam\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x-user=adam\r\na\r\n0\r\nx-user: adam\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x-user\r\nA: adam\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\nx-user: eva\r\n\r\n",
    ],
};

const PATHS: &[Table] = &[
    Table {
        matching: "path: {type: Exact, value: /v1/items}",
        fit: &[
            ("GET", "/v1/items", &[]),
            ("POST", "/v1/items?", &[]),
            ("GET", "/v1/items?page=2&path=/v2", &[("x-user", "eva")]),
        ],
        other: &[
            ("GET", "/v1/items/", &[]),
            ("GET", "/v1/items/7", &[]),
            ("GET", "/v1/items2", &[]),
            ("GET", "/v1/item", &[]),
            ("GET", "/V1/items", &[]),
            ("GET", "/v1//items", &[]),
            ("GET", "/v1/%69tems", &[]),
            ("GET", "/", &[("x-path", "/v1/items")]),
            ("GET", "/v2?/v1/items", &[]),
        ],
    },
    Table {
        matching: "path: {type: PathPrefix, value: /v1}",
        fit: &[
            ("GET", "/v1", &[]),
            ("GET", "/v1?a=b", &[]),
            ("GET", "/v1/", &[]),
            ("GET", "/v1/a/b?c=/v2", &[]),
            ("GET", "/v1//", &[]),
        ],
        // By path elements, not by letters.
        other: &[
            ("GET", "/v10", &[]),
            ("GET", "/v1.0/a", &[]),
            ("GET", "/", &[]),
            ("GET", "/a/v1", &[]),
            ("GET", "/V1/a", &[]),
            ("GET", "/v?/v1/", &[]),
        ],
    },
    Table {
        matching: "path: {value: /v1/}",
        fit: &[("GET", "/v1", &[]), ("GET", "/v1/a", &[])],
        other: &[("GET", "/v11", &[]), ("GET", "/v2/v1/", &[])],
    },
    Table {
        matching: "path: {type: RegularExpression, value: \"/items/[0-9]+(/.*)?\"}",
        fit: &[("GET", "/items/7", &[]), ("GET", "/items/42/parts", &[]), ("GET", "/items/7?sort=/x", &[])],
        other: &[
            ("GET", "/items/", &[]),
            ("GET", "/items/7a", &[]),
            ("GET", "/all/items/7", &[]),
            ("GET", "/items?/items/7", &[]),
        ],
    },
    Table {
        matching: "headers: [{name: x-user, value: adam}], path: {value: /v1}",
        fit: &[("GET", "/v1/a", &[("x-user", "adam")]), ("PUT", "/v1?b", &[("x-user", "adam")])],
        other: &[("GET", "/v1/a", &[]), ("GET", "/v1/a", &[("x-user", "eva")]), ("GET", "/v2", &[("x-user", "adam")])],
    },
    Table {
        matching: "method: POST",
        fit: &[("POST", "/", &[]), ("POST", "/GET", &[("x-user", "eva")])],
        // Methods are told apart by case (RFC 9110, 9.1).
        other: &[
            ("GET", "/", &[]),
            ("GET", "/POST", &[("x-http-method-override", "POST")]),
            ("PUT", "/", &[]),
            ("post", "/", &[]),
            ("POSTS", "/", &[]),
        ],
    },
    Table {
        matching: "headers: [{name: x-user, value: adam}], path: {type: Exact, value: /v1}, method: PUT",
        fit: &[("PUT", "/v1", &[("x-user", "adam")])],
        other: &[
            ("GET", "/v1", &[("x-user", "adam")]),
            ("PUT", "/v2", &[("x-user", "adam")]),
            ("PUT", "/v1", &[("x-user", "eva")]),
        ],
    },
];

/// Targets that HTTP/2 does not have in this form.
const PATHS_HTTP1: Raw = Raw {
    matching: "path: {value: /v1}",
    fit: &[
        "GET http://app.test/v1/a HTTP/1.1\r\nHost: app.test\r\n\r\n",
        "GET http://app.test/v1?a=b HTTP/1.1\r\nHost: app.test\r\n\r\n",
        "GET /v1?http://other.test/v2 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    ],
    other: &[
        "OPTIONS * HTTP/1.1\r\nHost: app.test\r\n\r\n",
        "GET http://app.test HTTP/1.1\r\nHost: app.test\r\n\r\n",
        "GET http://v1/v2 HTTP/1.1\r\nHost: app.test\r\n\r\n",
        "GET /http://app.test/v1 HTTP/1.1\r\nHost: app.test\r\n\r\n",
    ],
};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b01_headers_decide() -> Result<()> {
    on_stage("b01", async |stage| {
        judge(stage, HEADERS, &HEADERS_HTTP1).await?;
        // A value that can never arrive is no rule that silently takes nothing.
        for impossible in ["\" adam\"", "\"adam \"", "\"adam\\t\"", "\"a\\nb\""] {
            let said = stage.refused_match(&format!("headers: [{{name: x-user, value: {impossible}}}]")).await?;
            ensure!(said.contains("can never arrive"), "{impossible}: {said}");
        }
        let said = stage.refused_match("headers: [{type: RegularExpression, name: x-user, value: \"a)|(b\"}]").await?;
        ensure!(said.contains("a)|(b"), "{said}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b02_path_and_method_decide() -> Result<()> {
    on_stage("b02", async |stage| judge(stage, PATHS, &PATHS_HTTP1).await).await
}

async fn judge(stage: &Stage, tables: &[Table], raw: &Raw) -> Result<()> {
    let _http1 = [Http1App::start(&stage.pod, on(PORT), POD)?, Http1App::start(&stage.laptop, on(PORT), LAPTOP)?];
    let _http2 =
        [Http2App::start(&stage.pod, on(SECOND_PORT), POD)?, Http2App::start(&stage.laptop, on(SECOND_PORT), LAPTOP)?];
    for Table { matching, fit, other } in tables {
        stage.set_match(matching).await?;
        let mut http1 = Http1Caller::connect(&stage.caller, stage.app()).await?;
        let http2 = Http2Caller::connect(&stage.caller, stage.second_app()).await?;
        for (ask, expected) in in_turn(fit, other) {
            let (method, target, headers) = ask;
            over_http1(&mut http1, &request(method, target, headers, b""), expected).await.context(*matching)?;
            let by = over_http2(&http2, ask).await.with_context(|| format!("{matching}: {ask:?} over HTTP/2"))?;
            ensure!(by == expected, "{matching}: {ask:?} over HTTP/2: answered by {by}, not by {expected}");
        }
    }
    stage.set_match(raw.matching).await?;
    let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
    for (bytes, expected) in in_turn(raw.fit, raw.other) {
        over_http1(&mut caller, bytes.as_bytes(), expected).await.context(raw.matching)?;
    }
    Ok(())
}

/// The requests with those who must answer, alternating as long as there are both.
fn in_turn<T>(fit: &'static [T], other: &'static [T]) -> impl Iterator<Item = (&'static T, &'static str)> {
    (0..fit.len().max(other.len())).flat_map(move |at| {
        [fit.get(at).map(|ask| (ask, LAPTOP)), other.get(at).map(|ask| (ask, POD))].into_iter().flatten()
    })
}

async fn over_http1(caller: &mut Http1Caller, request: &[u8], expected: &str) -> Result<()> {
    let what = || String::from_utf8_lossy(request).into_owned();
    caller.send(request).await?;
    let answer = caller.response("GET").await.with_context(what)?;
    ensure!(answer.answered_by() == Some(expected), "{:?} answered by {:?}", what(), answer.answered_by());
    ensure!(answer.request_seen() == request, "{:?} came as {:?}", what(), answer.request_seen().escape_ascii());
    Ok(())
}

async fn over_http2(caller: &Http2Caller, ask: &Ask) -> Result<String> {
    let (method, target, headers) = *ask;
    let mut request = http::Request::builder().method(method).uri(format!("http://app.test{target}"));
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    let (answer, _) = caller.open(request.body(())?, true).await?;
    let (parts, mut body) = answer.await?.into_parts();
    let (content, _): (Bytes, _) = read_all(&mut body).await?;
    let by = parts.headers.get(ANSWERED_BY).context("nobody says who answered")?.to_str()?;
    ensure!(content == format!("{by}\n"), "the content is not {by}'s");
    Ok(by.to_owned())
}
