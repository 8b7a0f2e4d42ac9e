//! Tokens of requests, signed and verified for real, through two sidecars.

use std::net::SocketAddr;

use serde_json::json;

use crate::issuer::{ALLOW_TOKENS, ISSUER, Issuer};
use crate::lab::{HOST, Lab, PATIENCE, Server, at, exchange, http_backend, run};
use crate::log::Log;

/// One request with a header line of its own.
fn ask(address: SocketAddr, target: &str, line: &str) -> String {
    let line = if line.is_empty() { String::new() } else { format!("{line}\r\n") };
    exchange(
        address,
        format!("GET {target} HTTP/1.1\r\nhost: {HOST}\r\n{line}connection: close\r\n\r\n").as_bytes(),
    )
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

/// The last character of the signature changed.
fn forged(token: &str) -> String {
    let mut bytes = token.as_bytes().to_vec();
    let at = bytes.len() - 10;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).expect("text")
}

/// Reference authorization 16, 19 and 20.
#[test]
fn good_tokens_pass_bad_ones_get_401_and_none_is_a_matter_of_policy() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let facts = issuer.facts("audiences: [cart]");
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: Some(ALLOW_TOKENS),
        extra: &facts,
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let good = issuer.token("ann", 600, json!({"aud": "cart"}));
    let answer = ask(at(&web), "/x", &bearer(&good));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("authorization:"), "the token was forwarded: {answer}");
    // Within the allowance for clocks.
    let late = issuer.token("ann", -30, json!({"aud": "cart"}));
    assert!(ask(at(&web), "/x", &bearer(&late)).starts_with("HTTP/1.1 200"));

    let none = ask(at(&web), "/x", "");
    assert!(none.starts_with("HTTP/1.1 403") && none.ends_with("RBAC: access denied"), "{none}");
    let refusals = [
        (issuer.token("ann", -90, json!({"aud": "cart"})), "401", "Jwt is expired"),
        (forged(&good), "401", "Jwt verification fails"),
        (Issuer::new().token("ann", 600, json!({"aud": "cart"})), "401", "Jwt verification fails"),
        (issuer.token("ann", 600, json!({"aud": "x"})), "403", "Audiences in Jwt are not allowed"),
        (issuer.token("ann", 600, json!({"iss": "https://x"})), "401", "Jwt issuer is not configured"),
        (
            "x.y".to_owned(),
            "401",
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        ),
    ];
    for (token, status, reason) in refusals {
        let answer = ask(at(&web), "/x?a=b", &bearer(&token));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{reason}: {answer}");
        assert!(answer.ends_with(reason), "{reason}: {answer}");
        let challenge =
            format!("www-authenticate: Bearer realm=\"https://{HOST}/x?a=b\", error=\"invalid_token\"");
        assert!(answer.contains(&challenge), "{challenge} is missing in {answer}");
    }
    // Also for a caller that no policy would let in: tokens come first.
    let thief = lab.client("thief", at(&server), "HTTP", "ISTIO_MUTUAL");
    assert!(ask(at(&thief), "/x", &bearer("x.y")).starts_with("HTTP/1.1 401"));
}

#[test]
fn grpc_callers_are_told_of_bad_tokens_in_trailers() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let facts = issuer.facts("audiences: [cart]");
    let server = lab.server(&Server {
        backend: http_backend(),
        protocol: "HTTP2",
        policy: None,
        extra: &facts,
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "HTTP2", "ISTIO_MUTUAL");
    let url = format!("http://{}/pkg.Cart/Get", at(&web));
    let call = |token: &str| {
        let (host, authorization) = (format!("host: {HOST}"), bearer(token));
        let headers = ["-H", &host, "-H", &authorization, "-H", "content-type: application/grpc"];
        let arguments = ["-sS", "--max-time", "60", "--http2-prior-knowledge", "-i", "-X", "POST", &url];
        run("curl", &[&arguments[..], &headers[..]].concat(), "")
    };
    let expired = call(&issuer.token("ann", -90, json!({"aud": "cart"})));
    assert!(expired.starts_with("HTTP/2 200"), "{expired}");
    assert!(
        expired.contains("grpc-status: 16") && expired.contains("grpc-message: Jwt is expired"),
        "{expired}"
    );
    let audience = call(&issuer.token("ann", 600, json!({"aud": "x"})));
    assert!(audience.starts_with("HTTP/2 200"), "{audience}");
    assert!(
        audience.contains("grpc-status: 7")
            && audience.contains("grpc-message: Audiences in Jwt are not allowed"),
        "{audience}"
    );
}

#[test]
fn what_a_token_says_reaches_the_application_and_cannot_be_forged() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let facts = issuer.facts(
        "fromHeaders: [{name: x-token, prefix: ''}], fromParams: [t], outputPayloadToHeader: x-payload, \
         outputClaimToHeaders: [{header: x-sub, claim: sub}, {header: x-group, claim: org.group}]",
    );
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: Some(
            "{action: DENY, rules: [{when: [{key: 'request.auth.claims[org][group]', values: [guests]}]}, \
             {to: [{operation: {paths: ['/sub']}}], when: [{key: 'request.headers[x-sub]', values: [ann]}]}]}",
        ),
        extra: &facts,
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let staff = issuer.token("ann", 600, json!({"org": {"group": "staff"}}));
    let answer = ask(at(&web), "/x", &format!("x-sub: root\r\nX-Payload: forged\r\nx-token: {staff}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("x-sub: ann\n") && answer.contains("x-group: staff\n"), "{answer}");
    assert!(answer.contains("x-payload: ey") && !answer.contains("forged"), "{answer}");
    assert!(!answer.contains("x-token:") && !answer.contains("root"), "{answer}");
    // Policy sees what the application sees.
    assert!(ask(at(&web), "/sub", &format!("x-token: {staff}")).starts_with("HTTP/1.1 403"));
    let guest = issuer.token("bob", 600, json!({"org": {"group": "guests"}}));
    assert!(ask(at(&web), "/x", &format!("x-token: {guest}")).starts_with("HTTP/1.1 403"));
    // Without a token nobody may say what only tokens say.
    let nobody = ask(at(&web), "/x", "x-sub: ann\r\nx-payload: forged");
    assert!(nobody.starts_with("HTTP/1.1 200"), "{nobody}");
    assert!(!nobody.contains("x-sub") && !nobody.contains("x-payload"), "{nobody}");
    // In the query, of which the rest stays.
    let answer = ask(at(&web), &format!("/x?a=1&t={staff}&b=2"), "");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-sub: ann\n"), "{answer}");
    assert!(answer.contains("GET /x?a=1&b=2 HTTP/1.1"), "{answer}");
}

#[test]
fn a_key_set_that_is_missing_refuses_tokens_and_lets_others_pass_until_it_comes() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let away = format!(
        "requestAuthentications: [{{namespace: shop, name: idp, jwtRules: [{{issuer: '{ISSUER}', jwksProblem: 'https://idp.example/keys cannot be reached'}}]}}]"
    );
    let mut facts = Server { backend: http_backend(), policy: None, extra: &away, ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let token = issuer.token("ann", 600, json!({}));
    assert!(ask(at(&web), "/x", "").starts_with("HTTP/1.1 200"));
    let refused = ask(at(&web), "/x", &bearer(&token));
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let there = issuer.facts("");
    facts.extra = &there;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(ask(at(&web), "/x", &bearer(&token)).starts_with("HTTP/1.1 200"));
    // A token that was good is not remembered beyond its key.
    let rotated = Issuer::new().facts("");
    facts.extra = &rotated;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    let refused = ask(at(&web), "/x", &bearer(&token));
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
}

#[test]
fn tokens_appear_in_no_log_flow_metric_or_explanation() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let log = Log::at(&lab);
    let extra = format!(
        "{}\n{}settings: {{accessLog: JSON, explainInResponse: true}}",
        issuer.facts(
            "fromHeaders: [{name: authorization, prefix: 'Bearer '}], fromParams: [t], fromCookies: [c]"
        ),
        log.yaml()
    );
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: Some(
            "{action: ALLOW, rules: [{to: [{operation: {paths: [/ok]}}]}, \
             {to: [{operation: {paths: ['/never*']}}], when: [{key: 'request.headers[authorization]', values: [x]}]}, \
             {when: [{key: 'request.headers[cookie]', values: [x]}]}]}",
        ),
        extra: &extra,
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let good = issuer.token("ann", 600, json!({}));
    let bad = forged(&good);
    let mut answers = String::new();
    for token in [&good, &bad] {
        for path in ["/ok", "/never", "/other"] {
            answers += &ask(at(&web), path, &bearer(token));
            answers += &ask(at(&web), &format!("{path}?t={token}"), "");
            answers += &ask(at(&web), path, &format!("cookie: c={token}"));
        }
    }
    // A header that the application echoes, and the realm, are the caller's own words back to it.
    let reasons: String = answers.lines().filter(|line| line.contains("x-maille-reason")).collect();
    assert!(!reasons.is_empty(), "{answers}");
    let logged = log.until(PATIENCE, |text| text.lines().count() >= 18);
    let shown = [reasons, logged, server.metrics(), format!("{:?}", server.take_flows())].join("\n");
    for token in [&good, &bad] {
        let signature = token.rsplit('.').next().expect("three parts");
        assert!(!shown.contains(signature), "{signature} in {shown}");
    }
}
