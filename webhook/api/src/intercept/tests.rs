//! The rules of the schema, evaluated as the API server does.

use kube::{CustomResourceExt as _, core::cel::Validator};
use serde_json::{Value, json};

use super::Intercept;

const KEY: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn schema() -> Value {
    let crd = serde_json::to_value(Intercept::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// As the API server holds it: with the schema's defaults filled in.
fn intercept(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "Intercept",
        "metadata": {"name": "adam-add", "namespace": "demo"},
        "spec": {
            "target": {"kind": "Deployment", "name": "add"},
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "mode": "Intercept",
            "onUnavailable": "PassThrough",
            "includeProbes": false,
            "resetExisting": false,
            "steering": "auto",
            "client": {"keyHash": KEY},
        },
    });
    change(&mut object["spec"]);
    object
}

fn refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

#[track_caller]
fn accepted(object: &Value, old: Option<&Value>) {
    assert_eq!(refusals(object, old), Vec::<String>::new());
}

#[track_caller]
fn refused(object: &Value, old: Option<&Value>, words: &str) {
    let refusals = refusals(object, old);
    assert!(refusals.iter().any(|r| r.contains(words)), "{refusals:?} does not say {words:?}");
}

#[test]
fn what_is_valid_is_accepted() {
    accepted(&intercept(|_| {}), None);
    accepted(&intercept(|s| s["ports"] = json!([{"name": "grpc", "protocol": "TCP", "local": 10121}])), None);
    accepted(
        &intercept(|s| s["ports"] = json!([{"port": 80, "protocol": "TCP"}, {"name": "grpc", "protocol": "TCP"}])),
        None,
    );
    for ttl in ["1m", "90m", "2h", "1h30m", "60s"] {
        accepted(&intercept(|s| s["ttl"] = json!(ttl)), None);
    }
    for path in [
        json!({"type": "PathPrefix", "value": "/v1"}),
        json!({"type": "Exact", "value": "/"}),
        json!({"type": "RegularExpression", "value": ".*/add"}),
    ] {
        accepted(&intercept(|s| s["match"] = json!({"path": path})), None);
    }
}

#[test]
fn a_port_is_given_by_number_or_by_name() {
    let words = "either the port's number or its name";
    refused(&intercept(|s| s["ports"] = json!([{"protocol": "TCP"}])), None, words);
    refused(&intercept(|s| s["ports"] = json!([{"port": 80, "name": "http", "protocol": "TCP"}])), None, words);
}

#[test]
fn a_port_is_listed_once() {
    let twice =
        json!([{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}, {"port": 80, "protocol": "TCP"}]);
    refused(&intercept(|s| s["ports"] = twice), None, "only once");
    let twice = json!([{"name": "a", "protocol": "TCP"}, {"name": "a", "protocol": "TCP", "local": 1}]);
    refused(&intercept(|s| s["ports"] = twice), None, "only once");
}

#[test]
fn udp_is_refused_until_it_is_steered() {
    refused(&intercept(|s| s["ports"] = json!([{"port": 53, "protocol": "UDP"}])), None, "UDP");
}

#[test]
fn a_path_begins_with_a_slash() {
    for kind in ["Exact", "PathPrefix"] {
        let spec = intercept(|s| s["match"] = json!({"path": {"type": kind, "value": "v1"}}));
        refused(&spec, None, "must begin with /");
    }
}

#[test]
fn insertion_needs_a_condition() {
    for matches in [json!(null), json!({}), json!({"headers": [], "baggage": []})] {
        let spec = |steering: &str| {
            intercept(|s| {
                s["steering"] = json!(steering);
                if !matches.is_null() {
                    s["match"] = matches.clone();
                }
            })
        };
        refused(&spec("insertion"), None, "insertion needs HTTP conditions: add a match, or leave steering out");
        accepted(&spec("lookup"), None);
        accepted(&spec("auto"), None);
        let mut tap = spec("insertion");
        tap["spec"]["mode"] = json!("Wiretap");
        refused(&tap, None, "insertion needs HTTP conditions");
    }
    for matches in [
        json!({"headers": [{"type": "Exact", "name": "x-user", "value": "adam"}]}),
        json!({"baggage": [{"name": "sluice", "value": "adam"}]}),
        json!({"path": {"type": "PathPrefix", "value": "/v1"}}),
        json!({"method": "GET"}),
    ] {
        accepted(&intercept(|s| (s["steering"], s["match"]) = (json!("insertion"), matches)), None);
    }
    assert_eq!(
        schema()["properties"]["spec"]["properties"]["steering"]["enum"],
        json!(["auto", "insertion", "lookup"])
    );
}

#[test]
fn a_life_is_not_shorter_than_a_minute() {
    refused(&intercept(|s| s["ttl"] = json!("59s")), None, "1m");
}

#[test]
fn what_may_change_changes() {
    let old = intercept(|s| s["owner"] = json!("adam"));
    accepted(&old, Some(&old));
    let new = intercept(|s| {
        s["owner"] = json!("adam");
        s["ports"] = json!([{"port": 9090, "protocol": "TCP"}]);
        s["match"] = json!({"headers": [{"type": "Exact", "name": "x-user", "value": "adam"}]});
        s["onUnavailable"] = json!("Reject");
        s["steering"] = json!("insertion");
        s["ttl"] = json!("2h");
    });
    accepted(&new, Some(&old));
    accepted(&intercept(|_| {}), Some(&intercept(|_| {})));
}

#[test]
fn target_and_key_do_not_change() {
    let old = intercept(|_| {});
    refused(&intercept(|s| s["target"]["name"] = json!("sub")), Some(&old), "target cannot be changed");
    refused(&intercept(|s| s["target"]["kind"] = json!("Pod")), Some(&old), "target cannot be changed");
    let key = KEY.replace("00", "ff");
    refused(&intercept(|s| s["client"]["keyHash"] = json!(key)), Some(&old), "key cannot be changed");
}

#[test]
fn the_owner_does_not_change() {
    let (none, adam) = (intercept(|_| {}), intercept(|s| s["owner"] = json!("adam")));
    let bertil = intercept(|s| s["owner"] = json!("bertil"));
    for (new, old) in [(&bertil, &adam), (&none, &adam), (&adam, &none)] {
        refused(new, Some(old), "owner");
    }
}

#[test]
fn the_typed_object_has_the_same_rules() {
    let mut typed: Intercept = serde_json::from_value(intercept(|_| {})).unwrap();
    typed.validate_cel().unwrap();
    let old = typed.clone();
    typed.spec.target.name = "sub".to_owned();
    typed.validate_cel_update(&old).unwrap_err();
    typed.spec.ports[0].name = Some("http".to_owned());
    typed.validate_cel().unwrap_err();
}

/// What the API server demands of a structural schema, and what bounds the cost of the rules.
#[test]
fn the_schema_is_structural_and_bounded() {
    fn check(path: &str, schema: &Value) {
        let object = schema.as_object().unwrap();
        for forbidden in ["$ref", "definitions", "anyOf", "oneOf", "allOf", "not", "const", "additionalProperties"] {
            assert!(!object.contains_key(forbidden), "{path} has {forbidden}");
        }
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_else(|| panic!("{path} has no type"));
        let spec = path.starts_with(".spec");
        if let Some(format) = object.get("format").and_then(Value::as_str) {
            assert!(["int32", "int64", "date-time"].contains(&format), "{path} has the format {format}");
        }
        match kind {
            "array" => {
                assert!(object.contains_key("maxItems"), "{path} has no maxItems");
                check(&format!("{path}[]"), &object["items"]);
            }
            "string" if spec => {
                assert!(object.contains_key("maxLength") || object.contains_key("enum"), "{path} has no maxLength");
            }
            "object" => {
                for (name, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
                    check(&format!("{path}.{name}"), property);
                }
            }
            _ => {}
        }
    }
    check("", &schema());
}

#[test]
fn status_lists_are_maps() {
    let status = &schema()["properties"]["status"]["properties"];
    for (list, key) in [("conditions", "type"), ("pods", "uid")] {
        assert_eq!(status[list]["x-kubernetes-list-type"], "map", "{list}");
        assert_eq!(status[list]["x-kubernetes-list-map-keys"], json!([key]), "{list}");
    }
}
