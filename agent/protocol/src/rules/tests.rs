use super::{
    matcher::{Request, RuleSet, Seen},
    *,
};

const KEY: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

struct Head<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Request for Head<'_> {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn headers(&self, seen: &mut Seen<'_>) {
        self.headers.iter().for_each(|(name, value)| seen.header(name, value.as_bytes()));
    }
}

/// A file of intercepts on port 80, each given as (name, its other lines).
fn file(intercepts: &[(&str, &str)]) -> String {
    let mut text = "intercepts:\n".to_owned();
    for (name, rest) in intercepts {
        text += &format!("- name: {name}\n  ports: [{{port: 80}}]\n  client: {{keyHash: \"{KEY}\"}}\n");
        rest.lines().for_each(|line| text += &format!("  {line}\n"));
    }
    text
}

fn rules(intercepts: &[(&str, &str)]) -> RuleSet {
    RuleSet::compile(&RuleFile::parse(&file(intercepts)).unwrap()).unwrap()
}

fn decide(rules: &RuleSet, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<String> {
    let fits = rules.port(80)?.decide(&Head { method, path, headers });
    fits.taken_by.map(|rule| rule.intercept.name.clone())
}

fn copied<'a>(rules: &RuleSet, headers: &'a [(&'a str, &'a str)]) -> Vec<String> {
    let fits = rules.port(80).unwrap().decide(&Head { method: "GET", path: "/", headers });
    fits.copied_to.iter().map(|rule| rule.intercept.name.clone()).collect()
}

fn refused(text: &str) -> String {
    RuleFile::parse(text).unwrap_err().to_string()
}

#[test]
fn reads_yaml_and_json_alike() {
    let yaml = RuleFile::parse(&file(&[(
        "a",
        "owner: adam\ncreated: 2026-11-25T17:00:00Z\nonUnavailable: Reject\nmatch: {headers: [{name: X-User, value: adam}], path: {value: /v1}, method: GET}",
    )]))
    .unwrap();
    let json = serde_json::to_string(&yaml).unwrap();
    assert_eq!(RuleFile::parse(&json).unwrap(), yaml);
    assert_eq!(yaml.intercepts[0].matches.headers[0].name().as_str(), "x-user");
    assert_eq!(yaml.intercepts[0].on_unavailable, OnUnavailable::Reject);
    assert_eq!(RuleFile::parse("").unwrap(), RuleFile::default());
    assert_eq!(RuleFile::parse("exempt: [10.0.0.1/32, fd00::/8]").unwrap().exempt.len(), 2);
}

#[test]
fn the_way_is_asked_for_in_a_word_and_left_out_where_the_agent_chooses() {
    let get = "match: {method: GET}";
    for (way, steering) in [("auto", Steering::Auto), ("insertion", Steering::Insertion), ("lookup", Steering::Lookup)]
    {
        let file = RuleFile::parse(&file(&[("a", &format!("steering: {way}\n{get}"))])).unwrap();
        assert_eq!(file.intercepts[0].steering, steering);
        let json = serde_json::to_value(&file).unwrap();
        // Agents from before it know no such field.
        assert_eq!(json["intercepts"][0].get("steering"), (way != "auto").then_some(&way.into()));
        assert_eq!(RuleFile::parse(&json.to_string()).unwrap(), file);
    }
    assert_eq!(RuleFile::parse(&file(&[("a", get)])).unwrap().intercepts[0].steering, Steering::Auto);
    assert_eq!(RuleFile::parse(&file(&[("a", "steering: lookup")])).unwrap().intercepts[0].steering, Steering::Lookup);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_line_and_reason() {
    let at = |rest: &str| refused(&file(&[("good", ""), ("bad", rest)]));
    for (rest, line, reason) in [
        ("colour: red", "line 8", "colour"),
        ("match: {headers: [{type: RegularExpression, name: a, value: \"(\"}]}", "line 8", "regular expression"),
        (
            "match: {headers: [{type: RegularExpression, name: a, value: \"a)|(b\"}]}",
            "line 8",
            "\"a)|(b\" cannot be used",
        ),
        ("match: {headers: [{type: RegularExpression, name: a, value: \"(\"}]}", "line 8", "unclosed group"),
        ("match: {headers: [{type: RegularExpression, name: a, value: \"(?=b)a\"}]}", "line 8", "without look-around"),
        (
            "match: {path: {type: RegularExpression, value: \"/(a{99}){999}\"}}",
            "line 8",
            "\"/(a{99}){999}\" takes more than 256 KiB",
        ),
        ("match: {baggage: [{name: \"a b\", value: c}]}", "line 8", "baggage member"),
        ("match: {baggage: [{name: a, value: c, type: RegularExpression}]}", "line 8", "type"),
        ("mode: Peek", "line 8", "Peek"),
        ("mode: Wiretap\nonUnavailable: Reject", "line 5", "leave out `onUnavailable`"),
        ("steering: Insertion", "line 8", "Insertion"),
        ("steering: insertion", "line 5", "insertion needs HTTP conditions: add a `match`"),
        ("steering: insertion\nmatch: {}\nmode: Wiretap", "line 5", "or leave out `steering`"),
        ("match: {headers: [{name: \"x user\", value: a}]}", "line 8", "header name"),
        ("match: {headers: [{name: x, value: \" a\"}]}", "line 8", "can never arrive"),
        ("match: {path: {value: v1}}", "line 8", "must begin with /"),
        ("match: {method: \"GET /\"}", "line 8", "method"),
        ("onUnavailable: Explode", "line 8", "Explode"),
        ("created: yesterday", "line 8", "yesterday"),
    ] {
        let message = at(rest);
        assert!(message.contains(line) && message.contains(reason), "{rest}: {message}");
    }
    assert!(
        refused(&file(&[("same", ""), ("other", ""), ("same", "")]))
            .contains("line 8: the name \"same\" is used twice, first in line 2")
    );
    let no_ports = format!("intercepts:\n- name: a\n  ports: []\n  client: {{keyHash: \"{KEY}\"}}\n");
    assert!(refused(&no_ports).contains("line 2: intercept \"a\" has no ports"));
    assert!(refused(&no_ports.replace("[]", "[{port: 0}]")).contains("line 3"));
    assert!(refused(&no_ports.replace("[]", "[{port: 53, protocol: UDP}]")).contains("UDP cannot be intercepted yet"));
    assert!(refused(&file(&[("a", "")]).replace(KEY, "sha256:12")).contains("line 4"));
    assert!(refused(&"#".repeat(MAX_FILE_BYTES + 1)).contains("at most"));
    assert!(refused("intercepts: [").contains("line 1"));
}

#[test]
fn header_conditions_are_anded_and_compared_exactly() {
    let rules = rules(&[(
        "a",
        "match: {headers: [{name: X-User, value: adam}, {type: RegularExpression, name: team, value: \"b.t|z\"}]}",
    )]);
    let fits = |headers: &[(&str, &str)]| decide(&rules, "GET", "/", headers).as_deref() == Some("a");
    assert!(fits(&[("x-USER", "adam"), ("Team", "bit")]));
    assert!(fits(&[("x-user", "eve"), ("x-user", "adam"), ("team", "z")]));
    assert!(!fits(&[("x-user", "adam")]));
    assert!(!fits(&[("x-user", "Adam"), ("team", "bit")]));
    assert!(!fits(&[("x-user", "adam"), ("team", "bits")]));
    assert!(!fits(&[("x-user", "adam"), ("team", "abit")]));
}

#[test]
fn paths_by_element_exact_and_expression_and_methods() {
    let set = rules(&[("p", "match: {path: {value: /v1/}}")]);
    for (path, fits) in [("/v1", true), ("/v1/", true), ("/v1/x", true), ("/v10", false), ("/", false), ("*", false)] {
        assert_eq!(decide(&set, "GET", path, &[]).is_some(), fits, "{path}");
    }
    let set = rules(&[("p", "match: {path: {type: Exact, value: /v1}, method: POST}")]);
    assert!(decide(&set, "POST", "/v1", &[]).is_some());
    assert!(decide(&set, "post", "/v1", &[]).is_none());
    assert!(decide(&set, "POST", "/v1/", &[]).is_none());
    let set = rules(&[("p", "match: {path: {type: RegularExpression, value: \"/v[0-9]+\"}}")]);
    assert!(decide(&set, "GET", "/v12", &[]).is_some() && decide(&set, "GET", "/v12/x", &[]).is_none());
    let set = rules(&[("p", "match: {path: {value: /}}")]);
    assert!(decide(&set, "GET", "/any", &[]).is_some() && decide(&set, "GET", "*", &[]).is_none());
}

#[test]
fn b18_one_member_of_the_baggage_decides() {
    let set = rules(&[("a", "match: {baggage: [{name: sluice, value: adam}]}")]);
    let fits = |headers: &[(&str, &str)]| decide(&set, "GET", "/", headers).is_some();
    for value in [
        "a=1,sluice=adam;p=q",
        "sluice=adam",
        " sluice = adam ",
        "sluice=%61dam",
        "sluice=eva,sluice=adam",
        "a=%,sluice=adam",
    ] {
        assert!(fits(&[("Baggage", value)]), "{value}");
    }
    assert!(fits(&[("baggage", "a=1"), ("baggage", "b=2,sluice=adam")]));
    for value in [
        "",
        "sluice",
        "sluice=",
        "sluice=eva",
        "sluice=Adam",
        "Sluice=adam",
        "sluice=adama",
        "xsluice=adam",
        "sluice=\"adam\"",
        "sluice=adam x",
        "a=sluice=adam",
        "a=1;sluice=adam",
        "sluice;=adam",
        "sluice=ada%6",
        "sluice=ada%gg",
        "a=1 sluice=adam",
    ] {
        assert!(!fits(&[("baggage", value)]), "{value}");
    }
    assert!(!fits(&[("x-baggage", "sluice=adam"), ("sluice", "adam")]));
    let set = rules(&[(
        "a",
        "match: {baggage: [{name: who, value: \"ä, b\"}, {name: x, value: \"\"}], headers: [{name: y, value: z}]}",
    )]);
    assert!(decide(&set, "GET", "/", &[("y", "z"), ("baggage", "x=;p,who=%C3%A4%2C%20b")]).is_some());
    assert!(decide(&set, "GET", "/", &[("y", "z"), ("baggage", "who=%C3%A4%2C%20b")]).is_none());
    assert!(decide(&set, "GET", "/", &[("baggage", "x=;p,who=%C3%A4%2C%20b")]).is_none());
}

#[test]
fn c11_probes_fit_only_where_they_are_included() {
    let set = rules(&[("a", "match: {path: {value: /}}")]);
    assert!(decide(&set, "GET", "/", &[("user-agent", "kube-probe/1.37")]).is_none());
    assert!(decide(&set, "GET", "/", &[("User-Agent", "kube-probe/1.37 grpc-go/1.80")]).is_none());
    for other in ["curl/8", "Kube-Probe/1", "kube-probe", "x kube-probe/1"] {
        assert!(decide(&set, "GET", "/", &[("user-agent", other)]).is_some(), "{other}");
    }
    assert!(decide(&set, "GET", "/", &[("x-user-agent", "kube-probe/1.37")]).is_some());
    let set = rules(&[("a", "includeProbes: true\nmatch: {path: {value: /}}"), ("b", "match: {method: GET}")]);
    assert_eq!(decide(&set, "GET", "/", &[("user-agent", "kube-probe/1.37")]).as_deref(), Some("a"));
    assert_eq!(decide(&set, "GET", "*", &[("user-agent", "kube-probe/1.37")]), None);
}

#[test]
fn b16_wiretaps_take_nothing_and_see_whatever_else_becomes_of_a_request() {
    let user = "match: {headers: [{name: u, value: a}]}";
    let set = rules(&[
        ("tap1", &format!("mode: Wiretap\n{user}")),
        ("tap2", "mode: Wiretap\nmatch: {path: {value: /}}"),
        ("own", user),
        ("tcp", "mode: Wiretap"),
    ]);
    assert_eq!(decide(&set, "GET", "/", &[("u", "a")]).as_deref(), Some("own"));
    assert_eq!(copied(&set, &[("u", "a")]), ["tap1", "tap2"]);
    assert_eq!((decide(&set, "GET", "/", &[]), copied(&set, &[])), (None, vec!["tap2".to_owned()]));
    let port = set.port(80).unwrap();
    assert!(port.all_tcp().is_none() && port.has_http());
    assert_eq!(port.tcp_wiretaps()[0].intercept.name, "tcp");
}

#[test]
fn order_is_more_conditions_then_age_then_the_file() {
    let user = "match: {headers: [{name: u, value: a}]}";
    let set = rules(&[
        ("file1", user),
        ("young", &format!("created: 2026-02-01T00:00:00Z\n{user}")),
        ("old", &format!("created: 2026-01-01T00:00:00Z\n{user}")),
        ("two", "match: {headers: [{name: u, value: a}], method: PUT}"),
    ]);
    assert_eq!(decide(&set, "GET", "/", &[("u", "a")]).as_deref(), Some("old"));
    assert_eq!(decide(&set, "PUT", "/", &[("u", "a")]).as_deref(), Some("two"));
    let set = rules(&[("first", user), ("second", user)]);
    assert_eq!(decide(&set, "GET", "/", &[("u", "a")]).as_deref(), Some("first"));
    let set = rules(&[("http", user), ("all", "")]);
    assert_eq!(set.port(80).unwrap().all_tcp().unwrap().intercept.name, "all");
    assert!(set.port(81).is_none());
    assert_eq!(set.ports().collect::<Vec<_>>(), [80]);
}
