//! What mutual TLS of the mesh negotiates: post-quantum first, and nothing else where that is demanded.

mod common;

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Ends, handshake, names};
use maille_testkit::TestAuthority;
use maille_tls::{ClientAlpn, HandshakeError, KeyExchange, Negotiated, Parameters, ServerAlpn, TlsContext};
use rustls::{CipherSuite, ServerConnection};

fn connect(client: &TlsContext, server: &TlsContext) -> Ends {
    let config = client.current().client_config(ClientAlpn::Http1, &names([])).expect("config");
    handshake(config, server.current().server_config(ServerAlpn::Http))
}

fn with(authority: &TestAuthority, account: &str, parameters: Parameters) -> Arc<TlsContext> {
    let context = authority.context("shop", account);
    context.replace_parameters(parameters).expect("parameters");
    context
}

fn of(key_exchanges: &[KeyExchange]) -> Parameters {
    Parameters { key_exchanges: key_exchanges.to_vec(), tls13_only: false }
}

fn agreed(ends: Ends) -> Negotiated {
    let (client, server) = ends.established();
    let both = (Negotiated::of(&client), Negotiated::of(&server));
    assert_eq!(both.0, both.1);
    both.0
}

#[test]
fn two_proxies_agree_upon_the_hybrid_key_exchange_unless_told_otherwise() {
    use KeyExchange::{P256, P384, X25519, X25519MlKem768};
    let authority = TestAuthority::new();
    let own = Parameters::default();
    for (client, server, expected) in [
        (own.clone(), own.clone(), "X25519MLKEM768"),
        (own.clone(), Parameters::post_quantum_only(), "X25519MLKEM768"),
        (Parameters::post_quantum_only(), own.clone(), "X25519MLKEM768"),
        (own.clone(), of(&[X25519]), "X25519"),
        (of(&[P256, X25519]), own.clone(), "P-256"),
        (of(&[P384]), own.clone(), "P-384"),
        (of(&[X25519, X25519MlKem768]), of(&[X25519MlKem768]), "X25519MLKEM768"),
    ] {
        let what = format!("{client:?} {server:?}");
        let ends = connect(&with(&authority, "web", client), &with(&authority, "cart", server));
        let found = agreed(ends);
        assert_eq!((found.key_exchange, found.version), (expected, "TLSv1.3"), "{what}");
        assert_eq!(found.is_post_quantum(), expected == "X25519MLKEM768");
    }
}

/// As Envoy's do where AES is in hardware.
#[test]
fn two_proxies_agree_upon_the_fast_cipher_and_upon_the_long_one_where_keys_have_to_be_post_quantum() {
    let authority = TestAuthority::new();
    for (parameters, expected) in [
        (Parameters::default(), CipherSuite::TLS13_AES_128_GCM_SHA256),
        (of(&[KeyExchange::P256]), CipherSuite::TLS13_AES_128_GCM_SHA256),
        (Parameters::post_quantum_only(), CipherSuite::TLS13_AES_256_GCM_SHA384),
    ] {
        let (web, cart) =
            (with(&authority, "web", parameters.clone()), with(&authority, "cart", parameters.clone()));
        let (client, _) = connect(&web, &cart).established();
        let suite = client.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(expected), "{parameters:?}");
    }
}

#[test]
fn who_lacks_the_demanded_key_exchange_is_refused_by_a_reason_that_names_it() {
    let authority = TestAuthority::new();
    let classic = of(&[KeyExchange::X25519, KeyExchange::P256]);
    let ends = connect(
        &with(&authority, "web", classic.clone()),
        &with(&authority, "cart", Parameters::post_quantum_only()),
    );
    let server = ends.server_error.expect("refused");
    assert!(matches!(server, HandshakeError::Incompatible(_)), "{server}");
    assert!(server.to_string().contains("X25519MLKEM768"), "{server}");
    let client = ends.client_error.expect("told");
    assert!(client.to_string().contains("X25519MLKEM768"), "{client}");
    // The other way round.
    let ends = connect(
        &with(&authority, "web", Parameters::post_quantum_only()),
        &with(&authority, "cart", classic),
    );
    assert!(ends.server_error.is_some() && ends.client_error.is_some());
}

#[test]
fn parameters_are_shown_as_istio_names_them() {
    let own = Parameters::default();
    assert_eq!(own.offered(), ["X25519MLKEM768", "X25519", "P-256", "P-384"]);
    assert_eq!(own.oldest_version(), "TLSv1.2");
    let only = Parameters::post_quantum_only();
    let agreed = |key_exchange| Negotiated { key_exchange, version: "TLSv1.3" };
    let (classic, hybrid) = (agreed("X25519"), agreed("X25519MLKEM768"));
    assert!(own.allows(&classic) && only.allows(&hybrid) && !only.allows(&classic));
    assert_eq!((only.offered(), only.oldest_version()), (vec!["X25519MLKEM768"], "TLSv1.3"));
    for name in own.offered() {
        assert_eq!(KeyExchange::named(name).map(KeyExchange::name), Some(name));
    }
    assert_eq!(KeyExchange::named("P-521"), None);
    // TLS 1.2 has no hybrid key exchange, whatever else is said.
    assert_eq!(of(&[KeyExchange::X25519MlKem768]).oldest_version(), "TLSv1.3");
}

/// openssl's client at a real socket; this one knows no hybrid key exchange, and all versions.
fn openssl(
    context: &TlsContext,
    authority: &TestAuthority,
    arguments: &[&str],
) -> Result<Negotiated, HandshakeError> {
    let dir = tempfile::tempdir().expect("a directory");
    let files = authority.write_svid(dir.path(), "web", &authority.svid("shop", "web"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-cert"])
        .arg(&files.chain)
        .arg("-key")
        .arg(&files.key)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl");
    let (mut socket, _) = listener.accept().expect("openssl comes");
    let mut server =
        ServerConnection::new(context.current().server_config(ServerAlpn::None)).expect("server");
    let outcome = loop {
        match server.complete_io(&mut socket) {
            Ok(_) if !server.is_handshaking() => break Ok(Negotiated::of(&server)),
            Ok(_) => {}
            Err(error) => break Err(HandshakeError::from_io(&error)),
        }
    };
    let _ = socket.flush();
    drop(socket);
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

#[test]
fn other_peers_get_what_they_have_unless_more_is_demanded() {
    let authority = TestAuthority::new();
    let cart = authority.context("shop", "cart");
    let agreed = |arguments: &[&str]| openssl(&cart, &authority, arguments).map_err(|e| e.to_string());
    let is = |key_exchange, version| Ok(Negotiated { key_exchange, version });
    assert_eq!(agreed(&["-groups", "X25519:P-256"]), is("X25519", "TLSv1.3"));
    assert_eq!(agreed(&["-groups", "P-256"]), is("P-256", "TLSv1.3"));
    assert_eq!(agreed(&["-tls1_2", "-groups", "P-384:P-256"]), is("P-384", "TLSv1.2"));
    // meshMTLS.minProtocolVersion TLSV1_3.
    cart.replace_parameters(Parameters { tls13_only: true, ..Parameters::default() }).expect("in force");
    assert_eq!(agreed(&["-groups", "X25519"]), is("X25519", "TLSv1.3"));
    let refused = agreed(&["-tls1_2"]).expect_err("too old");
    assert!(refused.contains("TLS 1.3") && refused.contains("minProtocolVersion"), "{refused}");
    cart.replace_parameters(Parameters::post_quantum_only()).expect("in force");
    let refused = agreed(&["-groups", "X25519:P-256"]).expect_err("no hybrid");
    assert!(refused.contains("X25519MLKEM768") && refused.contains("key exchange"), "{refused}");
    assert!(agreed(&["-tls1_2"]).is_err());
}
