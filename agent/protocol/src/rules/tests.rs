use super::{
    matcher::{Request, RuleSet},
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
    fn any_header(&self, name: &str, fits: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && fits(v.as_bytes()))
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

fn decide<'a>(rules: &'a RuleSet, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<&'a str> {
    rules.port(80)?.decide(&Head { method, path, headers }).map(|r| r.intercept.name.as_str())
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
fn what_cannot_be_used_is_refused_with_its_line_and_reason() {
    let at = |rest: &str| refused(&file(&[("good", ""), ("bad", rest)]));
    for (rest, line, reason) in [
        ("colour: red", "line 8", "colour"),
        ("match: {headers: [{type: RegularExpression, name: a, value: \"(\"}]}", "line 8", "regular expression"),
        ("match: {headers: [{type: RegularExpression, name: a, value: \"a)|(b\"}]}", "line 8", "regular expression"),
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
    let fits = |headers: &[(&str, &str)]| decide(&rules, "GET", "/", headers) == Some("a");
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
fn order_is_more_conditions_then_age_then_the_file() {
    let user = "match: {headers: [{name: u, value: a}]}";
    let set = rules(&[
        ("file1", user),
        ("young", &format!("created: 2026-02-01T00:00:00Z\n{user}")),
        ("old", &format!("created: 2026-01-01T00:00:00Z\n{user}")),
        ("two", "match: {headers: [{name: u, value: a}], method: PUT}"),
    ]);
    assert_eq!(decide(&set, "GET", "/", &[("u", "a")]), Some("old"));
    assert_eq!(decide(&set, "PUT", "/", &[("u", "a")]), Some("two"));
    let set = rules(&[("first", user), ("second", user)]);
    assert_eq!(decide(&set, "GET", "/", &[("u", "a")]), Some("first"));
    let set = rules(&[("http", user), ("all", "")]);
    assert_eq!(set.port(80).unwrap().all_tcp().unwrap().intercept.name, "all");
    assert!(set.port(81).is_none());
    assert_eq!(set.ports().collect::<Vec<_>>(), [80]);
}
