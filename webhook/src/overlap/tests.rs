//! The table of the module's documentation, and more.

mod requests;

use serde_json::{Value, json};

use super::*;

const KEY: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn spec(target: &str, ports: &Value, matches: &Value) -> InterceptSpec {
    let (kind, name) = target.split_once('/').unwrap();
    let spec = json!({
        "target": {"kind": kind, "name": name},
        "ports": ports,
        "match": matches,
        "client": {"keyHash": KEY},
    });
    serde_json::from_value(spec).unwrap()
}

fn intercept(name: &str, owner: &str, matches: &Value) -> Intercept {
    let mut intercept = Intercept::new(name, spec("Deployment/web", &json!([{"port": 8080}]), matches));
    intercept.spec.owner = Some(owner.to_owned());
    intercept
}

#[track_caller]
fn symmetric(a: &InterceptSpec, b: &InterceptSpec, expected: Relation) {
    assert_eq!(relation(a, b), expected);
    assert_eq!(relation(b, a), expected);
}

#[track_caller]
fn by_match(a: Value, b: Value, expected: Relation) {
    let spec = |matches| spec("Deployment/web", &json!([{"port": 8080}]), &matches);
    symmetric(&spec(a), &spec(b), expected);
}

fn header(name: &str, value: &str) -> Value {
    match value.strip_prefix('~') {
        Some(expression) => json!({"type": "RegularExpression", "name": name, "value": expression}),
        None => json!({"name": name, "value": value}),
    }
}

fn headers(list: &[(&str, &str)]) -> Value {
    json!({"headers": list.iter().map(|(name, value)| header(name, value)).collect::<Vec<_>>()})
}

fn path(kind: &str, value: &str) -> Value {
    json!({"path": {"type": kind, "value": value}})
}

use Relation::{Disjoint, Overlap, Undecided};

#[test]
fn b15_all_tcp_overlaps_with_everything_on_its_port() {
    by_match(json!({}), json!({}), Overlap);
    by_match(json!({}), headers(&[("x-user", "adam")]), Overlap);
    by_match(json!({}), path("RegularExpression", ".*"), Overlap);
}

#[test]
fn b15_headers() {
    by_match(headers(&[("x-user", "adam")]), headers(&[("x-user", "adam")]), Overlap);
    by_match(headers(&[("x-user", "adam")]), headers(&[("X-User", "adam")]), Overlap);
    by_match(headers(&[("x-user", "adam")]), headers(&[("x-user", "Adam")]), Disjoint);
    by_match(headers(&[("x-user", "adam")]), headers(&[("x-user", "bertil")]), Disjoint);
    by_match(headers(&[("x-user", "adam")]), headers(&[("x-team", "a")]), Overlap);
    by_match(headers(&[("x-user", "adam")]), headers(&[("x-user", "~a.*")]), Overlap);
    by_match(headers(&[("x-user", "bertil")]), headers(&[("x-user", "~a.*")]), Disjoint);
    by_match(headers(&[("x-user", "madam")]), headers(&[("x-user", "~a.*")]), Disjoint);
    by_match(headers(&[("x-user", "~a.*")]), headers(&[("x-user", "~b.*")]), Undecided(Doubt::Header));
    by_match(headers(&[("x-user", "~a.*")]), headers(&[("x-user", "~a.*")]), Overlap);
    by_match(
        headers(&[("x-user", "adam"), ("x-team", "a")]),
        headers(&[("x-user", "adam"), ("x-team", "b")]),
        Disjoint,
    );
    // One wants the header twice; whoever sends it twice is for both.
    by_match(headers(&[("x", "1"), ("x", "2")]), headers(&[("x", "1")]), Overlap);
    // Disjoint by one header, whatever the other's expressions are.
    by_match(
        headers(&[("x-user", "adam"), ("x-team", "~a.*")]),
        headers(&[("x-user", "bertil"), ("x-team", "~b.*")]),
        Disjoint,
    );
}

#[test]
fn b15_baggage() {
    let members = |list: &[(&str, &str)]| json!({"baggage": list.iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>()});
    by_match(members(&[("sluice", "adam")]), members(&[("sluice", "adam")]), Overlap);
    by_match(members(&[("sluice", "adam")]), members(&[("sluice", "bertil")]), Disjoint);
    by_match(members(&[("sluice", "adam")]), members(&[("Sluice", "bertil")]), Overlap);
    by_match(members(&[("sluice", "adam")]), members(&[("team", "a")]), Overlap);
    by_match(members(&[("sluice", "adam")]), headers(&[("x-user", "adam")]), Overlap);
    by_match(members(&[("sluice", "adam")]), headers(&[("baggage", "sluice=bertil")]), Overlap);
    by_match(members(&[("a", "1"), ("a", "2")]), members(&[("a", "1")]), Overlap);
    by_match(members(&[("sluice", "adam")]), json!({}), Overlap);
}

#[test]
fn b16_a_wiretap_conflicts_with_nothing() {
    let mut tap = intercept("tap", "adam", &json!({}));
    tap.spec.mode = Mode::Wiretap;
    let others = [intercept("all", "bertil", &json!({})), tap.clone()];
    assert_eq!(conflict(&intercept("new", "eva", &headers(&[("x", "1")])), &others[1..]), None);
    let mut new = intercept("new", "eva", &json!({}));
    assert_eq!(conflict(&new, &others).map(|conflict| conflict.name), Some("all".to_owned()));
    new.spec.mode = Mode::Wiretap;
    assert_eq!(conflict(&new, &others), None);
}

#[test]
fn b15_paths_and_methods() {
    by_match(path("PathPrefix", "/v1"), path("PathPrefix", "/v2"), Disjoint);
    by_match(path("PathPrefix", "/v1"), path("PathPrefix", "/v10"), Disjoint);
    by_match(path("PathPrefix", "/v1"), path("PathPrefix", "/v1/x"), Overlap);
    by_match(path("PathPrefix", "/v1/"), path("PathPrefix", "/v1"), Overlap);
    by_match(path("PathPrefix", "/"), path("PathPrefix", "/v1"), Overlap);
    by_match(path("PathPrefix", "/"), path("Exact", "/v1"), Overlap);
    by_match(path("PathPrefix", "/v1"), path("Exact", "/v1"), Overlap);
    by_match(path("PathPrefix", "/v1"), path("Exact", "/v10"), Disjoint);
    by_match(path("Exact", "/v1"), path("Exact", "/v1/"), Disjoint);
    by_match(path("RegularExpression", "/v[12]"), path("Exact", "/v1"), Overlap);
    by_match(path("RegularExpression", "/v[12]"), path("Exact", "/v3"), Disjoint);
    by_match(path("RegularExpression", "/v1/.*"), path("PathPrefix", "/v2"), Undecided(Doubt::Path));
    by_match(path("RegularExpression", "/a"), path("RegularExpression", "/b"), Undecided(Doubt::Path));
    by_match(json!({"method": "GET"}), json!({"method": "POST"}), Disjoint);
    by_match(json!({"method": "GET"}), json!({"method": "GET"}), Overlap);
    by_match(json!({"method": "GET"}), path("PathPrefix", "/v1"), Overlap);
}

#[test]
fn b15_ports() {
    let by_ports = |a: Value, b: Value, expected| {
        symmetric(&spec("Deployment/web", &a, &json!({})), &spec("Deployment/web", &b, &json!({})), expected);
    };
    by_ports(json!([{"port": 80}]), json!([{"port": 81}]), Disjoint);
    by_ports(json!([{"port": 80}, {"port": 82}]), json!([{"port": 81}, {"port": 82}]), Overlap);
    by_ports(json!([{"port": 80}]), json!([{"port": 80, "protocol": "UDP"}]), Disjoint);
    by_ports(json!([{"port": 80}]), json!([{"name": "http"}]), Undecided(Doubt::Port));
    by_ports(json!([{"name": "grpc"}]), json!([{"name": "http"}]), Undecided(Doubt::Port));
    by_ports(json!([{"name": "http"}]), json!([{"name": "http"}]), Overlap);
    by_ports(json!([{"name": "http"}, {"port": 80}]), json!([{"port": 80}]), Overlap);
}

#[test]
fn b15_targets() {
    let by_target = |a: &str, b: &str, expected| {
        let ports = json!([{"port": 80}]);
        symmetric(&spec(a, &ports, &json!({})), &spec(b, &ports, &json!({})), expected);
    };
    by_target("Deployment/web", "Deployment/web", Overlap);
    by_target("Deployment/web", "Deployment/api", Disjoint);
    by_target("Deployment/web", "StatefulSet/web", Disjoint);
    by_target("Deployment/web", "ReplicaSet/web-5d4f", Undecided(Doubt::Target));
    by_target("Deployment/web", "Pod/web-5d4f-x7z", Undecided(Doubt::Target));
    by_target("ReplicaSet/web-5d4f", "Pod/web-5d4f-x7z", Undecided(Doubt::Target));
    by_target("StatefulSet/db", "Pod/db-0", Undecided(Doubt::Target));
    by_target("Deployment/web", "Pod/web", Disjoint);
    by_target("Pod/web", "Pod/web-1", Disjoint);
    by_target("StatefulSet/web", "ReplicaSet/web-5d4f", Disjoint);
    let long = "a".repeat(63);
    by_target(&format!("ReplicaSet/{long}"), &format!("Pod/{}x7z12", "a".repeat(58)), Undecided(Doubt::Target));
}

#[test]
fn b15_doubt_counts_only_where_nothing_else_decides() {
    let a = spec("Deployment/web", &json!([{"name": "http"}]), &headers(&[("x-user", "adam")]));
    let b = spec("Pod/web-1", &json!([{"port": 80}]), &headers(&[("x-user", "bertil")]));
    symmetric(&a, &b, Disjoint);
}

#[test]
fn b15_the_conflict_names_the_other_and_its_owner() {
    let others = [
        intercept("zoe", "zoe@example.org", &json!({})),
        intercept("bea", "bea@example.org", &headers(&[("x-user", "~b.*")])),
    ];
    let new = intercept("new", "adam", &headers(&[("x-user", "~a.*")]));
    let found = conflict(&new, &others).unwrap();
    assert_eq!((found.name.as_str(), found.relation), ("zoe", Overlap), "the certain one first");
    let words = found.to_string();
    assert!(words.contains("zoe of zoe@example.org on Deployment/web"), "{words}");
    let words = conflict(&new, &others[1..]).unwrap().to_string();
    assert!(words.contains("may overlap with the Intercept bea of bea@example.org"), "{words}");
    assert!(words.contains("use exact values"), "{words}");
}

#[test]
fn b15_itself_and_what_is_being_deleted_do_not_count() {
    let new = intercept("new", "adam", &json!({}));
    assert_eq!(conflict(&new, [&new]), None);
    let mut leaving = intercept("old", "adam", &json!({}));
    leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert_eq!(conflict(&new, [&leaving]), None);
}
