//! What an upstream's server has proved holds for the life of connections to it, pooled and shared ones too.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use maille_proxy::StaticProxy;
use maille_testkit::TestAuthority;

use crate::lab::{
    Lab, PATIENCE, Server, at, dial, get, http_backend, is_closed_soon, line_backend, read_until,
};
use crate::tunnel::client as many;

/// Asks without pause, so that whatever connection is kept is never idle, until an answer begins so.
fn ask_until(proxy: &StaticProxy, status: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = get(at(proxy), "/x");
        if answer.starts_with(status) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {status}, but {answer}");
    }
}

fn say(stream: &mut TcpStream, line: &str) {
    writeln!(stream, "{line}").expect("open");
    assert_eq!(read_until(stream, "\n"), format!("{line}\n"));
}

#[test]
fn no_request_goes_over_a_connection_whose_servers_certificate_has_expired() {
    let mut lab = Lab::new();
    lab.ttl = Duration::from_secs(6);
    let facts = Server { backend: http_backend(), policy: None, ..Default::default() };
    let server = lab.server(&facts);
    lab.ttl = Duration::from_secs(3600);
    let clients = [
        lab.client("single", at(&server), "HTTP", "ISTIO_MUTUAL"),
        lab.client("http2", at(&server), "HTTP2", "ISTIO_MUTUAL"),
        many(&lab, "many", at(&server), "HTTP"),
    ];
    for client in &clients {
        ask_until(client, "HTTP/1.1 200");
    }
    for client in &clients {
        ask_until(client, "HTTP/1.1 503");
    }
    lab.pem("cart");
    server.reload().expect("read again");
    for client in &clients {
        ask_until(client, "HTTP/1.1 200");
    }
}

#[test]
fn a_stream_ends_with_its_servers_certificate_unless_a_renewed_one_is_proved() {
    let mut lab = Lab::new();
    lab.ttl = Duration::from_secs(14);
    let facts = Server { backend: line_backend(), protocol: "TCP", policy: None, ..Default::default() };
    let renewed = lab.server(&facts);
    let late = lab.server(&facts);
    lab.ttl = Duration::from_secs(3600);
    let clients = [
        many(&lab, "web", at(&renewed), "TCP"),
        many(&lab, "late", at(&late), "TCP"),
        lab.client("alone", at(&late), "TCP", "ISTIO_MUTUAL"),
    ];
    let [mut kept, mut cut, mut alone] = clients.each_ref().map(|client| dial(at(client)));
    for stream in [&mut kept, &mut cut, &mut alone] {
        say(stream, "one");
    }
    lab.pem("cart");
    renewed.reload().expect("read again");
    assert!(is_closed_soon(&mut cut), "a shared stream outlives the certificate of its server");
    assert!(is_closed_soon(&mut alone), "a connection outlives the certificate of its server");
    assert!(clients[1].metrics().contains("maille_refusals_total"), "nobody is told why");
    say(&mut kept, "two");
    // A new one meets the server as it is: expired, and renewed.
    assert!(is_closed_soon(&mut dial(at(&clients[1]))));
    say(&mut dial(at(&clients[0])), "three");
}

/// As the mesh may say of connections of peers that are not Maille, in the other direction.
#[test]
fn opaque_bytes_outlive_their_servers_certificate_where_the_mesh_says_so() {
    let mut lab = Lab::new();
    lab.ttl = Duration::from_secs(8);
    let facts = Server { backend: line_backend(), protocol: "TCP", policy: None, ..Default::default() };
    let server = lab.server(&facts);
    lab.ttl = Duration::from_secs(3600);
    let keeps = lab.client("keeps", at(&server), "TCP", "ISTIO_MUTUAL");
    let cuts = lab.client("cuts", at(&server), "TCP", "ISTIO_MUTUAL");
    let path = lab.path("client-keeps.yaml");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, text + "settings: {keepExpiredTcp: true}\n").expect("writable");
    keeps.reload().expect("good facts");
    let (mut kept, mut cut) = (dial(at(&keeps)), dial(at(&cuts)));
    say(&mut kept, "one");
    say(&mut cut, "one");
    assert!(is_closed_soon(&mut cut), "it has expired");
    // A certificate of its own makes the client judge its servers again.
    lab.pem("keeps");
    keeps.reload().expect("read again");
    assert!(is_closed_soon(&mut dial(at(&keeps))), "a new connection to a server that has expired");
    say(&mut kept, "two");
    // Nobody is kept whose root is trusted no more.
    let other = TestAuthority::new();
    let files = lab.pem("keeps");
    std::fs::write(&files.roots, other.roots_pem()).expect("writable");
    keeps.reload().expect("read again");
    assert!(is_closed_soon(&mut kept), "it outlives the trust in its server");
}

#[test]
fn a_server_that_is_trusted_no_more_gets_nothing_and_its_streams_are_cut() {
    let lab = Lab::new();
    let lines = Server { backend: line_backend(), protocol: "TCP", policy: None, ..Default::default() };
    let (lines, pages) = (
        lab.server(&lines),
        lab.server(&Server { backend: http_backend(), policy: None, ..Default::default() }),
    );
    let clients = [
        many(&lab, "one", at(&lines), "TCP"),
        lab.client("two", at(&lines), "TCP", "ISTIO_MUTUAL"),
        many(&lab, "three", at(&pages), "HTTP"),
        lab.client("four", at(&pages), "HTTP", "ISTIO_MUTUAL"),
    ];
    let [one, two, three, four] = &clients;
    let mut streams = [dial(at(one)), dial(at(two))];
    streams.iter_mut().for_each(|stream| say(stream, "one"));
    for client in [three, four] {
        ask_until(client, "HTTP/1.1 200");
    }
    let other = TestAuthority::new();
    for (account, client) in ["one", "two", "three", "four"].iter().zip(&clients) {
        let files = lab.pem(account);
        let strange = other.svid_for(&other.identity("shop", account), lab.ttl);
        let scratch = lab.path(&format!("other-{account}"));
        std::fs::create_dir(&scratch).expect("a directory");
        std::fs::copy(other.write_svid(&scratch, account, &strange).roots, files.roots).expect("replaced");
        client.reload().expect("read again");
    }
    assert!(streams.iter_mut().all(is_closed_soon), "streams outlive the trust in their server");
    for client in [three, four] {
        ask_until(client, "HTTP/1.1 503");
    }
}
