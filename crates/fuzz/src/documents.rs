//! What people write: objects in YAML, and the mesh's configuration.

use std::net::{IpAddr, Ipv4Addr};

use maille_config::Object;
use maille_core::Identity;
use maille_policy::authentication::{Authentication, JwtRule, RequestAuthentication};
use maille_policy::{Authorization, ConnectionAttributes, NoHeaders, RequestAttributes};

use crate::decide::{compare, trust};

/// Reads and checks a file of objects. What passes must pass again as it is printed, and what policies are in it must
/// mean the same to engine and interpreter.
pub(crate) fn yaml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(documents) = maille_config::load(&[("input.yaml".to_owned(), text.to_owned())]) else { return };
    for document in documents {
        let Ok(object) = document.check() else { continue };
        let _ = maille_config::warnings(&object);
        let printed = object.to_value();
        if let Err(errors) = maille_config::check(&printed) {
            panic!("accepted as written, refused as printed: {errors:?}\n{printed}");
        }
        match object {
            Object::AuthorizationPolicy(policy) => {
                let name = policy.metadata.name.unwrap_or_default();
                let namespace = policy.metadata.namespace.unwrap_or_default();
                judge(&[Authorization { namespace, name, dry_run: false, spec: policy.spec }]);
            }
            Object::RequestAuthentication(policy) => {
                let rules = policy.spec.jwt_rules.iter();
                let rules = rules.map(|rule| JwtRule::of_spec(rule, Ok(rule.jwks.clone()))).collect();
                let _ = Authentication::compile(&[RequestAuthentication {
                    namespace: "a".to_owned(),
                    name: "b".to_owned(),
                    rules,
                }]);
            }
            _ => {}
        }
    }
}

/// A few requests that policies of any text are tried with.
fn judge(policies: &[Authorization]) {
    let peer = Identity::parse_principal("cluster.local/ns/shop/sa/web").ok();
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    for identity in [peer.as_ref(), None] {
        let connection = ConnectionAttributes {
            identity,
            source_ip: address,
            remote_ip: address,
            destination_ip: address,
            destination_port: 8080,
            sni: identity.map(|_| "shop.example"),
        };
        for (method, host, path) in [("GET", "shop.example", "/api/x?y"), ("CONNECT", "", "")] {
            let request =
                RequestAttributes { method, host, path, remote_ip: None, headers: &NoHeaders, claims: None };
            compare(policies, &trust(), &connection, &request);
        }
    }
}

/// Reads the mesh's configuration.
pub(crate) fn mesh(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(problems) = maille_config::mesh::check(text) {
        assert!(!problems.is_empty(), "refused without a reason");
    }
}
