//! Addresses of which nothing is known, on ports that mean something all the same (reference mtls 4.1, 4.3).

use std::io::Write as _;
use std::net::SocketAddr;

use maille_proxy::StaticProxy;

use crate::lab::{
    Lab, at, dial, exchange, exchange_half_closed, http_backend, is_closed_soon, line_backend, read_until,
    tcp_backend,
};
use crate::outside::{NameServer, refusal};

/// Where nobody listens and nobody is known.
const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)), 5432);

/// A ServiceEntry, as an entry of `destinations`.
fn entry(host: &str, port: &str, more: &str) -> String {
    format!(
        "  {host}: {{service: {{namespace: corp, name: {host}, hostname: {host}, external: true, serviceEntry: corp/{host}, \
         ports: [{port}], {more}}}}}\n"
    )
}

/// The value of `endpoints` with one of them.
fn endpoint(service_port: u16, at: SocketAddr) -> String {
    format!("endpoints: [{}]", crate::outside::by_address(service_port, at))
}

fn get(proxy: &StaticProxy, host: &str) -> String {
    exchange(at(proxy), format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
}

/// OT-1.
#[test]
fn ports_that_nobody_declares_are_opaque() {
    let lab = Lab::new();
    let backend = line_backend();
    // Somebody takes requests, at another port.
    let web = entry("web.corp", "{number: 80, protocol: HTTP}", "endpoints: []");
    let open = lab.stranger_knowing(&web, backend, "ALLOW_ANY");
    // No proxy that understood it would let it pass.
    let odd = "GET  / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n";
    let mut stream = dial(at(&open));
    stream.write_all(odd.as_bytes()).expect("open");
    assert_eq!(read_until(&mut stream, "4\r\n\r\n"), odd, "the bytes were changed");
    drop(stream);
    assert!(!open.metrics().contains("istio_requests_total"), "{}", open.metrics());
    assert!(open.metrics().contains("PassthroughCluster"), "{}", open.metrics());
    let closed = lab.stranger_knowing(&web, backend, "REGISTRY_ONLY");
    assert_eq!(get(&closed, "unknown.example"), "", "an answer where nobody takes requests");
    assert!(closed.metrics().contains("BlackHoleCluster"), "{}", closed.metrics());
    // Nor is the caller waited for: accepted, then closed.
    assert!(is_closed_soon(&mut dial(at(&closed))));
}

/// OT-2, SE-9: the Host says who is meant, whatever the address.
#[test]
fn requests_go_where_their_host_says_on_ports_where_somebody_takes_them() {
    let lab = Lab::new();
    let backend = http_backend();
    let web = entry(
        "web.corp",
        "{number: 5432, protocol: HTTP}",
        &format!("addresses: [10.9.0.1], {}", endpoint(5432, backend)),
    );
    let proxy = lab.stranger_knowing(&web, NOWHERE, "REGISTRY_ONLY");
    assert!(get(&proxy, "web.corp:5432").contains("host: web.corp"), "{}", proxy.metrics());
    let unknown = get(&proxy, "unknown.example");
    assert!(unknown.starts_with("HTTP/1.1 502") && unknown.ends_with("\r\n\r\n"), "{unknown}");
    // OT-3.
    assert_eq!(exchange(at(&proxy), b"\x00\x01\x02\x03"), "");
}

/// SE-11.
#[test]
fn an_entry_without_addresses_catches_every_address_on_its_port() {
    let lab = Lab::new();
    let backend = tcp_backend(b"");
    let port = "{number: 5432, protocol: TCP}";
    let caught =
        lab.stranger_knowing(&entry("db.corp", port, &endpoint(5432, backend)), NOWHERE, "REGISTRY_ONLY");
    assert_eq!(exchange_half_closed(at(&caught), b"hello"), "hello");
    assert!(caught.metrics().contains("destination_service=\"db.corp\""), "{}", caught.metrics());
    // Requests, too, where nobody else takes them.
    let request = "GET / HTTP/1.1\r\nhost: unknown.example\r\n\r\n";
    assert_eq!(exchange_half_closed(at(&caught), request.as_bytes()), request);

    let addressed = format!("addresses: [10.9.0.1], {}", endpoint(5432, backend));
    let missed = lab.stranger_knowing(&entry("db.corp", port, &addressed), NOWHERE, "REGISTRY_ONLY");
    assert_eq!(exchange_half_closed(at(&missed), b"hello"), "");
    assert!(refusal(&missed).reason.contains("192.0.2.7 port 5432 is not in the registry"));
}

/// SE-4 with SE-11: every address on the port is allowed, and none is changed.
#[test]
fn an_entry_without_addresses_and_resolution_lets_every_address_on_its_port_out() {
    let lab = Lab::new();
    let backend = tcp_backend(b"220 first\n");
    let port = format!("{{number: {}, protocol: TCP}}", backend.port());
    let entry = entry("any.corp", &port, "resolution: NONE");
    let proxy = lab.stranger_knowing(&entry, backend, "REGISTRY_ONLY");
    assert_eq!(read_until(&mut dial(at(&proxy)), "\n"), "220 first\n", "the server speaks first");
}

/// The entry's names are looked up for whoever dials any address.
#[test]
fn what_catches_every_address_may_be_a_name() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let backend = tcp_backend(b"");
    let by_name = format!("resolution: DNS, endpoints: [{}]", crate::outside::by_name(5432, backend.port()));
    let known = entry("db.corp", "{number: 5432, protocol: TCP}", &by_name);
    let known = format!("{known}dnsServers: ['{}']\n", dns.address);
    let proxy = lab.stranger_knowing(&known, NOWHERE, "REGISTRY_ONLY");
    assert_eq!(exchange_half_closed(at(&proxy), b"hello"), "hello");
}

/// SE-13.
#[test]
fn requests_and_opaque_bytes_share_a_port() {
    let lab = Lab::new();
    let known = entry("web.corp", "{number: 5432, protocol: HTTP}", &endpoint(5432, http_backend()))
        + &entry("db.corp", "{number: 5432, protocol: TCP}", &endpoint(5432, tcp_backend(b"220 first\n")));
    let proxy = lab.stranger_knowing(&known, NOWHERE, "REGISTRY_ONLY");
    assert!(get(&proxy, "web.corp").contains("host: web.corp"), "{}", proxy.metrics());
    assert!(get(&proxy, "unknown.example").starts_with("HTTP/1.1 502"), "requests are not the database's");
    assert_eq!(exchange_half_closed(at(&proxy), b"\x00\x01hello"), "220 first\n\x00\x01hello");
    assert_eq!(read_until(&mut dial(at(&proxy)), "\n"), "220 first\n", "the server speaks first");
}

/// Its identity is known, and nobody's entry may stand in for it.
#[test]
fn a_workload_with_a_sidecar_is_not_caught() {
    let lab = Lab::new();
    let backend = tcp_backend(b"own ");
    let port = backend.port();
    let catching = entry(
        "db.corp",
        &format!("{{number: {port}, protocol: TCP}}"),
        &endpoint(port, tcp_backend(b"stolen ")),
    );
    let workload = |meshed: bool| {
        format!(
            "  127.0.0.1: {{workload: {{workload: {{uid: shop/cart-1, namespace: shop, workloadName: cart, meshed: \
             {meshed}}}}}}}\n"
        )
    };
    let proxy = lab.stranger_knowing(&(catching.clone() + &workload(true)), backend, "ALLOW_ANY");
    assert_eq!(exchange_half_closed(at(&proxy), b"hello"), "own hello");
    let proxy = lab.stranger_knowing(&(catching + &workload(false)), backend, "ALLOW_ANY");
    assert_eq!(exchange_half_closed(at(&proxy), b"hello"), "stolen hello");
}
