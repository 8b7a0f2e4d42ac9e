//! TLS as a DestinationRule orders it (reference mtls 2.2), towards servers outside of the mesh.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::lab::{Lab, at, run};
use crate::outside::{
    API, NameServer, Outside, RULE, Sidecar, TlsServer, by_address, call, call_host, call_until, refusal,
};

/// The guide's example: `curl http://api.external-service.com:443/` over mutual TLS (a departure from DR-5).
#[test]
fn plain_http_to_the_guides_https_port_goes_out_over_mutual_tls() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let proxy = Sidecar::of_guide(&outside.mutual(""), server.address, &dns).start(&lab);
    let answer = call(&proxy);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // DR-3: the server name is the Host, and without HTTP/2 no protocol is offered.
    assert!(answer.contains(&format!("sni={API} alpn=none client=payment-service")), "{answer}");
    assert!(answer.contains(&format!("host={API}:443")), "{answer}");
    let metrics = proxy.metrics();
    for label in [
        format!("destination_service=\"{API}\""),
        format!("destination_service_name=\"{API}\""),
        "destination_service_namespace=\"production\"".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|l| l.starts_with("istio_requests_total") && l.contains(&label)),
            "{metrics}"
        );
    }
    let again = call(&proxy);
    assert!(again.contains("connection=1"), "the upstream connection is kept: {again}");
    let h2 = run(
        "curl",
        &["-s", "--http2-prior-knowledge", "-H", &format!("host: {API}"), &format!("http://{}", at(&proxy))],
        "",
    );
    assert!(h2.contains("alpn=h2") && h2.contains("version=HTTP/2.0"), "{h2}");
}

#[test]
fn a_stock_nginx_that_demands_certificates_is_satisfied() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let nginx = Nginx::start(&lab, &outside);
    let proxy = Sidecar::of_guide(&outside.mutual(""), nginx.address, &dns).start(&lab);
    let answer = call_until(&proxy, |answer| answer.starts_with("HTTP/1.1 200"));
    assert!(answer.contains(&format!("hello CN=payment-service at {API}")), "{answer}");
    let without = outside.simple("");
    let proxy = Sidecar::of_guide(&without, nginx.address, &dns).start(&lab);
    let answer = call(&proxy);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("No required SSL certificate"), "{answer}");
}

/// DR-3 with `targetPort`: the application calls port 80.
#[test]
fn port_80_can_be_mapped_to_443() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, None);
    let sidecar = Sidecar {
        port: format!("{{number: 80, name: http, protocol: HTTP, tls: {}}}", outside.simple("")),
        endpoints: crate::outside::by_name(80, server.address.port()),
        dialled: SocketAddr::from(([192, 0, 2, 7], 80)),
        ..Sidecar::of_guide("", server.address, &dns)
    };
    let answer = call_host(&sidecar.start(&lab), API);
    assert!(answer.contains(&format!("sni={API}")) && answer.contains("client=none"), "{answer}");
}

#[test]
fn each_refusal_names_the_rule_the_file_and_what_is_wrong() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let stranger = maille_testkit::TestAuthority::new();
    let other_key = stranger.client("x", None).key_pem();
    let sidecar = Sidecar::of_guide(&outside.mutual(""), server.address, &dns);
    let (good_ca, good_key) =
        (outside.authority.roots_pem(), std::fs::read_to_string(outside.file("key.pem")).expect("there"));
    let cases: [(&str, Option<String>, &[&str]); 5] = [
        ("ca.pem", Some(stranger.roots_pem()), &["caCertificates", "ca.pem", "stands behind it"]),
        ("ca.pem", None, &["caCertificates", "ca.pem", "No such file", "userVolumeMount"]),
        ("key.pem", Some(other_key), &["clientCertificate", "key.pem", "do not belong together"]),
        ("key.pem", Some("nonsense".to_owned()), &["privateKey", "key.pem"]),
        ("cert.pem", None, &["clientCertificate", "cert.pem", "No such file"]),
    ];
    for (file, text, expected) in cases {
        match &text {
            Some(text) => outside.write(file, text),
            None => std::fs::remove_file(outside.file(file)).expect("there"),
        }
        let proxy = sidecar.start(&lab);
        let answer = call(&proxy);
        let flow = refusal(&proxy);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        for word in expected.iter().copied().chain([RULE]) {
            assert!(answer.contains(word), "{word} is not in the answer: {answer}");
            assert!(flow.reason.contains(word), "{word} is not in the flow: {}", flow.reason);
        }
        assert_eq!(flow.destination.map(|d| d.service), Some(API.to_owned()));
        outside.write("ca.pem", &good_ca);
        outside.write("key.pem", &good_key);
        // Put right, it works without a restart.
        if file == "cert.pem" {
            outside.give("payment-service", Duration::from_secs(3600));
        }
        call_until(&proxy, |answer| answer.starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn an_expired_client_certificate_is_refused_here_and_a_renewed_one_taken_up() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let proxy = Sidecar::of_guide(&outside.mutual(""), server.address, &dns).start(&lab);
    assert!(call(&proxy).starts_with("HTTP/1.1 200"));
    // Whether or not it is used before it expires: kept connections do not outlive the certificate.
    outside.give("short-lived", Duration::from_secs(3));
    let answer = call_until(&proxy, |answer| answer.starts_with("HTTP/1.1 503"));
    assert!(
        answer.contains(RULE) && answer.contains("cert.pem") && answer.contains("expired at"),
        "{answer}"
    );
    outside.give("renewed", Duration::from_secs(3600));
    call_until(&proxy, |answer| answer.contains("client=renewed"));
}

#[test]
fn changed_files_are_taken_up_and_bad_ones_leave_the_last_good_pair_in_force() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let proxy = Sidecar::of_guide(&outside.mutual(""), server.address, &dns).start(&lab);
    let first = call(&proxy);
    assert!(first.contains("client=payment-service connection=1"), "{first}");
    outside.write("key.pem", "half a ke");
    // At whatever moment the change is seen.
    for _ in 0..20 {
        let kept = call(&proxy);
        assert!(kept.contains("client=payment-service"), "{kept}");
        std::thread::sleep(Duration::from_millis(100));
    }
    outside.give("somebody-else", Duration::from_secs(3600));
    call_until(&proxy, |answer| answer.contains("client=somebody-else"));
}

#[test]
fn a_changed_rule_makes_new_connections() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, None);
    let mut sidecar = Sidecar::of_guide(&outside.simple(""), server.address, &dns);
    let proxy = sidecar.start(&lab);
    assert!(call(&proxy).contains("client=none connection=1"));
    let tls = outside.simple(", sni: other.example.com");
    sidecar.port = format!("{{number: 443, name: https, protocol: TLS, tls: {tls}}}");
    sidecar.write(&lab, &lab.path("external.yaml"));
    proxy.reload().expect("a good file");
    let answer = call_until(&proxy, |answer| answer.contains("sni=other.example.com"));
    assert!(answer.contains("connection=2"), "{answer}");
}

/// SE-4 and DR-3 together: a wildcard host, reached where it was dialled, under the name that was called.
#[test]
fn a_wildcard_host_is_told_the_name_that_was_called() {
    let lab = Lab::new();
    let outside = Outside::new(&lab);
    let own = outside.authority.server(&["*.example.org"], &[]);
    let server = TlsServer::new(&own, None);
    let port = server.address.port();
    let tls = outside.simple("");
    let facts = format!(
        "{{service: {{namespace: production, name: '*.example.org', hostname: '*.example.org', external: true, resolution: \
         NONE, serviceEntry: production/all, ports: [{{number: {port}, protocol: HTTP, tls: {tls}}}]}}}}"
    );
    let sidecar = Sidecar {
        port: format!("{{number: {port}, protocol: HTTP}}"),
        resolution: "NONE",
        endpoints: String::new(),
        dns: None,
        dialled: server.address,
        more: format!("  a.example.org: {facts}\n  b.c.example.org: {facts}"),
    };
    let proxy = sidecar.start(&lab);
    let answer = call_host(&proxy, "A.example.org");
    assert!(answer.contains("sni=a.example.org"), "{answer}");
    // One label only, in certificates.
    let refused = call_host(&proxy, "b.c.example.org");
    assert!(refused.contains("it is for *.example.org, and not for b.c.example.org"), "{refused}");
}

/// DR-3: names.
#[test]
fn the_server_must_prove_the_name_that_the_rule_or_the_caller_says() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let other = outside.authority.server(&["other.example.com"], &[]);
    let server = TlsServer::new(&other, None);
    let cases = [
        ("", false),
        // With an explicit server name and no names only the chain is verified.
        (", sni: whatever.example.com", true),
        (", subjectAltNames: [other.example.com]", true),
        (", subjectAltNames: [api.external-service.com]", false),
        (", sni: other.example.com, subjectAltNames: [third.example.com]", false),
    ];
    for (more, is_accepted) in cases {
        let proxy = Sidecar::of_guide(&outside.simple(more), server.address, &dns).start(&lab);
        let answer = call(&proxy);
        assert_eq!(answer.starts_with("HTTP/1.1 200"), is_accepted, "{more}: {answer}");
        if !is_accepted {
            assert!(answer.contains(RULE) && answer.contains("other.example.com"), "{answer}");
            assert!(proxy.metrics().contains("server_identity"), "{}", proxy.metrics());
        }
    }
    let insecure = "{mode: SIMPLE, rule: production/external-api-mtls, insecureSkipVerify: true}";
    let proxy = Sidecar::of_guide(insecure, server.address, &dns).start(&lab);
    assert!(call(&proxy).starts_with("HTTP/1.1 200"));
}

#[test]
fn without_ca_certificates_the_operating_systems_roots_decide() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, None);
    for ca in ["", ", caCertificates: system"] {
        let tls = format!("{{mode: SIMPLE, rule: production/external-api-mtls{ca}}}");
        let proxy = Sidecar::of_guide(&tls, server.address, &dns).start(&lab);
        let answer = call(&proxy);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("operating system"), "{answer}");
        assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    }
}

/// A server that refuses our certificate says so after our side of the handshake is over, under TLS 1.3.
#[test]
fn a_servers_refusal_of_our_certificate_is_reported_as_such() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    for version in ["-tls1_3", "-tls1_2"] {
        let server = OpenSsl::start(&lab, &outside, version);
        let proxy = Sidecar::of_guide(&outside.simple(""), server.address, &dns).start(&lab);
        let answer = call(&proxy);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(RULE), "{version}: {answer}");
        assert!(answer.contains("alert") && answer.contains("MUTUAL"), "{version}: {answer}");
        let proxy = Sidecar::of_guide(&outside.mutual(""), server.address, &dns).start(&lab);
        let answer = call(&proxy);
        assert!(answer.contains("200") && answer.contains("CN=payment-service"), "{version}: {answer}");
    }
}

#[test]
fn a_servers_refusal_shows_on_opaque_and_http2_connections_too() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = OpenSsl::start(&lab, &outside, "-tls1_3");
    let proxy = Sidecar::of_guide(&outside.simple(""), server.address, &dns).start(&lab);
    let url = format!("http://{}", at(&proxy));
    let said = run("curl", &["-s", "--http2-prior-knowledge", "-H", &format!("host: {API}"), &url], "");
    assert!(said.contains("connection termination"), "{said}");
    let reason = refusal(&proxy).reason;
    assert!(reason.contains(RULE) && reason.contains("alert"), "{reason}");

    let tls = outside.simple("");
    let sidecar = Sidecar {
        more: format!(
            "  192.0.2.7: {{service: {{namespace: production, name: {API}, hostname: {API}, serviceEntry: \
             production/external-api, ports: [{{number: 443, protocol: TCP, tls: {tls}}}], endpoints: [{}]}}}}",
            by_address(443, server.address)
        ),
        ..Sidecar::of_guide(&tls, server.address, &dns)
    };
    let proxy = sidecar.start(&lab);
    crate::lab::exchange(at(&proxy), b"hello");
    let reason = refusal(&proxy).reason;
    assert!(reason.contains(RULE) && reason.contains("requires a client certificate"), "{reason}");
}

/// DR-6.
#[test]
fn tls_that_would_be_encrypted_twice_is_closed_at_once_with_the_remedy() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let proxy = Sidecar::of_guide(&outside.mutual(""), server.address, &dns).start(&lab);
    let port = at(&proxy).port();
    let connect_to = format!("{API}:443:127.0.0.1:{port}");
    let said = run("curl", &["-sS", "-k", "--connect-to", &connect_to, &format!("https://{API}/")], "");
    assert!(said.starts_with("curl: "), "{said}");
    let flow = refusal(&proxy);
    for word in [RULE, "encrypted twice", &format!("http://{API}:443"), "MUTUAL"] {
        assert!(flow.reason.contains(word), "{word}: {}", flow.reason);
    }
    assert_eq!(flow.destination.map(|d| d.service), Some(API.to_owned()));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0, "nothing was sent to the server");
}

#[test]
fn opaque_bytes_are_encrypted_too_where_the_address_is_the_services() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    // HTTP on a port that is declared TCP: nothing looks at it, so there is no Host to make a server name of.
    let sidecar = Sidecar {
        port: format!("{{number: 443, name: tcp, protocol: TCP, tls: {}}}", outside.mutual("")),
        more: format!(
            "  192.0.2.7: {{service: {{namespace: production, name: {API}, hostname: {API}, serviceEntry: \
             production/external-api, addresses: [192.0.2.7], ports: [{{number: 443, protocol: TCP, tls: {}}}], \
             endpoints: [{}]}}}}",
            outside.mutual(""),
            by_address(443, server.address)
        ),
        ..Sidecar::of_guide("", server.address, &dns)
    };
    let proxy = sidecar.start(&lab);
    let answer = call(&proxy);
    assert!(answer.contains("sni=none") && answer.contains("client=payment-service"), "{answer}");
}

#[test]
fn a_workload_called_by_its_own_address_gets_the_tls_of_its_headless_services_rule() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let outside = Outside::new(&lab);
    let server = TlsServer::new(&outside.server, Some(&outside.authority));
    let port = server.address.port();
    for protocol in ["HTTP", "TCP"] {
        // No name is told to the server but the rule's.
        let tls = outside.mutual(&format!(", sni: {API}"));
        let sidecar = Sidecar {
            dialled: server.address,
            more: format!(
                "  127.0.0.1: {{workload: {{workload: {{uid: external/api-1, namespace: external}}, headlessPorts: [{{port: \
                 {port}, protocol: {protocol}, tls: PLAINTEXT, serviceHostname: api.external.svc.cluster.local, \
                 servicePort: {port}, clientTls: {tls}}}]}}}}"
            ),
            ..Sidecar::of_guide("{mode: DISABLE}", server.address, &dns)
        };
        let answer = call_host(&sidecar.start(&lab), "api.external");
        assert!(answer.contains(&format!("sni={API}")), "{protocol}: {answer}");
        assert!(answer.contains("client=payment-service"), "{protocol}: {answer}");
    }
}

/// `openssl s_server` that demands certificates of the outside's authority.
struct OpenSsl {
    child: Child,
    address: SocketAddr,
}

impl OpenSsl {
    fn start(lab: &Lab, outside: &Outside, version: &str) -> Self {
        let folder = lab.path("");
        let files = outside.authority.write_credential(&folder, "s_server", &outside.server);
        let text = |path: &std::path::Path| path.display().to_string();
        let mut child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-www",
                "-Verify",
                "2",
                "-verify_return_error",
                version,
            ])
            .args(["-cert", &text(&files.chain), "-key", &text(&files.key), "-CAfile", &text(&files.roots)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is needed");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut address = None;
        let mut lines = lines.map_while(Result::ok);
        for line in lines.by_ref() {
            if let Some(bound) = line.strip_prefix("ACCEPT ") {
                address = bound.parse().ok();
                break;
            }
        }
        // Or it would end with a broken pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("openssl says where it listens") }
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    fn start(lab: &Lab, outside: &Outside) -> Self {
        let folder = lab.path("nginx");
        std::fs::create_dir(&folder).expect("a directory");
        let files = outside.authority.write_credential(&folder, "server", &outside.server);
        // Nobody tells which port nginx got, so it gets one that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let (dir, port) = (folder.display(), address.port());
        let (cert, key, ca) = (files.chain.display(), files.key.display(), files.roots.display());
        let config = folder.join("nginx.conf");
        let text = format!(
            "daemon off; worker_processes 1; master_process off; pid {dir}/pid; error_log {dir}/error.log; \
             events {{}}\nhttp {{ access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; \
             fastcgi_temp_path {dir}/c; uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n\
             server {{ listen 127.0.0.1:{port} ssl; server_name {API}; ssl_certificate {cert}; \
             ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on; ssl_verify_depth 2;\n\
             location / {{ return 200 \"hello $ssl_client_s_dn at $ssl_server_name\\n\"; }} }} }}\n"
        );
        std::fs::write(&config, text).expect("writable");
        let child = Command::new("nginx")
            .args(["-p", &folder.display().to_string(), "-c", &config.display().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is needed");
        Self { child, address }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
