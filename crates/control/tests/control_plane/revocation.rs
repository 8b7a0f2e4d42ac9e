//! Who is revoked is refused on the discovery port, and gets another certificate by its token.

use std::process::{Command, Stdio};

use maille_config::mesh::{MeshConfig, MeshTls};
use maille_control::revocation::{Listed, Listing, MAX_ENTRIES};
use maille_control::world::Event;
use maille_core::Identity;
use maille_pki::{create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::facts as wire;
use maille_tls::Revoked;
use maille_xds::type_urls::REVOCATIONS;
use tonic::Code;

use crate::lab::{CART, Lab, WEB, eventually, identity};

fn listing(json: String) -> Event {
    Event::Revocations(Listed::of(&Listing::Text(json)))
}

fn request() -> IstioCertificateRequest {
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "web")).expect("csr");
    IstioCertificateRequest { csr, ..Default::default() }
}

#[tokio::test]
async fn a_proxy_hears_that_its_certificate_is_revoked_before_its_stream_ends_and_its_token_gets_another() {
    let lab = Lab::new().await;
    let svid = lab.svid(WEB, "shop:web").await;
    let proxy = lab.proxy(WEB, svid.clone()).await;
    let other = lab.proxy(CART, lab.svid(CART, "shop:cart").await).await;
    for client in [&proxy.client, &other.client] {
        client.subscribe_wildcard(REVOCATIONS);
    }
    lab.apply(listing(format!(r#"[{{"serial":"{}","reason":"leaked"}}]"#, svid.serial())));
    for one in [&proxy, &other] {
        let told = eventually("the list", || one.seen.get::<wire::Revocations>(REVOCATIONS, "mesh")).await;
        assert_eq!(told.serials, [svid.serial().trim_start_matches('0')]);
        assert!(!told.version.is_empty());
    }
    let refused = |error: &String| error.contains("certificate revoked") && error.contains(svid.serial());
    eventually("the stream's end", || {
        proxy.seen.errors.lock().expect("lock").iter().any(refused).then_some(())
    })
    .await;
    let errors = other.seen.errors.lock().expect("lock").clone();
    assert!(!errors.iter().any(|error| error.contains("revoked")), "{errors:?}");
    // The token gets another, which opens streams again.
    let fresh = lab.svid(WEB, "shop:web").await;
    assert_ne!(fresh.serial(), svid.serial());
    let again = lab.proxy(WEB, fresh).await;
    again.client.subscribe_wildcard(REVOCATIONS);
    eventually("the list again", || again.seen.get::<wire::Revocations>(REVOCATIONS, "mesh")).await;
    // Nobody is revoked: the fact is gone.
    lab.apply(Event::Revocations(Listed::default()));
    eventually("its removal", || {
        again.seen.removed.lock().expect("lock").iter().any(|name| name == "mesh").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_revoked_identity_is_refused_whatever_it_shows() {
    let lab = Lab::new().await;
    let svid = lab.svid(WEB, "shop:web").await;
    lab.apply(listing(r#"[{"identity":"spiffe://cluster.local/ns/shop/sa/web"}]"#.to_owned()));
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("nothing is issued to it");
    assert!(matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied), "{status:?}");
    let proxy = lab.proxy(WEB, svid).await;
    proxy.client.subscribe_wildcard(REVOCATIONS);
    eventually("the refusal", || (!proxy.seen.errors.lock().expect("lock").is_empty()).then_some(())).await;
    assert!(proxy.seen.get::<wire::Revocations>(REVOCATIONS, "mesh").is_none(), "it is told nothing");
    lab.sign(CART, Some("shop:cart"), request()).await.expect("others are served");
}

#[tokio::test]
async fn the_longest_list_reaches_proxies_however_many_aliases_there_are() {
    let lab = Lab::new().await;
    let aliases: Vec<String> = (0..16).map(|n| format!("{}.{n}.example", "a".repeat(63))).collect();
    let aliases = format!("trustDomainAliases: [{}]", aliases.join(", "));
    lab.apply(Event::MeshConfig(maille_config::mesh::check(&aliases).expect("valid")));
    let (namespace, account) = ("n".repeat(63), "s".repeat(240));
    let entries = (0..MAX_ENTRIES).map(|n| {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}{n}");
        format!(r#"{{"identity":"{identity}"}},{{"serial":"{}{n:x}"}}"#, "f".repeat(30))
    });
    let entries: Vec<String> = entries.collect();
    // As long as it may get: half of it from a list, half from the one before, which was broken.
    let (first, second) = entries.split_at(MAX_ENTRIES / 2);
    let listed = Listed::of(&Listing::Text(format!("[{}]", first.join(","))));
    let listed = listed.next(&Listing::Text(format!("[7,{}]", second.join(","))));
    // One place has gone to what cannot be read.
    let lengths = (MAX_ENTRIES, MAX_ENTRIES - 1);
    assert_eq!((listed.identities().len(), listed.serials().len()), lengths);
    lab.apply(Event::Revocations(listed));
    // Before anybody is told: such a list must not keep the port from serving, either.
    let proxy = lab.proxy(WEB, lab.svid(WEB, "shop:web").await).await;
    proxy.client.subscribe_wildcard(REVOCATIONS);
    let told = eventually("the list", || proxy.seen.get::<wire::Revocations>(REVOCATIONS, "mesh")).await;
    assert_eq!((told.identities.len(), told.serials.len()), lengths);
    assert_eq!(told.trust_domains.len(), 17, "each is revoked by all of them");
    let identities = told.identities.iter().map(|one| (Identity::parse_uri(&one.id).expect("valid"), None));
    Revoked::new(told.version, told.serials, identities, Vec::new()).expect("proxies can take it");
}

/// Whether openssl, which here knows no post-quantum key exchange, gets as far as the server's certificate.
fn reaches(lab: &Lab, arguments: &[&str]) -> bool {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &lab.address.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("openssl");
    String::from_utf8_lossy(&output.stdout).contains("BEGIN CERTIFICATE")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_negotiates_what_mesh_mtls_says() {
    let lab = Lab::new().await;
    assert!(reaches(&lab, &["-groups", "X25519"]) && reaches(&lab, &["-tls1_2"]));
    let demand = |key_exchanges: &[&str], tls13_only| {
        let key_exchanges = key_exchanges.iter().map(|&name| name.to_owned()).collect();
        let mesh_tls = MeshTls { key_exchanges, tls13_only };
        lab.apply(Event::MeshConfig(MeshConfig { mesh_tls, ..MeshConfig::default() }));
    };
    let until = async |what: &str, arguments: &[&str], reached: bool| {
        for _ in 0..200 {
            if reaches(&lab, arguments) == reached {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("{what}");
    };
    demand(&[], true);
    until("TLS 1.2 is still taken", &["-tls1_2"], false).await;
    assert!(reaches(&lab, &["-groups", "X25519"]));
    demand(&["X25519MLKEM768"], false);
    until("a classic key exchange is still taken", &["-groups", "X25519"], false).await;
    lab.sign(WEB, Some("shop:web"), request()).await.expect("proxies have the one that is demanded");
    demand(&["P-256"], false);
    until("P-256 is refused", &["-groups", "P-256"], true).await;
    assert!(!reaches(&lab, &["-groups", "X25519"]));
}
