//! JSON schemas of the rule types, for the `Intercept` resource.
//!
//! Owns what the API server can check by itself, so that `kubectl apply` names the field that is wrong; whatever
//! passes is still read by the types, whose judgement counts. Runs only where the resource's definition is generated.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{HeaderName, Method};
use crate::key::KeyHash;

/// A token of RFC 9110 §5.6.2.
const TOKEN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";

/// Longest text that a condition may have, in characters: Kubernetes bounds the cost of rules by it.
const MAX_TEXT: u32 = 4096;

impl JsonSchema for HeaderName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HeaderName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": 256, "pattern": TOKEN})
    }
}

impl JsonSchema for Method {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Method".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": 32, "pattern": TOKEN})
    }
}

impl JsonSchema for KeyHash {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KeyHash".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 71, "pattern": "^sha256:[0-9a-f]{64}$"})
    }
}

/// Unknown fields are the API server's to refuse or prune: a structural schema must not say so itself.
pub(super) fn open(schema: &mut Schema) {
    schema.remove("additionalProperties");
}

pub(super) fn header(schema: &mut Schema) {
    open(schema);
    set(schema, "/properties/name", "description", json!("Of which header; in any case."));
    set(schema, "/properties/value", "description", json!("The value, or the expression that a whole value must fit."));
    set(schema, "/properties/value", "maxLength", json!(MAX_TEXT));
    set(schema, "/properties/value", "pattern", json!("^[^\\r\\n\\x00]*$"));
}

pub(super) fn baggage(schema: &mut Schema) {
    open(schema);
    set(schema, "/properties/name", "description", json!("The member's name; told apart by case."));
    set(schema, "/properties/name", "minLength", json!(1));
    set(schema, "/properties/name", "maxLength", json!(256));
    set(schema, "/properties/name", "pattern", json!(TOKEN));
    set(schema, "/properties/value", "description", json!("Its value as it is meant, not percent-encoded."));
    set(schema, "/properties/value", "maxLength", json!(MAX_TEXT));
}

pub(super) fn path(schema: &mut Schema) {
    open(schema);
    set(
        schema,
        "/properties/value",
        "description",
        json!("The path, prefix, or expression that a whole path must fit."),
    );
    set(schema, "/properties/value", "maxLength", json!(MAX_TEXT));
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([{
            "rule": "self.type == 'RegularExpression' || self.value.startsWith('/')",
            "message": "the path must begin with /",
        }]),
    );
}

fn set(schema: &mut Schema, place: &str, key: &str, value: Value) {
    if let Some(Value::Object(object)) = schema.pointer_mut(place) {
        object.insert(key.to_owned(), value);
    }
}
