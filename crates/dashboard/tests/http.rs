//! The page over real HTTP: who gets in, what every answer carries, and what is told when nobody answers.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use support::{Fixture, KEY, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request as it stands; the answer's head and body.
async fn send(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A server that refuses early may close before all is read.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_ascii_lowercase(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let host = format!("127.0.0.1:{}", address.port());
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")).await
}

/// What a browser sends that came with the key.
async fn cookie(address: SocketAddr) -> String {
    let (head, _) = get(address, &format!("/?key={KEY}"), "").await;
    let kept = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(!kept.contains(KEY), "cookies go to every port of this host: {kept}");
    format!("Cookie: {}\r\n", kept.split(';').next().unwrap_or_default())
}

#[tokio::test]
async fn the_key_leaves_the_address_for_a_cookie() {
    let address = serve(Arc::default());
    let (head, _) = get(address, &format!("/?key={KEY}&show=refused"), "").await;
    assert!(head.starts_with("http/1.1 303") && head.contains("location: /?show=refused\r\n"), "{head}");
    assert!(head.contains("httponly; samesite=strict"), "{head}");
    let (head, body) = get(address, &format!("/?key={KEY}"), "Sec-Fetch-Site: cross-site\r\n").await;
    assert!(
        head.starts_with("http/1.1 200") && head.contains("refresh: 0; url=/") && body.is_empty(),
        "{head}"
    );
    let (head, body) = get(address, "/", &cookie(address).await).await;
    assert!(head.starts_with("http/1.1 200") && body.contains("payment-service"), "{head}");
    assert!(!body.contains(KEY) && !head.contains(KEY), "the key is not repeated");
}

#[tokio::test]
async fn without_the_key_nothing_is_told() {
    let fixture = Arc::<Fixture>::default();
    let address = serve(Arc::clone(&fixture));
    for (path, headers) in [
        ("/", String::new()),
        ("/live", String::new()),
        ("/dashboard.js", String::new()),
        ("/nowhere", String::new()),
        ("/?key=wrong", cookie(address).await),
        ("/", format!("Cookie: maille-dashboard-{}={KEY}\r\n", address.port())),
    ] {
        let (head, body) = get(address, path, &headers).await;
        assert!(head.starts_with("http/1.1 403"), "{path}: {head}");
        assert!(body.contains("the wall has it") && !body.contains("payment"), "{path}: {body}");
    }
    assert_eq!(fixture.asked.load(Ordering::Relaxed), 0, "and nobody is asked");
}

#[tokio::test]
async fn a_foreign_name_is_refused_whatever_it_brings() {
    let address = serve(Arc::default());
    for host in ["evil.example", "127.0.0.1", "localhost:1"] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}\r\n", cookie(address).await);
        let (head, body) = send(address, &request).await;
        assert!(head.starts_with("http/1.1 403") && !body.contains("payment"), "{host}: {head}");
    }
    let request = format!("GET /?key={KEY} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    let (head, _) = send(address, &request).await;
    assert!(head.starts_with("http/1.1 403") && !head.contains("set-cookie"), "{head}");
}

#[tokio::test]
async fn every_answer_is_under_the_strict_policy() {
    let address = serve(Arc::default());
    for (path, headers) in [
        ("/", cookie(address).await),
        ("/live", cookie(address).await),
        ("/dashboard.css", cookie(address).await),
        ("/dashboard.js", cookie(address).await),
        ("/favicon.svg", cookie(address).await),
        ("/nowhere", cookie(address).await),
        ("/", String::new()),
        (&format!("/?key={KEY}"), String::new()),
    ] {
        let (head, body) = get(address, path, &headers).await;
        for wanted in [
            "content-security-policy: default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
             img-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'\r\n",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(head.contains(wanted), "{path}: {wanted}: {head}");
        }
        for forbidden in ["style=", "<style", "onclick", "http://", "https://", "javascript:"] {
            let is_svg_namespace = path == "/favicon.svg";
            assert!(is_svg_namespace || !body.contains(forbidden), "{path}: {forbidden}");
        }
    }
}

#[tokio::test]
async fn it_is_read_only_and_bounded() {
    let address = serve(Arc::default());
    let host = format!("127.0.0.1:{}", address.port());
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: {host}\r\n{}Content-Length: 0\r\nConnection: close\r\n\r\n",
            cookie(address).await
        );
        assert!(send(address, &request).await.0.starts_with("http/1.1 405"), "{method}");
    }
    let (head, _) = get(address, &format!("/?ns={}", "x".repeat(5000)), &cookie(address).await).await;
    assert!(head.starts_with("http/1.1 414"), "{head}");
    let (head, _) = get(address, "/", &format!("X-Long: {}\r\n", "x".repeat(40_000))).await;
    assert!(head.is_empty() || head.starts_with("http/1.1 431"), "{head}");
}

#[tokio::test]
async fn the_whole_page_is_small() {
    let address = serve(Arc::default());
    let mut all = 0;
    for path in ["/", "/dashboard.css", "/dashboard.js", "/favicon.svg"] {
        all += get(address, path, &cookie(address).await).await.1.len();
    }
    assert!(all < 60_000, "{all} bytes");
}

#[tokio::test]
async fn all_viewers_share_one_poll() {
    let fixture = Arc::<Fixture>::default();
    let address = serve(Arc::clone(&fixture));
    let headers = cookie(address).await;
    let views = (0..20).map(|_| get(address, "/live", &headers));
    for (head, _) in futures::future::join_all(views).await {
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    // Five questions make one round; a slow machine may need a second of them, not one for each viewer.
    assert!(fixture.asked.load(Ordering::Relaxed) <= 4 * 5, "{}", fixture.asked.load(Ordering::Relaxed));
}

#[tokio::test]
async fn what_was_known_stays_when_nobody_answers() {
    let fixture = Arc::<Fixture>::default();
    let address = serve(Arc::clone(&fixture));
    let headers = cookie(address).await;
    let (_, before) = get(address, "/live", &headers).await;
    assert!(!before.contains("No answer"));
    fixture.away.store(true, Ordering::Relaxed);
    let mut after = String::new();
    for _ in 0..200 {
        after = get(address, "/live", &headers).await.1;
        if after.contains("No answer") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(after.contains("No answer for") && after.contains("payment-service"), "{after}");
    assert!(after.contains("connection refused &lt;by&gt; &quot;nobody&quot;"), "{after}");

    let never = Arc::<Fixture>::default();
    never.away.store(true, Ordering::Relaxed);
    let address = serve(never);
    let (head, body) = get(address, "/", &cookie(address).await).await;
    assert!(head.starts_with("http/1.1 200") && body.contains("No answer yet"), "{body}");
}

#[tokio::test]
async fn who_talks_is_told_even_if_nobody_lists_what_there_is() {
    let address = serve(Arc::new(Fixture { lists_nothing: true, ..Fixture::default() }));
    let (_, body) = get(address, "/", &cookie(address).await).await;
    assert!(
        body.contains("deny-from-untrusted") && body.contains("are not known: pods is forbidden"),
        "{body}"
    );
}

/// A control plane that hangs: the old page at once, and in time the word that there is no answer.
#[tokio::test]
async fn a_hanging_control_plane_does_not_hang_the_page() {
    let fixture = Arc::<Fixture>::default();
    let address = serve(Arc::clone(&fixture));
    get(address, "/live", &cookie(address).await).await;
    fixture.hangs.store(true, Ordering::Relaxed);
    let mut body = String::new();
    for _ in 0..200 {
        body = get(address, "/live", &cookie(address).await).await.1;
        assert!(body.contains("payment-service"), "{body}");
        if body.contains("the control plane did not answer within 5 s") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("nothing is told of it: {body}");
}

#[tokio::test]
async fn a_mesh_in_which_nothing_has_called_yet_shows_its_workloads() {
    let flows = r#"{"flows": []}"#.to_owned();
    let fixture = Fixture { flows: flows.clone(), recent: flows, ..Fixture::default() };
    let address = serve(Arc::new(fixture));
    let (_, body) = get(address, "/", &cookie(address).await).await;
    assert!(
        body.contains("No flows yet") && body.contains("payment-service") && body.contains("no sidecar"),
        "{body}"
    );
}

#[tokio::test]
async fn filters_show_only_what_they_name() {
    let address = serve(Arc::default());
    let rows = |body: &str| body.matches("<tr class").count();
    let refused = get(address, "/live?show=refused", &cookie(address).await).await.1;
    assert_eq!(rows(&refused), 7, "{refused}");
    assert!(
        refused.contains("no ALLOW rule")
            && refused.contains("STRICT: plaintext")
            && refused.contains("deny-from-untrusted")
    );
    let plaintext = get(address, "/live?show=plaintext", &cookie(address).await).await.1;
    assert_eq!(rows(&plaintext), 3, "{plaintext}");
    let development = get(address, "/live?ns=development", &cookie(address).await).await.1;
    assert_eq!(rows(&development), 4, "{development}");
    let edge =
        get(address, "/live?from=production/frontend&to=production/orders", &cookie(address).await).await.1;
    for wanted in [
        "id=\"details\"",
        "cluster.local/ns/production/sa/frontend",
        "orders.production.svc.cluster.local",
        "4xx",
    ] {
        assert!(edge.contains(wanted), "{wanted}: {edge}");
    }
}

/// Whatever a proxy reports ends as text, everywhere it is shown.
#[tokio::test]
async fn what_flows_say_is_text_and_nothing_else() {
    let evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u{202e}";
    let peer = serde_json::json!({
        "namespace": evil, "workloadName": evil, "principal": evil, "address": evil, "service": evil, "uid": evil
    });
    let flow = serde_json::json!({
        "reporter": "DESTINATION", "source": peer, "destination": peer, "port": 80, "protocol": evil, "mtls": false,
        "decision": "DENIED", "policy": evil, "rule": 0, "reason": evil, "requests": 1,
        "lastSeenMs": u64::MAX, "firstSeenMs": 1
    });
    let other = serde_json::json!({
        "reporter": "DESTINATION", "source": {"address": evil}, "destination": peer, "decision": "REFUSED_TLS",
        "reason": evil, "connections": u64::MAX, "lastSeenMs": u64::MAX
    });
    let flows = serde_json::json!({"flows": [flow, other]}).to_string();
    let fixture = Fixture { flows: flows.clone(), recent: flows, ..Fixture::default() };
    let address = serve(Arc::new(fixture));
    let encoded: String = evil.bytes().map(|b| format!("%{b:02X}")).collect();
    for path in ["/".to_owned(), format!("/?ns={encoded}"), format!("/?workload={encoded}/{encoded}")] {
        let (head, body) = get(address, &path, &cookie(address).await).await;
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        assert!(
            !body.contains("<script>") && !body.contains("<img") && !body.contains('\u{202e}'),
            "{path}: {body}"
        );
        assert!(body.contains("&lt;script&gt;"), "{path}: shown, as text");
    }
}
