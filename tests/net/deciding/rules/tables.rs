//! The rules, and the requests that fit them or do not.

/// Method, target and header fields.
pub(super) type Ask = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// A rule, requests that it fits and requests that it does not.
pub(super) struct Table {
    pub(super) matching: &'static str,
    pub(super) fit: &'static [Ask],
    pub(super) other: &'static [Ask],
}

/// Requests that only HTTP/1 knows, byte for byte.
pub(super) struct Raw {
    pub(super) matching: &'static str,
    pub(super) fit: &'static [&'static str],
    pub(super) other: &'static [&'static str],
}

pub(super) const HEADERS: &[Table] = &[
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
pub(super) const HEADERS_HTTP1: Raw = Raw {
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

pub(super) const BAGGAGE: &[Table] = &[
    Table {
        matching: "baggage: [{name: sluice, value: adam}]",
        fit: &[
            ("GET", "/", &[("baggage", "a=1,sluice=adam;p=q")]),
            ("GET", "/", &[("baggage", "sluice=adam")]),
            ("POST", "/a?b", &[("baggage", " a = 1 ,\t sluice = adam ; p ; q = r ")]),
            ("GET", "/", &[("baggage", "sluice=%61d%61m,b=2")]),
            ("GET", "/", &[("baggage", "a=1"), ("accept", "*/*"), ("baggage", "b=2,sluice=adam")]),
            ("GET", "/", &[("baggage", "sluice=eva,sluice=adam")]),
            // A broken member stands in nobody's way.
            ("GET", "/", &[("baggage", ",;,=,a,b=%,\"c\"=d,sluice=adam")]),
        ],
        other: &[
            ("GET", "/", &[]),
            ("GET", "/", &[("baggage", "")]),
            ("GET", "/", &[("baggage", "a=1,sluice=eva")]),
            ("GET", "/", &[("baggage", "sluice=adama,sluice=ada,xsluice=adam,sluic=adam")]),
            ("GET", "/", &[("baggage", "Sluice=adam,sluice=Adam")]),
            ("GET", "/", &[("baggage", "a=1;sluice=adam,b=sluice=adam")]),
            ("GET", "/", &[("baggage", "sluice=\"adam\"")]),
            ("GET", "/", &[("baggage", "sluice=ad am")]),
            ("GET", "/", &[("baggage", "a=1 sluice=adam")]),
            ("GET", "/", &[("baggage", "sluice=ada%6,sluice=%adam,sluice")]),
            ("GET", "/?baggage=sluice=adam", &[("sluice", "adam"), ("x-baggage", "sluice=adam")]),
        ],
    },
    Table {
        matching: "headers: [{name: x-user, value: adam}], \
                   baggage: [{name: who, value: \"ä, b\"}, {name: empty, value: \"\"}], path: {value: /v1}",
        fit: &[("GET", "/v1/a", &[("x-user", "adam"), ("baggage", "empty=,who=%C3%A4%2C%20b")])],
        other: &[
            ("GET", "/v2", &[("x-user", "adam"), ("baggage", "empty=,who=%C3%A4%2C%20b")]),
            ("GET", "/v1", &[("x-user", "eva"), ("baggage", "empty=,who=%C3%A4%2C%20b")]),
            ("GET", "/v1", &[("x-user", "adam"), ("baggage", "who=%C3%A4%2C%20b")]),
            ("GET", "/v1", &[("x-user", "adam"), ("baggage", "empty=,who=b")]),
        ],
    },
];

/// What of it HTTP/2 cannot show: the header's name in any case.
pub(super) const BAGGAGE_HTTP1: Raw = Raw {
    matching: "baggage: [{name: sluice, value: adam}]",
    fit: &[
        "GET / HTTP/1.1\r\nBaggage: a=1,sluice=adam;p=q\r\n\r\n",
        "GET / HTTP/1.1\r\nBAGGAGE: a=1\r\nbaggage:\tsluice=adam \r\n\r\n",
    ],
    other: &["GET / HTTP/1.1\r\nBaggage: a=1\r\nsluice: adam\r\n\r\n"],
};

pub(super) const PATHS: &[Table] = &[
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
        matching: "headers: [{name: x-user, value: adam}], path: {type: RegularExpression, value: \"/v[12]/.+\"}, \
                   method: GET",
        fit: &[("GET", "/v2/a", &[("x-user", "adam")]), ("GET", "/v1/a/b?c", &[("x-user", "adam")])],
        other: &[
            ("GET", "/v3/a", &[("x-user", "adam")]),
            ("GET", "/v2/", &[("x-user", "adam")]),
            ("GET", "/v2/a", &[]),
            ("POST", "/v2/a", &[("x-user", "adam")]),
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
pub(super) const PATHS_HTTP1: Raw = Raw {
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
