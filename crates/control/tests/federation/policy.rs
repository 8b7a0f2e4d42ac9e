//! What federation is for: a policy of one mesh that names a principal of the other.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use maille_pki::{
    Authority, CertificateDer, CertificateRequest, Svid, TrustBundles, create_csr, generate_key,
};
use maille_policy::{Authorization, ConnectionAttributes, PolicySet, TrustContext};
use maille_tls::{TlsContext, Trust};
use rustls::pki_types::UnixTime;

use crate::lab::{Mesh, again, authority, der, eventually};

fn svid(authority: &Authority, principal: &str) -> Svid {
    let identity = Identity::parse_principal(principal).expect("valid");
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity).expect("csr");
    let request = CertificateRequest::parse_pem(&csr).expect("own request");
    let issued = authority.issue(&request, &identity, Duration::from_secs(3600), SystemTime::now());
    Svid::from_pem(&issued.expect("issued").chain_pem, key).expect("an SVID")
}

/// What a sidecar of `mesh` believes, of the facts it is told.
fn trust(mesh: &Mesh, own: &TrustDomain, domains: &[&str]) -> Trust {
    let mut bundles = TrustBundles::new();
    for domain in domains {
        let roots = mesh.told(domain).into_iter().map(CertificateDer::from).collect();
        bundles.insert(TrustDomain::parse(domain).expect("valid"), roots).expect("roots");
    }
    Trust::of_mesh(bundles, own, &[]).expect("trust")
}

#[tokio::test]
async fn a_policy_decides_about_callers_of_the_other_mesh_by_their_own_name() {
    let (root_a, root_b) = (authority("a.example"), authority("b.example"));
    let mut a = Mesh::new("a.example", again(&root_a)).await;
    let b = Mesh::new("b.example", again(&root_b)).await;
    a.believe(&b.entry(&root_b, "b.example"));
    a.follow();
    eventually("a believes b", || a.told("b.example") == [der(&root_b)] && a.stored() == 1).await;

    let own = TrustDomain::parse("a.example").expect("valid");
    let server = TlsContext::new(
        svid(&root_a, "a.example/ns/shop/sa/cart"),
        trust(&a, &own, &["a.example", "b.example"]),
    );
    let server = server.expect("a context").current();
    let spec = serde_json::json!({"action": "ALLOW",
        "rules": [{"from": [{"source": {"principals": ["b.example/ns/shop/sa/frontend"]}}]}]});
    let policy = Authorization {
        namespace: "shop".into(),
        name: "from-b".into(),
        dry_run: false,
        spec: serde_json::from_value(spec).expect("a policy"),
    };
    let context =
        TrustContext { trust_domain: own, aliases: Vec::new(), root_namespace: "istio-system".into() };
    let (set, problems) = PolicySet::compile(&[policy], &context);
    assert!(problems.is_empty(), "{problems:?}");
    let set = Arc::new(set);
    let is_allowed = |caller: &Svid| {
        let identity = server.recheck_client(caller.chain(), UnixTime::now()).ok()?;
        let (source, local) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let attributes = ConnectionAttributes {
            identity: Some(&identity),
            source_ip: source,
            remote_ip: source,
            destination_ip: local,
            destination_port: 8080,
            sni: None,
        };
        Some(set.on_connection(&attributes).decide_tcp().is_allowed())
    };
    assert_eq!(is_allowed(&svid(&root_b, "b.example/ns/shop/sa/frontend")), Some(true));
    assert_eq!(is_allowed(&svid(&root_b, "b.example/ns/shop/sa/other")), Some(false));
    assert_eq!(is_allowed(&svid(&root_a, "a.example/ns/shop/sa/frontend")), Some(false));
    // The other mesh speaks for its own trust domain only, and nobody for a third.
    assert_eq!(is_allowed(&svid(&root_b, "a.example/ns/shop/sa/frontend")), None);
    assert_eq!(is_allowed(&svid(&root_a, "b.example/ns/shop/sa/frontend")), None);
    assert_eq!(is_allowed(&svid(&authority("c.example"), "c.example/ns/shop/sa/frontend")), None);
}
