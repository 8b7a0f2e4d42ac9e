use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;
use crate::field_error::FieldErrorKind::{Enum, Type, Unknown};
use crate::istio::PeerAuthentication;

fn errors<T: DeserializeOwned>(value: &Value) -> Vec<(String, FieldErrorKind, String)> {
    let (decoded, errors) = decode::<T>(value, &FieldPath::root());
    assert!(decoded.is_none() || errors.iter().all(|e| e.kind == Unknown), "{errors:?}");
    errors.into_iter().map(|e| (e.path, e.kind, e.message)).collect()
}

use crate::field_error::FieldErrorKind;

#[test]
fn every_mistake_is_found_with_its_path() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "annotations": {"x.io/y": true, "ok": "ok"}},
        "spec": {
            "contaners": [],
            "containers": [
                {"name": 5, "ports": [{"containerPort": "8080"}, {"containerPort": 80, "port": 1}]},
                "nginx",
                {"name": "b", "args": ["x", 7, "y", 8], "image": null},
            ],
        },
    });
    let found: Vec<_> = errors::<Pod>(&pod).into_iter().map(|(path, kind, _)| (path, kind)).collect();
    let has = |path: &str, kind| assert!(found.contains(&(path.to_owned(), kind)), "{path} in {found:#?}");
    has("metadata.annotations[x.io/y]", Type);
    has("spec.contaners", Unknown);
    has("spec.containers[0].name", Type);
    has("spec.containers[0].ports[0].containerPort", Type);
    has("spec.containers[0].ports[1].port", Unknown);
    has("spec.containers[1]", Type);
    has("spec.containers[2].args[1]", Type);
    has("spec.containers[2].args[3]", Type);
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn messages_say_what_would_be_right() {
    let policy = json!({
        "metadata": {"name": "a", "labels": {"v": 1}},
        "spec": {"mtls": {"mode": "strict"}, "portLevelMtl": {}, "selector": []},
    });
    let mut found = errors::<PeerAuthentication>(&policy);
    found.sort();
    let expected = [
        ("metadata.labels.v", Type, "expected a string, found the number 1; put it in quotes: \"1\""),
        (
            "spec.mtls.mode",
            Enum,
            "the string \"strict\" is none of UNSET, DISABLE, PERMISSIVE, STRICT; did you mean STRICT?",
        ),
        ("spec.portLevelMtl", Unknown, "unknown field 'portLevelMtl'; did you mean 'portLevelMtls'?"),
        ("spec.selector", Type, "expected an object, found a list"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (path, kind, message)) in found.iter().zip(expected) {
        assert_eq!((found.0.as_str(), found.1, found.2.as_str()), (path, kind, message));
    }
}

#[test]
fn null_members_are_absent() {
    let policy = json!({"metadata": {"name": "a", "labels": null}, "spec": {"mtls": null}, "status": null});
    let (decoded, errors) = decode::<PeerAuthentication>(&policy, &FieldPath::root());
    assert_eq!(errors, []);
    assert_eq!(decoded.map(|d| d.spec), Some(crate::istio::PeerAuthenticationSpec::default()));
}
