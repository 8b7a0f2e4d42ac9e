//! The example of `docs/static.md`, run as it is written there.

use std::process::Command;

use maille_proxy::StaticProxy;

use crate::lab::{exchange_half_closed, http_backend, run, tcp_backend};

const PAGE: &str = include_str!("../../../../docs/static.md");

/// A fenced block by the words behind its fence.
fn block(words: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("```{words}\n")).unwrap_or_else(|| panic!("no block '{words}'"));
    rest.split_once("```").expect("the block ends").0
}

#[test]
fn the_example_of_the_page_does_what_the_page_says() {
    let folder = tempfile::tempdir().expect("a directory");
    let script = Command::new("sh").args(["-ec", block("sh")]).current_dir(folder.path()).output();
    let script = script.expect("sh and openssl");
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    let (http, tcp) = (http_backend(), tcp_backend(b"hello\n"));
    // Other tests run beside this one: ports that the kernel chooses, in the places of those of the page.
    let free: Vec<u16> = {
        let held: Vec<_> =
            (0..4).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        held.iter().map(|held| held.local_addr().expect("bound").port()).collect()
    };
    let ports = [(18001, free[0]), (18002, free[1]), (18006, free[2]), (18007, free[3])];
    let ports = ports.into_iter().chain([(18080, http.port()), (18081, tcp.port())]);
    let start = |name: &str| {
        let text = ports.clone().fold(block(&format!("yaml {name}")).to_owned(), |text, (page, here)| {
            assert!(PAGE.contains(&page.to_string()));
            text.replace(&page.to_string(), &here.to_string())
        });
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        StaticProxy::start(&path).unwrap_or_else(|e| panic!("{name}: {e:#}"))
    };
    let (_server, _client) = (start("server.yaml"), start("client.yaml"));
    let caller = format!("http://127.0.0.1:{}", free[0]);
    let host = "host: backend.bench.svc.cluster.local";
    let curl =
        |url: &str| run("curl", &["-sSk", "--max-time", "20", "-w", " %{http_code}", "-H", host, url], "");
    let answer = curl(&format!("{caller}/api/x"));
    assert!(answer.ends_with(" 200") && answer.contains("GET /api/x HTTP/1.1"), "{answer}");
    assert_eq!(curl(&format!("{caller}/other")), "RBAC: access denied 403");
    let answer = curl(&format!("https://127.0.0.1:{}/api/x", free[2]));
    assert!(answer.starts_with(" 000"), "{answer}");
    let answer = exchange_half_closed(([127, 0, 0, 1], free[1]).into(), b"and back");
    assert_eq!(answer, "hello\nand back");
}
