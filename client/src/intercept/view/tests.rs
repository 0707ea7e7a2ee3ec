use serde_json::Value;
use serde_json::json;

use super::*;

fn intercept(matches: &Value, status: &Value) -> Intercept {
    let key = format!("sha256:{}", "0".repeat(64));
    serde_json::from_value(json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "Intercept",
        "metadata": {
            "name": "web", "namespace": "demo", "generation": 2, "creationTimestamp": "2026-11-25T21:00:00Z",
            "annotations": {PORT_IDENTIFIERS: "http,9000"},
        },
        "spec": {
            "target": {"kind": "Deployment", "name": "web"},
            "ports": [{"port": 8080, "local": 10121}, {"port": 9000, "local": 9000}],
            "match": matches,
            "client": {"keyHash": key},
            "owner": "adam",
        },
        "status": status,
    }))
    .unwrap()
}

fn condition(kind: &str, status: &str, generation: i64, message: &str) -> Value {
    json!({
        "type": kind, "status": status, "observedGeneration": generation, "message": message, "reason": "R",
        "lastTransitionTime": "2026-11-25T21:00:00Z",
    })
}

#[test]
fn a02_the_summary_says_what_is_asked_for() {
    let matches = json!({
        "headers": [{"name": "x-user", "value": "adam"}, {"type": "RegularExpression", "name": "x-team", "value": "a.*"}],
        "path": {"type": "PathPrefix", "value": "/v1"},
        "method": "GET",
    });
    let status = json!({
        "observedGeneration": 2,
        "conditions": [condition("Ready", "True", 2, "all pods")],
        "podsReady": "1/1",
        "pods": [{"uid": "u1", "name": "web-1", "programmed": true, "connected": true}],
    });
    let view = View::of(&intercept(&matches, &status)).with_ways(|uid| (uid == "u1").then_some("direct"));
    let text = view.to_string();
    for line in [
        "Intercept     web (namespace demo)\n",
        "State         Ready\n",
        "Workload      Deployment web\n",
        "Destination   127.0.0.1:10121\n",
        "Port          http/TCP (container port 8080)\n",
        "Destination   127.0.0.1:9000\n",
        "Intercepts    HTTP requests that match all of: header x-user = adam, header x-team ~= a.*, path begins with /v1, method = GET\n",
        "Pods          1/1 (direct)\n",
        "Owner         adam\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
}

/// Programs read this: fields may be added, none may change.
#[test]
fn the_json_form_is_stable() {
    let status = json!({
        "observedGeneration": 2,
        "conditions": [condition("Ready", "False", 2, "pod web-1 has no agent")],
        "podsReady": "0/1",
        "pods": [{
            "uid": "u1", "name": "web-1", "node": "n", "programmed": true, "connected": false, "reason": "no client",
            "counters": {"steered": 3, "matched": 2, "taken": 1, "passedThrough": 1, "rejected": 0, "copied": 0, "lost": 0},
        }],
    });
    let view = View::of(&intercept(&json!({}), &status));
    let expected = json!({
        "name": "web",
        "namespace": "demo",
        "owner": "adam",
        "state": "Waiting",
        "message": "pod web-1 has no agent",
        "workload": {"kind": "Deployment", "name": "web"},
        "ports": [
            {"identifier": "http/TCP", "containerPort": 8080, "destination": "127.0.0.1:10121"},
            {"identifier": "9000/TCP", "containerPort": 9000, "destination": "127.0.0.1:9000"},
        ],
        "intercepts": "all TCP connections",
        "match": {},
        "mode": "Intercept",
        "onUnavailable": "PassThrough",
        "includeProbes": false,
        "resetExisting": false,
        "steering": "auto",
        "podsReady": 0,
        "podsTotal": 1,
        "pods": [{
            "name": "web-1", "node": "n", "programmed": true, "connected": false, "reason": "no client",
            "counters": {"steered": 3, "matched": 2, "taken": 1, "passedThrough": 1, "rejected": 0, "copied": 0, "lost": 0},
        }],
        "createdAt": "2026-11-25T21:00:00Z",
    });
    assert_eq!(serde_json::to_value(&view).unwrap(), expected);
    assert!(view.pods().contains("3 steered, 2 matched, 1 taken, 1 passed through, 0 rejected: no client"));
    assert!(render(Output::Yaml, &view, String::new).unwrap().contains("containerPort: 8080"));
}

#[test]
fn a12_connections_from_before_are_told_with_what_ends_them() {
    let pod = |name: &str, existing: u64| json!({"uid": name, "name": name, "programmed": true, "connected": true, "existingConnections": existing});
    let status = json!({"pods": [pod("web-1", 1), pod("web-2", 2), pod("web-3", 0)]});
    let mut told = intercept(&json!({}), &status);
    let text = View::of(&told).to_string();
    assert!(text.contains("Not taken     3 connections from before; --reset-existing ends them\n"), "{text}");
    told.spec.reset_existing = true;
    let text = View::of(&told).to_string();
    assert!(text.contains("Not taken     3 connections from before\n"), "{text}");
    let none = View::of(&intercept(&json!({}), &json!({"pods": [pod("web-3", 0)]}))).to_string();
    assert!(!none.contains("from before"), "{none}");
}

#[test]
fn the_way_of_each_port_is_told_for_each_pod() {
    let ways = json!([{"port": 8080, "way": "lookup", "why": "all TCP"}, {"port": 9000, "way": "insertion"}]);
    let pod = json!({"uid": "u", "name": "web-1", "programmed": true, "connected": true, "ways": ways});
    let mut asked = intercept(&json!({"method": "GET"}), &json!({"pods": [pod]}));
    asked.spec.steering = Steering::Insertion;
    let view = View::of(&asked);
    let told = "pod web-1: programmed, connected\n    port 8080: lookup (all TCP)\n    port 9000: insertion\n";
    assert!(view.pods().ends_with(told), "{}", view.pods());
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!((&json["steering"], &json["pods"][0]["ways"]), (&json!("insertion"), &ways));
}

#[test]
fn b16_b18_what_is_intercepted_is_told_in_words() {
    let matches = json!({"baggage": [{"name": "sluice", "value": "adam"}], "method": "GET"});
    let mut probed = intercept(&matches, &json!({}));
    probed.spec.include_probes = true;
    let text = View::of(&probed).to_string();
    assert!(
        text.contains("HTTP requests, probes included, that match all of: baggage sluice = adam, method = GET"),
        "{text}"
    );
    let counters =
        json!({"steered": 3, "matched": 2, "taken": 0, "passedThrough": 0, "rejected": 0, "copied": 1, "lost": 1});
    let pods =
        json!({"pods": [{"uid": "u", "name": "p", "programmed": true, "connected": true, "counters": counters}]});
    let mut tap = intercept(&json!({}), &pods);
    tap.spec.mode = Mode::Wiretap;
    let view = View::of(&tap);
    assert!(view.to_string().contains("copies of all TCP connections"), "{view}");
    assert!(view.pods().contains("2 matched, 1 copied, 1 lost"), "{}", view.pods());
}

#[test]
fn what_is_known_of_an_older_specification_does_not_count() {
    let old = json!({"observedGeneration": 1, "conditions": [condition("Ready", "True", 1, "")]});
    assert_eq!(View::of(&intercept(&json!({}), &old)).state, State::Pending);
    let rejected = json!({"conditions": [condition("Accepted", "False", 2, "overlaps with x of bertil")]});
    let view = View::of(&intercept(&json!({}), &rejected));
    assert_eq!((view.state, view.message.as_str()), (State::Rejected, "overlaps with x of bertil"));
    assert_eq!(View::of(&intercept(&json!({}), &json!({}))).state, State::Pending);
}
