//! The agent against a scripted control plane, over real sockets and TLS.

mod control;
mod credentials;
mod dns;
mod minting;
mod process;
mod renewal;
mod revocation;
mod servers;
mod workload_api;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maille_core::{Identity, TrustDomain};
use maille_proto::facts as wire;
use maille_telemetry::{AccessLog, OwnWorkload, Registry};
use maille_xds::type_urls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::control::{Control, SERVER_NAME, Script};
use super::clock::{Clocks, SystemClocks};
use super::options::{ListenAddresses, ProxyOptions};
use super::start::Agent;
use super::status::Need;
use crate::snapshot::{Destination, ResolveError, Shared};

const OWN: &str = "shop/cart-1";
const TOKEN: &str = "token-of-cart";

fn identity(account: &str) -> Identity {
    Identity::parse_principal(&format!("cluster.local/ns/shop/sa/{account}")).expect("valid")
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A Pod's files, and the control plane it knows.
struct Lab {
    script: Arc<Script>,
    control: Option<Control>,
    address: SocketAddr,
    files: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let script = Script::new();
        script.tokens.lock().insert(TOKEN.to_owned(), identity("cart"));
        let files = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let lab = Self { control: None, address: loopback(), files, script };
        lab.script.write_roots(&lab.file("root-cert.pem"));
        std::fs::write(lab.file("token"), TOKEN).expect("token written");
        lab.set_facts();
        let mut lab = lab;
        lab.start_control().await;
        lab
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn set_facts(&self) {
        let settings = wire::MeshSettings {
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            outbound_policy: wire::mesh_settings::OutboundPolicy::AllowAny.into(),
            path_normalization: wire::mesh_settings::PathNormalization::Base.into(),
            cluster_domain: "cluster.local".into(),
            ..Default::default()
        };
        self.script.set(type_urls::MESH_SETTINGS, "mesh", &settings);
        self.script.set(type_urls::INBOUND, OWN, &inbound(wire::MtlsMode::Strict));
    }

    /// The control plane comes back at the address it had.
    async fn start_control(&mut self) {
        let control = Control::start(self.script.clone(), self.address).await;
        self.address = control.address;
        self.control = Some(control);
    }

    fn options(&self) -> ProxyOptions {
        let own = [("POD_NAME", "cart-1"), ("POD_NAMESPACE", "shop"), ("INSTANCE_IP", "127.0.0.1")];
        let options = ProxyOptions::from_env(|name| {
            let set = own.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            set.or_else(|| (name == "SERVICE_ACCOUNT").then(|| "cart".to_owned()))
        });
        ProxyOptions {
            discovery_address: self.address.to_string(),
            ca_address: self.address.to_string(),
            server_name: Some(SERVER_NAME.to_owned()),
            root_file: self.file("root-cert.pem"),
            token_file: self.file("token"),
            state_dir: self.files.path().to_owned(),
            resolve_timeout: Duration::from_millis(300),
            listen: ListenAddresses {
                inbound: loopback(),
                outbound: loopback(),
                status: loopback(),
                readiness: loopback(),
                metrics: loopback(),
                admin: loopback(),
            },
            ..options.expect("enough is set")
        }
    }

    fn agent(&self) -> (Agent, Arc<Registry>) {
        start(self.options())
    }
}

fn start(options: ProxyOptions) -> (Agent, Arc<Registry>) {
    start_by(options, Arc::new(SystemClocks))
}

fn start_by(options: ProxyOptions, clocks: Arc<dyn Clocks>) -> (Agent, Arc<Registry>) {
    let own = OwnWorkload { cluster: "Kubernetes".into(), version: "test".into() };
    let telemetry = Registry::new(own, AccessLog::disabled());
    (Agent::start(Arc::new(options), telemetry.clone(), clocks).expect("agent"), telemetry)
}

fn inbound(mode: wire::MtlsMode) -> wire::Inbound {
    let workload = wire::Workload {
        uid: OWN.into(),
        namespace: "shop".into(),
        identity: Some(wire::Identity {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        }),
        ..Default::default()
    };
    wire::Inbound { workload: Some(workload), mode: mode.into(), ..Default::default() }
}

fn unknown() -> wire::Destination {
    wire::Destination { kind: Some(wire::destination::Kind::Unknown(wire::Unknown {})) }
}

fn service(host: &str) -> wire::Destination {
    let service = wire::Service { hostname: host.into(), name: "orders".into(), ..Default::default() };
    wire::Destination { kind: Some(wire::destination::Kind::Service(service)) }
}

/// Waits for a condition, with a bound that only a fault reaches.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn shared(agent: &Agent) -> Shared {
    let mut shared = agent.shared.clone();
    let waiting = tokio::time::timeout(Duration::from_secs(20), shared.wait_for(Option::is_some));
    waiting.await.expect("in time").expect("agent lives").clone().expect("there")
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, "GET", path, "localhost").await
}

async fn request(address: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let code = answer.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap_or(0);
    (code, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

#[tokio::test]
async fn ready_says_what_is_missing_and_stays_when_the_control_plane_goes() {
    let mut lab = Lab::new().await;
    lab.control = None;
    let (agent, telemetry) = lab.agent();
    let address = agent.servers.listening.readiness;
    let (code, body) = get(address, "/healthz/ready").await;
    assert_eq!(code, 503);
    assert!(body.contains("a workload certificate"), "{body}");

    lab.start_control().await;
    let shared = shared(&agent).await;
    assert_eq!(shared.tls.current().svid().identity(), &identity("cart"));
    let (code, body) = get(address, "/healthz/ready").await;
    assert_eq!((code, body.as_str()), (503, "not ready: waiting for listeners\n"));
    agent.readiness.met(Need::Listeners);
    assert_eq!(get(address, "/healthz/ready").await.0, 200);

    lab.control = None;
    eventually("the loss is noticed", || telemetry.render_prometheus().contains("maille_xds_connected 0"))
        .await;
    assert_eq!(get(address, "/healthz/ready").await.0, 200);
    agent.readiness.drain();
    assert_eq!(get(agent.servers.listening.status, "/healthz/ready").await.0, 503);
}

#[tokio::test]
async fn certificates_are_renewed_while_connections_stay() {
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(3));
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    let first = shared.tls.current();

    let (near, far) = tokio::io::duplex(4096);
    let server = tokio_rustls::TlsAcceptor::from(first.server_config(maille_tls::ServerAlpn::choose(&[])));
    let names: Arc<[String]> = Arc::from([identity("cart").uri()]);
    let config = first.client_config(maille_tls::ClientAlpn::Tcp, &names).expect("client config");
    let client = tokio_rustls::TlsConnector::from(config);
    let name = maille_tls::outbound_sni(80, "", "cart.shop.svc.cluster.local").expect("sni");
    let (server, client) = tokio::join!(server.accept(near), client.connect(name, far));
    let (mut server, mut client) = (server.expect("accepted"), client.expect("connected"));

    within(eventually("two renewals", || lab.script.issued.lock().len() >= 3)).await;
    let serials = lab.script.issued.lock().clone();
    eventually("the new one is in use", || {
        serials.last().is_some_and(|s| shared.tls.current().svid().serial() == s)
            || lab.script.issued.lock().len() > serials.len()
    })
    .await;
    assert_ne!(shared.tls.current().svid().serial(), first.svid().serial());
    client.write_all(b"still").await.expect("written");
    client.flush().await.expect("flushed");
    let mut read = [0; 5];
    within(server.read_exact(&mut read)).await.expect("read");
    assert_eq!(&read, b"still");
}

#[tokio::test]
async fn a_restarted_proxy_serves_while_the_control_plane_is_away() {
    let mut lab = Lab::new().await;
    lab.script.set(type_urls::DESTINATION, "orders", &service("orders.shop.svc.cluster.local"));
    let serial = {
        let (agent, _) = lab.agent();
        let shared = shared(&agent).await;
        within(shared.destinations.resolve("orders")).await.expect("known");
        let facts = lab.file("proxy/facts.pb");
        eventually("the destination is kept", || {
            std::fs::read(&facts).is_ok_and(|bytes| bytes.windows(6).any(|w| w == b"orders"))
        })
        .await;
        shared.tls.current().svid().serial().to_owned()
    };
    lab.control = None;

    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    assert_eq!(shared.tls.current().svid().serial(), serial);
    assert!(shared.destinations.lookup("orders").is_some());
    // What is not known is refused, not taken for unknown.
    let refused = within(shared.destinations.resolve("10.9.9.9")).await;
    assert!(matches!(refused, Err(ResolveError::Unreachable { .. })));

    // And everything converges once it is back.
    lab.script.set(type_urls::INBOUND, OWN, &inbound(wire::MtlsMode::Permissive));
    lab.script.set(type_urls::DESTINATION, "orders", &unknown());
    lab.start_control().await;
    eventually("the new mode is in force", || {
        shared.snapshot.load().inbound.mode == maille_core::MtlsMode::Permissive
    })
    .await;
    eventually("the destination follows", || {
        shared.destinations.lookup("orders").is_some_and(|cell| matches!(**cell.load(), Destination::Unknown))
    })
    .await;
}

#[tokio::test]
async fn a_bad_resource_is_rejected_by_name_and_the_last_good_one_stays() {
    let lab = Lab::new().await;
    let (agent, telemetry) = lab.agent();
    let shared = shared(&agent).await;
    let before = shared.snapshot.load().generation;

    let mut of_other = inbound(wire::MtlsMode::Disable);
    of_other.workload = Some(wire::Workload { uid: "shop/orders-1".into(), ..Default::default() });
    lab.script.set(type_urls::INBOUND, OWN, &of_other);
    lab.script.set_bytes(type_urls::MESH_SETTINGS, "mesh", vec![0xff, 0xff]);
    lab.script.set_bytes(type_urls::TRUST_BUNDLE, "other.example", vec![]);
    eventually("all three are rejected", || lab.script.nacks.lock().len() >= 3).await;
    let nacks = lab.script.nacks.lock().join("\n");
    for part in ["shop/orders-1", "mesh: not readable", "other.example"] {
        assert!(nacks.contains(part), "{part} in {nacks}");
    }
    let snapshot = shared.snapshot.load();
    assert_eq!((snapshot.inbound.mode, snapshot.generation), (maille_core::MtlsMode::Strict, before));
    let page = telemetry.render_prometheus();
    assert!(page.contains("maille_xds_rejections_total 3"), "{page}");

    // A good one repairs it.
    lab.script.set(type_urls::INBOUND, OWN, &inbound(wire::MtlsMode::Permissive));
    eventually("the good one is in force", || {
        shared.snapshot.load().inbound.mode == maille_core::MtlsMode::Permissive
    })
    .await;
}

#[tokio::test]
async fn a_removed_policy_is_gone_and_a_removed_own_fact_is_not() {
    let lab = Lab::new().await;
    let policy = wire::Authorization {
        namespace: "shop".into(),
        name: "nothing".into(),
        action: wire::authorization::Action::Allow.into(),
        ..Default::default()
    };
    lab.script.set(type_urls::AUTHORIZATION, "shop/nothing", &policy);
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    let policies =
        || agent.facts.lock().received().filter(|(kind, ..)| *kind == type_urls::AUTHORIZATION).count();
    assert_eq!(policies(), 1, "the first snapshot has the whole set");
    let generation = shared.snapshot.load().generation;
    lab.script.remove(type_urls::AUTHORIZATION, "shop/nothing");
    eventually("the policy is gone", || policies() == 0).await;
    eventually("workers hear of it", || shared.snapshot.load().generation > generation).await;
    lab.script.remove(type_urls::INBOUND, OWN);
    eventually("that is rejected", || lab.script.nacks.lock().iter().any(|n| n.contains(OWN))).await;
    assert_eq!(shared.snapshot.load().inbound.mode, maille_core::MtlsMode::Strict);
}

#[tokio::test]
async fn rules_about_tokens_are_in_force_shown_without_secrets_and_outlive_a_restart() {
    let mut lab = Lab::new().await;
    let rule = wire::JwtRule {
        issuer: "https://idp.example".into(),
        jwks: r#"{"keys":[{"kty":"oct","kid":"one","k":"c2hhcmVkLXNlY3JldA"}]}"#.into(),
        ..Default::default()
    };
    let policy =
        wire::RequestAuthentication { namespace: "shop".into(), name: "idp".into(), jwt_rules: vec![rule] };
    lab.script.set(type_urls::REQUEST_AUTHENTICATION, "shop/idp", &policy);
    {
        let (agent, _) = lab.agent();
        let shared = shared(&agent).await;
        assert!(!shared.snapshot.load().authentication.is_empty(), "the first snapshot has the whole set");
        let (_, dump) = get(agent.servers.listening.admin, "/config_dump").await;
        assert!(dump.contains("https://idp.example") && !dump.contains("c2hhcmVk"), "{dump}");
        let dump: wire::ConfigDump = serde_json::from_str(&dump).expect("protobuf's JSON");
        let shown = dump.facts.expect("facts").request_authentications;
        assert!(shown.len() == 1 && shown[0].jwt_rules[0].jwks.contains("one"), "{shown:?}");

        // What changes elsewhere leaves the rules as they are, so that nothing is verified again.
        let before = shared.snapshot.load();
        lab.script.set(type_urls::INBOUND, OWN, &inbound(wire::MtlsMode::Permissive));
        eventually("the mode is in force", || shared.snapshot.load().generation > before.generation).await;
        assert!(Arc::ptr_eq(&before.authentication, &shared.snapshot.load().authentication));
        let facts = lab.file("proxy/facts.pb");
        eventually("the rules are kept", || {
            std::fs::read(&facts).is_ok_and(|bytes| bytes.windows(8).any(|w| w == b"shop/idp"))
        })
        .await;
    }
    lab.control = None;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    assert!(!shared.snapshot.load().authentication.is_empty(), "a restart forgot the rules");
    let (_, dump) = get(agent.servers.listening.admin, "/config_dump").await;
    assert!(dump.contains("https://idp.example"), "{dump}");
    lab.script.remove(type_urls::REQUEST_AUTHENTICATION, "shop/idp");
    lab.start_control().await;
    eventually("the rules are gone", || shared.snapshot.load().authentication.is_empty()).await;
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_used_and_a_rotated_token_is_read_anew() {
    let lab = Lab::new().await;
    lab.script.tokens.lock().insert(TOKEN.to_owned(), identity("orders"));
    let (agent, telemetry) = lab.agent();
    eventually("the certificate is refused", || {
        !lab.script.issued.lock().is_empty()
            && !telemetry.render_prometheus().contains("maille_certificate_failures_total 0")
    })
    .await;
    assert!(agent.shared.borrow().is_none());
    lab.script.tokens.lock().insert("token-rotated".to_owned(), identity("cart"));
    std::fs::write(lab.file("token"), "token-rotated\n").expect("token written");
    assert_eq!(shared(&agent).await.tls.current().svid().identity(), &identity("cart"));
}

/// SN-12.
#[tokio::test]
async fn a_new_trust_domain_is_followed_soon_and_without_a_gap() {
    let lab = Lab::new().await;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    assert_eq!(shared.tls.current().svid().identity(), &identity("cart"));
    let domain = TrustDomain::parse("new.td").expect("valid");
    let renamed = Identity::new(domain.clone(), "shop", "cart").expect("valid");
    lab.script.tokens.lock().insert(TOKEN.to_owned(), renamed.clone());
    let mut inbound = inbound(wire::MtlsMode::Permissive);
    if let Some(own) = inbound.workload.as_mut().and_then(|workload| workload.identity.as_mut()) {
        own.trust_domain = domain.to_string();
    }
    let roots = lab.script.authority.roots().iter().map(|root| root.to_vec().into()).collect();
    let bundle = wire::TrustBundle { trust_domain: domain.to_string(), roots, ..Default::default() };
    lab.script.set(type_urls::TRUST_BUNDLE, domain.as_str(), &bundle);
    lab.script.set(type_urls::INBOUND, OWN, &inbound);
    let settings = wire::MeshSettings {
        trust_domain: domain.to_string(),
        trust_domain_aliases: vec!["cluster.local".to_owned()],
        root_namespace: "istio-system".to_owned(),
        outbound_policy: wire::mesh_settings::OutboundPolicy::AllowAny.into(),
        path_normalization: wire::mesh_settings::PathNormalization::Base.into(),
        cluster_domain: "cluster.local".to_owned(),
        ..Default::default()
    };
    lab.script.set(type_urls::MESH_SETTINGS, "mesh", &settings);
    within(eventually("the new identity", || *shared.tls.current().svid().identity() == renamed)).await;
    let accepted = shared.tls.current().trust().accepted_domains.clone();
    assert_eq!(accepted, [domain, identity("cart").trust_domain().clone()].into_iter().collect());
    assert_eq!(shared.snapshot.load().inbound.mode, maille_core::MtlsMode::Permissive);
    assert!(lab.script.nacks.lock().is_empty(), "{:?}", lab.script.nacks.lock());
}

#[tokio::test]
async fn a_control_plane_of_another_root_is_not_believed() {
    let lab = Lab::new().await;
    let other = Script::new();
    other.write_roots(&lab.file("root-cert.pem"));
    let (agent, telemetry) = lab.agent();
    eventually("the attempt fails", || {
        !telemetry.render_prometheus().contains("maille_certificate_failures_total 0")
    })
    .await;
    assert!(agent.shared.borrow().is_none() && lab.script.issued.lock().is_empty());
}
