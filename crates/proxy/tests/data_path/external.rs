//! Services of ServiceEntries: how they are recognised and where their endpoints come from (reference mtls 4.1).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::lab::{
    Lab, PATIENCE, Server, at, dial, exchange, http_backend, is_closed_soon, read_until, run, tcp_backend,
};
use crate::outside::{
    API, NameServer, Outside, Sidecar, TlsServer, by_address, by_name, call, call_host, call_until, refusal,
};

const PASSTHROUGH: &str = "{number: 443, name: https, protocol: TLS}";

fn curl_https(proxy: &maille_proxy::StaticProxy, outside: &Outside, host: &str) -> String {
    let connect_to = format!("{host}:443:{}", at(proxy));
    let ca = outside.file("ca.pem").display().to_string();
    run("curl", &["-sS", "--cacert", &ca, "--connect-to", &connect_to, &format!("https://{host}/")], "")
}

/// SE-10.
#[test]
fn the_server_name_of_the_applications_tls_chooses_the_service() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, None);
    let sidecar = Sidecar {
        port: PASSTHROUGH.to_owned(),
        more: "settings: {outboundPolicy: REGISTRY_ONLY}".to_owned(),
        ..Sidecar::of_guide("", server.address, &dns)
    };
    let proxy = sidecar.start(&lab);
    let answer = curl_https(&proxy, &outside, API);
    assert!(answer.contains(&format!("sni={API}")), "{answer}");
    assert!(proxy.metrics().contains(&format!("destination_service=\"{API}\"")), "{}", proxy.metrics());
    // OT-4: another name is unknown, and so is the address.
    let refused = curl_https(&proxy, &outside, "unknown.example.com");
    assert!(refused.starts_with("curl: "), "{refused}");
}

/// The name may resolve to a Pod or a Service without sidecar whose own port is declared TCP.
#[test]
fn the_name_goes_before_an_address_that_has_no_sidecar() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let mistaken = http_backend();
    let workload = "{uid: external/api-1, namespace: external, workloadName: api}";
    let facts = [
        format!(
            "{{workload: {{workload: {workload}, headlessPorts: [{{port: 443, protocol: TCP, tls: PLAINTEXT, \
             serviceHostname: api.external.svc.cluster.local, servicePort: 443}}]}}}}"
        ),
        format!(
            "{{service: {{namespace: external, name: api, hostname: api.external.svc.cluster.local, ports: [{{number: 443, \
             protocol: TCP}}], endpoints: [{{workload: {workload}, address: 127.0.0.1, ports: [{{servicePort: 443, \
             targetPort: {}, tls: PLAINTEXT}}]}}]}}}}",
            mistaken.port()
        ),
    ];
    for facts in facts {
        let sidecar = Sidecar {
            more: format!("  192.0.2.7: {facts}"),
            ..Sidecar::of_guide(&outside.mutual(""), server.address, &dns)
        };
        let proxy = sidecar.start(&lab);
        let answer = call(&proxy);
        assert!(answer.contains("client=payment-service"), "{facts}: {answer}");
        let twice = curl_https(&proxy, &outside, API);
        assert!(twice.starts_with("curl: "), "{facts}: {twice}");
        assert!(refusal(&proxy).reason.contains("encrypted twice"));
    }
    // What names nobody goes where it was dialled, byte by byte.
    let proxy = Sidecar {
        more: format!(
            "  192.0.2.7: {{service: {{namespace: external, name: api, hostname: api.external.svc.cluster.local, ports: \
             [{{number: 443, protocol: TCP}}], endpoints: [{}]}}}}",
            by_address(443, mistaken)
        ),
        ..Sidecar::of_guide(&outside.mutual(""), server.address, &dns)
    }
    .start(&lab);
    let answer = call_host(&proxy, "api.external");
    assert!(answer.contains("host: api.external") && answer.contains("server: backend"), "{answer}");
    assert!(!proxy.metrics().contains("istio_requests_total"), "it was TCP: {}", proxy.metrics());
}

#[test]
fn a_server_may_speak_first_behind_an_address_without_sidecar() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let backend = tcp_backend(b"220 first\n");
    for port in [9443, 25] {
        let sidecar = Sidecar {
            dialled: SocketAddr::from(([192, 0, 2, 7], port)),
            more: format!(
                "  192.0.2.7: {{service: {{namespace: external, name: api, hostname: api.external.svc.cluster.local, ports: \
                 [{{number: {port}, protocol: TCP}}], endpoints: [{}]}}}}",
                by_address(port, backend)
            ),
            ..Sidecar::of_guide("{mode: DISABLE}", backend, &dns)
        };
        let proxy = sidecar.start(&lab);
        let mut stream = dial(at(&proxy));
        assert_eq!(read_until(&mut stream, "\n"), "220 first\n", "port {port}");
    }
}

/// A connection that was opened in advance, or a caller that somebody holds up.
#[test]
fn a_caller_that_speaks_late_gets_the_tls_that_its_host_has_ordered() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let workload = "{uid: external/api-1, namespace: external, workloadName: api}";
    let naked = |port: u16| {
        format!(
            "  192.0.2.7: {{workload: {{workload: {workload}, headlessPorts: [{{port: {port}, protocol: TCP, tls: PLAINTEXT, \
             serviceHostname: api.external.svc.cluster.local, servicePort: {port}}}]}}}}"
        )
    };
    for (port, more) in [(443, String::new()), (9443, String::new()), (443, naked(443)), (9443, naked(9443))]
    {
        let sidecar = Sidecar {
            port: format!("{{number: {port}, name: https, protocol: TLS, tls: {}}}", outside.mutual("")),
            endpoints: by_name(port, server.address.port()),
            dialled: SocketAddr::from(([192, 0, 2, 7], port)),
            more,
            ..Sidecar::of_guide("", server.address, &dns)
        };
        let proxy = sidecar.start(&lab);
        let mut stream = dial(at(&proxy));
        // Longer than the patience with callers of unknown addresses.
        std::thread::sleep(Duration::from_millis(600));
        let head = format!("GET / HTTP/1.1\r\nhost: {API}:{port}\r\nconnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, head.as_bytes()).expect("the proxy reads");
        let answer = read_until(&mut stream, "client=payment-service");
        assert!(answer.contains("client=payment-service"), "port {port}: {answer}");
    }
}

/// Plain HTTP where the application was to speak TLS, and nothing encrypts it: passed through, as in Istio.
#[test]
fn plain_http_to_a_tls_port_without_a_rule_goes_where_it_was_dialled() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let (dialled, elsewhere) = (http_backend(), tcp_backend(b""));
    let sidecar = Sidecar {
        port: format!("{{number: {}, name: https, protocol: TLS}}", dialled.port()),
        endpoints: by_name(dialled.port(), elsewhere.port()),
        dialled,
        ..Sidecar::of_guide("", elsewhere, &dns)
    };
    let answer = call_host(&sidecar.start(&lab), &format!("{API}:{}", dialled.port()));
    assert!(answer.contains("server: backend"), "{answer}");
}

/// SE-4, with and without `targetPort`.
#[test]
fn resolution_none_goes_to_the_dialled_address() {
    let lab = Lab::new();
    let backend = http_backend();
    for (dialled, target) in
        [(backend.port(), String::new()), (80, format!(", targetPort: {}", backend.port()))]
    {
        let sidecar = Sidecar {
            port: format!("{{number: {dialled}, name: http, protocol: HTTP{target}}}"),
            resolution: "NONE",
            endpoints: String::new(),
            dns: None,
            dialled: SocketAddr::new(backend.ip(), dialled),
            more: "settings: {outboundPolicy: REGISTRY_ONLY}".to_owned(),
        };
        let proxy = sidecar.start(&lab);
        let answer = call_host(&proxy, API);
        assert!(answer.contains("server: backend"), "{dialled}: {answer}");
        assert!(proxy.metrics().contains(&format!("destination_service=\"{API}\"")));
        let unknown = call_host(&proxy, "unknown.example.com");
        assert!(unknown.starts_with("HTTP/1.1 502"), "{unknown}");
    }
}

/// SE-6 and SE-7.
#[test]
fn every_answer_of_dns_is_an_endpoint_and_with_round_robin_the_first() {
    let (lab, dns) = (Lab::new(), NameServer::new());
    let outside = Outside::new(&lab);
    let (one, two) = (Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 12));
    let first = TlsServer::at(one.into(), 0, &outside.server, None);
    let second = TlsServer::at(two.into(), first.address.port(), &outside.server, None);
    dns.set(API, &[one, two], 60);
    for (resolution, both) in [("DNS", true), ("DNS_ROUND_ROBIN", false)] {
        let sidecar = Sidecar { resolution, ..Sidecar::of_guide(&outside.simple(""), first.address, &dns) };
        let proxy = sidecar.start(&lab);
        call(&proxy);
        let questions = dns.questions.load(Ordering::SeqCst);
        let answers: String = (0..40).map(|_| call(&proxy)).collect();
        assert_eq!(dns.questions.load(Ordering::SeqCst), questions, "requests must not ask name servers");
        assert!(answers.contains("server=127.0.0.11"), "{resolution}: {answers}");
        assert_eq!(answers.contains("server=127.0.0.12"), both, "{resolution}: {answers}");
    }
    assert!(second.connections.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_changed_record_is_followed_and_the_last_one_kept_while_dns_is_away() {
    let (lab, dns) = (Lab::new(), NameServer::new());
    let outside = Outside::new(&lab);
    let (one, two) = (Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 12));
    let first = TlsServer::at(one.into(), 0, &outside.server, None);
    let _second = TlsServer::at(two.into(), first.address.port(), &outside.server, None);
    dns.set(API, &[one], 1);
    let proxy = Sidecar::of_guide(&outside.simple(""), first.address, &dns).start(&lab);
    assert!(call(&proxy).contains("server=127.0.0.11"));
    dns.set(API, &[two], 1);
    call_until(&proxy, |answer| answer.contains("server=127.0.0.12"));
    dns.is_away(true);
    let asked = dns.questions.load(Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    while dns.questions.load(Ordering::SeqCst) < asked + 4 {
        assert!(Instant::now() < deadline, "the name is not asked for again");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(call(&proxy).contains("server=127.0.0.12"));
    dns.is_away(false);
    dns.remove(API);
    let answer = call_until(&proxy, |answer| answer.starts_with("HTTP/1.1 503"));
    assert!(answer.contains("no healthy upstream"), "{answer}");
}

#[test]
fn a_name_that_cannot_be_looked_up_is_refused_in_time_with_the_reason() {
    let (lab, dns) = (Lab::new(), NameServer::new());
    let outside = Outside::new(&lab);
    let sidecar = Sidecar::of_guide(&outside.mutual(""), SocketAddr::from(([127, 0, 0, 1], 9)), &dns);
    for (is_away, why) in [(false, "NXDOMAIN"), (true, "did not answer")] {
        dns.is_away(is_away);
        let proxy = sidecar.start(&lab);
        let answer = call(&proxy);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no healthy upstream"), "{answer}");
        let flow = refusal(&proxy);
        assert!(flow.reason.contains(API) && flow.reason.contains(why), "{}", flow.reason);
        assert_eq!(flow.destination.map(|d| d.service), Some(API.to_owned()));
    }
}

/// DR-1 and DR-2, for a service of the mesh.
#[test]
fn disable_sends_plaintext_and_istio_mutual_the_meshs_own_tls() {
    let lab = Lab::new();
    let backend = http_backend();
    let behind = lab.server(&Server { backend, policy: None, ..Server::default() });
    for (mode, auto, is_served) in [("DISABLE", "ISTIO_MUTUAL", false), ("ISTIO_MUTUAL", "PLAINTEXT", true)] {
        let endpoint = by_address(80, at(&behind)).replace("PLAINTEXT", auto);
        let sidecar = Sidecar {
            port: format!(
                "{{number: 80, protocol: HTTP, tls: {{mode: {mode}, rule: shop/cart, subjectAltNames: \
                 ['spiffe://cluster.local/ns/shop/sa/cart']}}}}"
            ),
            resolution: "STATIC",
            endpoints: endpoint,
            dns: None,
            dialled: SocketAddr::from(([192, 0, 2, 7], 80)),
            more: String::new(),
        };
        let answer = call_host(&sidecar.start(&lab), API);
        assert_eq!(answer.starts_with("HTTP/1.1 200"), is_served, "{mode}: {answer}");
    }
    // SN-4: the rule's names replace those of the service.
    let sidecar = Sidecar {
        port: "{number: 80, protocol: HTTP, tls: {mode: ISTIO_MUTUAL, rule: shop/cart, subjectAltNames: \
               ['spiffe://cluster.local/ns/shop/sa/other']}}"
            .to_owned(),
        resolution: "STATIC",
        endpoints: by_address(80, at(&behind)),
        dns: None,
        dialled: SocketAddr::from(([192, 0, 2, 7], 80)),
        more: String::new(),
    };
    let answer = call_host(&sidecar.start(&lab), API);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[test]
fn tls_without_a_server_name_goes_where_it_was_dialled() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, None);
    let sidecar = Sidecar {
        port: PASSTHROUGH.to_owned(),
        dialled: server.address,
        ..Sidecar::of_guide("", SocketAddr::from(([127, 0, 0, 1], 9)), &dns)
    };
    let proxy = sidecar.start(&lab);
    let said = run(
        "openssl",
        &["s_client", "-connect", &at(&proxy).to_string(), "-noservername", "-quiet"],
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert!(said.contains("sni=none"), "{said}");
    // A handshake that never ends holds nobody up for ever.
    let mut half = dial(at(&proxy));
    std::io::Write::write_all(&mut half, &[22, 3, 1]).expect("open");
    half.shutdown(std::net::Shutdown::Write).expect("open");
    half.set_read_timeout(Some(PATIENCE)).expect("a socket");
    assert!(is_closed_soon(&mut half));
    let _ = exchange(at(&proxy), b"\r\n");
}
