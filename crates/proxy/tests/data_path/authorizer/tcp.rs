//! Connections that carry opaque bytes: asked about in the gRPC form only.

use serde_json::json;

use super::{NOBODY, Provider, PythonAuthorizer, raw_http};
use crate::lab::{Lab, Server, at, exchange_half_closed, tcp_backend};

const ANY: &str = "[{}]";

fn server(lab: &Lab, provider: &Provider<'_>) -> maille_proxy::StaticProxy {
    let extra = provider.facts();
    let backend = tcp_backend(b"hello ");
    lab.server(&Server { protocol: "TCP", policy: None, backend, extra: &extra, ..Server::default() })
}

#[test]
fn a_connection_is_asked_about_before_a_byte_flows() {
    let lab = Lab::new();
    for (code, answer) in [(0, "hello ping"), (7, "")] {
        let answers = json!({"tcp": {"status": {"code": code}}});
        let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
        let provider = Provider { rules: ANY, ..Provider::new(authorizer.at, "grpc: {}") };
        let server = server(&lab, &provider);
        let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
        assert_eq!(exchange_half_closed(at(&web), b"ping"), answer);
        let attributes = authorizer.check()["check"]["attributes"].clone();
        assert_eq!(attributes["source"]["principal"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(attributes["request"], json!(null));
        assert_eq!(attributes["destination"]["service"], "outbound_.80_._.cart.shop.svc.cluster.local");
    }
}

#[test]
fn a_provider_that_fails_ends_a_connection_unless_it_fails_open() {
    let lab = Lab::new();
    let nobody = NOBODY;
    for (settings, answer) in [("grpc: {}", ""), ("failOpen: true, grpc: {}", "hello ping")] {
        let server = server(&lab, &Provider { rules: ANY, ..Provider::new(nobody, settings) });
        let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
        assert_eq!(exchange_half_closed(at(&web), b"ping"), answer, "{settings}");
    }
    let server = server(&lab, &Provider { rules: ANY, ..Provider::new(nobody, "problem: x, grpc: {}") });
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&web), b"ping"), "");
}

/// Reference authorization 11: Istio leaves such a provider out.
#[test]
fn a_provider_of_the_http_form_is_not_asked_about_opaque_bytes() {
    let lab = Lab::new();
    let provider = raw_http(|_| panic!("it was asked"));
    let server = server(&lab, &Provider { rules: ANY, ..Provider::new(provider, "http: {}") });
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&web), b"ping"), "hello ping");
}
