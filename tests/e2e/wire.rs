//! What travels on the bridge between Pods.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::identity::Forge;
use crate::mesh::{Mesh, Ran, eventually};
use crate::pcap;

pub(crate) fn only_tls_between_sidecars(mesh: &Mesh) -> Result<()> {
    let orders = mesh.pod_ip("production/orders")?;
    let capture = mesh.folder().join("bridge.pcap");
    let mut tcpdump = mesh
        .on_node("tcpdump")?
        .args(["-i", "mbr0", "-U", "-s", "0", "-w"])
        .arg(&capture)
        .arg(format!("host {orders} and tcp port 8080"))
        .stderr(Stdio::null())
        .spawn()?;
    let secret = "maille-e2e-secret-in-transit";
    let looked = eventually(Duration::from_secs(20), || {
        // New connections, so that the handshakes are in the capture.
        let url = format!("http://orders/api/v1/orders/{secret}");
        let (code, _) = mesh.curl("production/payment-service", &["-X", "POST", "-d", secret, &url])?;
        ensure!(code == 200, "the call answered {code}");
        let bytes = std::fs::read(&capture).unwrap_or_default();
        let streams = pcap::tcp_streams(&bytes)?;
        let payload: usize = streams.iter().map(|stream| stream.bytes.len()).sum();
        ensure!(payload > 1000, "only {payload} bytes were captured");
        Ok((bytes, streams))
    });
    let _ = tcpdump.kill();
    let _ = tcpdump.wait();
    let (bytes, streams) = looked?;
    ensure!(!contains(&bytes, secret.as_bytes()), "a request's body travels readable");
    ensure!(!contains(&bytes, b"HTTP/1.1"), "HTTP travels readable");
    for stream in streams.iter().filter(|stream| stream.starts_at_syn) {
        pcap::only_tls_records(&stream.bytes).with_context(|| format!("{} is not TLS", stream.name))?;
    }
    Ok(())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// openssl, given an SVID, on a connection from outside every Pod.
pub(crate) fn openssl_sees_the_identity(mesh: &Mesh) -> Result<()> {
    let forge = Forge::of_mesh(mesh)?;
    let svid = forge.svid("production", "payment-service")?;
    let ran = s_client(mesh, "production/orders", Some(&svid), &["-tls1_3"])?;
    let text = format!("{}{}", ran.stdout, ran.stderr);
    ensure!(text.contains("TLSv1.3"), "not TLS 1.3:\n{text}");
    ensure!(text.contains("Verify return code: 0 (ok)"), "the chain does not verify:\n{text}");
    ensure!(text.contains("HTTP/1.1 200"), "the request was not answered:\n{text}");
    let pem = text.split("-----BEGIN CERTIFICATE-----").nth(1).context("no certificate was shown")?;
    let pem = pem.split("-----END").next().unwrap_or_default();
    let pem = format!("-----BEGIN CERTIFICATE-----{pem}-----END CERTIFICATE-----\n");
    let mut x509 = Command::new("openssl");
    x509.args(["x509", "-noout", "-ext", "subjectAltName"]);
    let names = crate::mesh::run_with_input(x509, Some(&pem))?.stdout;
    ensure!(
        names.contains("critical") && names.contains("URI:spiffe://cluster.local/ns/production/sa/orders"),
        "the server's certificate says {names}"
    );
    Ok(())
}

/// `openssl s_client` from the node to port 8080 of a workload, sending one request.
pub(crate) fn s_client(
    mesh: &Mesh,
    workload: &str,
    svid: Option<&crate::identity::Pair>,
    more: &[&str],
) -> Result<Ran> {
    let address = mesh.pod_ip(workload)?;
    let forge = Forge::of_mesh(mesh)?;
    let mut command = mesh.on_node("openssl")?;
    command.args([
        "s_client",
        "-connect",
        &format!("{address}:8080"),
        "-alpn",
        "istio-http/1.1,istio,http/1.1",
    ]);
    command.arg("-CAfile").arg(forge.root()).args(["-showcerts", "-ign_eof"]).args(more);
    if let Some(pair) = svid {
        command.arg("-cert").arg(&pair.certificate).arg("-key").arg(&pair.key);
    }
    let request = "GET /api/v1/orders/1 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    crate::mesh::run_with_input(command, Some(request))
}

pub(crate) fn plaintext_by_mode(mesh: &Mesh) -> Result<()> {
    // STRICT: cut off without an answer, from a Pod and from the node, by service and by address.
    let frontend = mesh.pod_ip("production/frontend")?;
    for url in ["http://frontend.production/".to_owned(), format!("http://{frontend}:8080/")] {
        let ran = mesh.exec("legacy/legacy-client", &["curl", "-sS", "--max-time", "8", &url])?;
        ensure!(
            matches!(ran.code, 52 | 56),
            "curl {url} under STRICT ended with {}: {}{}",
            ran.code,
            ran.stdout,
            ran.stderr
        );
    }
    let ran: Ran = mesh
        .on_node("curl")?
        .args(["-sS", "--max-time", "8", &format!("http://{frontend}:8080/healthz")])
        .output()?
        .into();
    ensure!(matches!(ran.code, 52 | 56), "plaintext from the node ended with {}", ran.code);
    // PERMISSIVE: served, and without an identity.
    let (code, body) = mesh.curl("legacy/legacy-client", &["http://inventory/"])?;
    ensure!(code == 200 && body.contains("\"caller\":null"), "under PERMISSIVE: {code} {body}");
    Ok(())
}

pub(crate) fn metrics_port_in_plaintext(mesh: &Mesh) -> Result<()> {
    let payment = mesh.pod_ip("production/payment-service")?;
    let ran: Ran = mesh
        .on_node("curl")?
        .args(["-sS", "--max-time", "8", &format!("http://{payment}:9090/metrics")])
        .output()?
        .into();
    ensure!(
        ran.stdout.contains("shop_requests_served_total"),
        "port 9090 answered {}{}",
        ran.stdout,
        ran.stderr
    );
    let ran: Ran = mesh
        .on_node("curl")?
        .args(["-sS", "--max-time", "8", &format!("http://{payment}:8080/metrics")])
        .output()?
        .into();
    ensure!(matches!(ran.code, 52 | 56), "port 8080 let plaintext through: {}", ran.stdout);
    Ok(())
}
