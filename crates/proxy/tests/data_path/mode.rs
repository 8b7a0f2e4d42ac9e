//! Who gets in: identities, certificates, plaintext.

use crate::lab::{Lab, Server, at, exchange, get, http_backend, run};

#[test]
fn the_right_identity_gets_200_and_another_403_with_istios_words() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), ..Default::default() });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let answer = get(at(&web), "/hello");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let xfcc = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/cart;Hash=";
    assert!(answer.contains(xfcc), "{answer}");
    assert!(answer.contains(";URI=spiffe://cluster.local/ns/shop/sa/web\n"), "{answer}");

    let thief = lab.client("thief", at(&server), "HTTP", "ISTIO_MUTUAL");
    let answer = get(at(&thief), "/hello");
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nRBAC: access denied"), "{answer}");
    assert!(answer.contains("content-type: text/plain"), "{answer}");
    let metrics = server.metrics();
    let refused = metrics.lines().any(|l| l.starts_with("istio_requests_total") && l.contains("\"403\""));
    assert!(refused, "{metrics}");
}

#[test]
fn strict_refuses_plaintext_and_permissive_serves_both() {
    let lab = Lab::new();
    let backend = http_backend();
    let strict = lab.server(&Server { backend, policy: None, ..Default::default() });
    assert_eq!(get(at(&strict), "/"), "");
    let permissive = lab.server(&Server { backend, policy: None, mode: "PERMISSIVE", ..Default::default() });
    let forged =
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-forwarded-client-cert: URI=spiffe://x\r\n\r\n";
    let answer = exchange(at(&permissive), forged.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("x-forwarded-client-cert"), "{answer}");
    let web = lab.client("web", at(&permissive), "HTTP", "ISTIO_MUTUAL");
    assert!(get(at(&web), "/").contains("x-forwarded-client-cert"));
}

#[test]
fn a_client_without_certificate_is_refused_and_openssl_with_an_svid_is_served() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), ..Default::default() });
    let address = at(&server).to_string();
    let request =
        format!("GET /from-openssl HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", crate::lab::HOST);
    let common =
        ["s_client", "-quiet", "-ign_eof", "-connect", &address, "-alpn", "istio-http/1.1,istio,http/1.1"];
    let naked = run("openssl", &common, &request);
    assert!(!naked.contains("HTTP/1.1 "), "{naked}");

    let web = lab.pem("web");
    let (chain, key, roots) =
        (web.chain.display().to_string(), web.key.display().to_string(), web.roots.display().to_string());
    let shown = [&common[..], &["-cert", &chain, "-key", &key, "-CAfile", &roots, "-verify", "3"]].concat();
    let answer = run("openssl", &shown, &request);
    assert!(answer.contains("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("GET /from-openssl HTTP/1.1"), "{answer}");

    let other = crate::lab::Lab::new().authority;
    let rogue = other.write_svid(lab.path(".").as_path(), "rogue", &other.svid("shop", "web"));
    let (chain, key) = (rogue.chain.display().to_string(), rogue.key.display().to_string());
    let forged = [&common[..], &["-cert", &chain, "-key", &key]].concat();
    let answer = run("openssl", &forged, &request);
    assert!(!answer.contains("HTTP/1.1 "), "{answer}");
}

#[test]
fn a_server_that_is_somebody_else_is_not_talked_to() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), policy: None, ..Default::default() });
    let elsewhere = "spiffe://cluster.local/ns/shop/sa/orders";
    let web = lab.client_expecting("web", at(&server), "HTTP", "ISTIO_MUTUAL", elsewhere);
    let answer = get(at(&web), "/");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("upstream connect error or disconnect/reset before headers"), "{answer}");
}

#[test]
fn permissive_auto_ports_pass_the_applications_own_tls_through() {
    let lab = Lab::new();
    // The application is itself a TLS server: another sidecar's inbound side, in STRICT.
    let inner = lab.server(&Server { backend: http_backend(), ..Default::default() });
    let outer = lab.server(&Server {
        backend: at(&inner),
        mode: "PERMISSIVE",
        protocol: "AUTO",
        policy: None,
        ..Default::default()
    });
    let web = lab.pem("web");
    let (chain, key) = (web.chain.display().to_string(), web.key.display().to_string());
    let address = at(&outer).to_string();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let shown = [
        "s_client", "-quiet", "-ign_eof", "-connect", &address, "-alpn", "http/1.1", "-cert", &chain, "-key",
        &key,
    ];
    // ALPN is not the mesh's, so the outer proxy does not terminate; the inner one does, and its policy sees `web`.
    let answer = run("openssl", &shown, request);
    assert!(answer.contains("x-forwarded-client-cert"), "{answer}");
}

#[test]
fn the_port_of_a_policy_is_the_workloads() {
    let lab = Lab::new();
    let backend = http_backend();
    let allow =
        format!("{{action: ALLOW, rules: [{{to: [{{operation: {{ports: ['{}']}}}}]}}]}}", backend.port());
    let server = lab.server(&Server { backend, policy: Some(&allow), ..Default::default() });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    assert!(get(at(&web), "/").starts_with("HTTP/1.1 200"));
}
