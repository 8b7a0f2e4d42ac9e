use serde_json::{Value, json};

use super::*;
use FieldErrorKind::{Enum, Invalid, NotEnforced, Required, Type, Unknown};

fn policy(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "default", "namespace": "shop"},
        "spec": spec,
    })
}

fn found(object: &Value) -> Vec<(String, FieldErrorKind)> {
    match check(object) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.into_iter().map(|e| (e.path, e.kind)).collect(),
    }
}

fn rule(rule: Value) -> Value {
    policy("AuthorizationPolicy", json!({"rules": [rule]}))
}
