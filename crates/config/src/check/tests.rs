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

/// Any JSON, with the names of real fields so that it reaches deep.
pub(crate) fn arbitrary_json() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        "[a-zA-Z0-9 :#'\"{}.ß-]{0,12}".prop_map(Value::String),
        "(STRICT|DENY|10\\.0\\.0\\.0/8|/a/\\{\\*\\}|80|\\*)".prop_map(Value::String),
    ];
    let key = "(spec|metadata|name|labels|selector|matchLabels|mtls|mode|portLevelMtls|rules|from|source|to|operation|when|key|values|ports|paths|principals|[a-z.\\[\\]]{0,4})";
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest::proptest! {
    #[test]
    fn arbitrary_json_never_panics(value in arbitrary_json(), spec in arbitrary_json(), metadata in arbitrary_json()) {
        let _ = check(&value);
        for kind in kinds::KINDS {
            let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata, "spec": spec});
            if let Ok(object) = check(&object) {
                let _ = warnings(&object);
            }
        }
    }
}
