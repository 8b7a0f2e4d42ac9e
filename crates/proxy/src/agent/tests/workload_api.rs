//! The Workload API as applications see it, through the socket.

mod clients;
mod revoked;
mod secrets;

use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use hyper_util::rt::TokioIo;
use maille_pki::{Authority, CertificateDer, leaf_facts};
use maille_proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use maille_proto::spiffe::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    X509svidResponse,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};

use super::*;

impl Lab {
    fn socket(&self) -> PathBuf {
        self.file("socket")
    }

    fn with_workload_api(&self) -> ProxyOptions {
        ProxyOptions { workload_socket: Some(self.socket()), ..self.options() }
    }

    /// The own trust domain, and perhaps another.
    fn set_trust(&self, other: Option<&Authority>) {
        let bundle = |domain: &str, authority: &Authority, jwks: Vec<u8>| wire::TrustBundle {
            trust_domain: domain.into(),
            roots: authority.roots().iter().map(|root| root.to_vec().into()).collect(),
            jwks: jwks.into(),
            ..Default::default()
        };
        let own = bundle("cluster.local", &self.script.authority, self.script.jwt.set());
        self.script.set(type_urls::TRUST_BUNDLE, "cluster.local", &own);
        match other {
            Some(other) => {
                self.script.set(
                    type_urls::TRUST_BUNDLE,
                    "other.example",
                    &bundle("other.example", other, vec![]),
                );
            }
            None => self.script.remove(type_urls::TRUST_BUNDLE, "other.example"),
        }
    }
}

fn authority_of(domain: &str) -> Authority {
    let domain = TrustDomain::parse(domain).expect("valid");
    Authority::self_signed(&domain, SystemTime::now(), Duration::from_secs(86_400)).expect("authority")
}

async fn dial(socket: PathBuf) -> Channel {
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    let endpoint = Endpoint::from_static("http://workload");
    endpoint.connect_with_connector(tower::service_fn(connect)).await.expect("connected")
}

async fn client(lab: &Lab) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(dial(lab.socket()).await)
}

fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("ASCII"));
    request
}

/// The first certificate of several in DER.
fn leaf(chain: &[u8]) -> CertificateDer<'_> {
    // A SEQUENCE with a length of two bytes.
    let length = 4 + usize::from(u16::from_be_bytes([chain[2], chain[3]]));
    CertificateDer::from(&chain[..length])
}

fn serial(message: &X509svidResponse) -> String {
    leaf_facts(&leaf(&message.svids[0].x509_svid)).expect("a certificate").serial
}

#[tokio::test]
async fn a_call_without_the_header_is_refused() {
    let lab = Lab::new().await;
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut client = client(&lab).await;
    let refused = client.fetch_x509svid(X509svidRequest {}).await.expect_err("SF-4");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut wrong = Request::new(X509BundlesRequest {});
    wrong.metadata_mut().insert("workload.spiffe.io", "false".parse().expect("ASCII"));
    assert_eq!(client.fetch_x509_bundles(wrong).await.expect_err("SF-4").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn without_a_certificate_callers_are_told_to_come_back() {
    let mut lab = Lab::new().await;
    lab.control = None;
    let (_agent, _) = start(lab.with_workload_api());
    let mut client = client(&lab).await;
    let refused = client.fetch_x509svid(meant(X509svidRequest {})).await.expect_err("nothing yet");
    assert_eq!(refused.code(), Code::Unavailable);
    let refused = client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.expect_err("nothing yet");
    assert_eq!(refused.code(), Code::Unavailable);
    let asked = JwtsvidRequest { audience: vec!["orders".into()], spiffe_id: String::new() };
    assert_eq!(client.fetch_jwtsvid(meant(asked)).await.expect_err("nothing yet").code(), Code::Unavailable);
}

#[tokio::test]
async fn applications_get_the_same_identity_with_a_key_of_their_own_and_each_renewal_on_the_same_stream() {
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(3));
    let (agent, _) = start(lab.with_workload_api());
    let shared = shared(&agent).await;
    let own = shared.tls.current().svid().clone();
    assert_eq!(lab.script.issued.lock().len(), 1, "nothing is asked for before anybody wants it");

    let mut client = client(&lab).await;
    let mut stream =
        within(client.fetch_x509svid(meant(X509svidRequest {}))).await.expect("a stream").into_inner();
    let first = within(stream.message()).await.expect("no error").expect("at once");
    let svid = &first.svids[0];
    assert_eq!(svid.spiffe_id, identity("cart").uri());
    assert_eq!(svid.bundle, lab.script.authority.roots()[0].to_vec());
    assert_ne!(svid.x509_svid_key, own.key().to_der().secret_der(), "the proxy's key stays with the proxy");
    let key = maille_pki::KeyPair::from_der(
        &rustls::pki_types::PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone()).into(),
    );
    maille_pki::Svid::from_der(vec![leaf(&svid.x509_svid).into_owned()], key.expect("PKCS#8"))
        .expect("they fit");

    let second = within(stream.message()).await.expect("no error").expect("renewed");
    assert_ne!(serial(&second), serial(&first));
    let issued = lab.script.issued.lock().clone();
    assert!(issued.contains(&serial(&second)), "{issued:?}");

    // Once nobody listens any more, only the proxy's own is renewed.
    drop(stream);
    drop(client);
    eventually("the applications' is forgotten", || {
        let now = lab.script.issued.lock().len();
        let since = now - issued.len();
        since >= 4
    })
    .await;
    let current = || shared.tls.current().svid().serial().to_owned();
    let before = (lab.script.issued.lock().len(), current());
    eventually("the proxy's own is renewed", || current() != before.1).await;
    eventually("again", || lab.script.issued.lock().len() >= before.0 + 2).await;
    assert!(lab.script.issued.lock().contains(&current()));
}

#[tokio::test]
async fn bundles_are_told_at_once_and_at_each_change() {
    let lab = Lab::new().await;
    lab.set_trust(None);
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut client = client(&lab).await;
    let mut x509 =
        within(client.fetch_x509_bundles(meant(X509BundlesRequest {}))).await.expect("a stream").into_inner();
    let mut jwt = eventually_jwt_bundles(&mut client).await;
    let mut svids =
        within(client.fetch_x509svid(meant(X509svidRequest {}))).await.expect("a stream").into_inner();
    let first = within(x509.message()).await.expect("no error").expect("at once");
    assert_eq!(first.bundles.keys().collect::<Vec<_>>(), ["spiffe://cluster.local"]);
    let keys = within(jwt.message()).await.expect("no error").expect("at once");
    assert_eq!(keys.bundles["spiffe://cluster.local"], lab.script.jwt.set());
    assert!(within(svids.message()).await.expect("no error").expect("at once").federated_bundles.is_empty());

    let other = authority_of("other.example");
    lab.set_trust(Some(&other));
    let second = within(x509.message()).await.expect("no error").expect("changed");
    assert_eq!(second.bundles["spiffe://other.example"], other.roots()[0].to_vec());
    let second = within(svids.message()).await.expect("no error").expect("changed");
    assert_eq!(second.federated_bundles["spiffe://other.example"], other.roots()[0].to_vec());

    lab.set_trust(None);
    let third = within(x509.message()).await.expect("no error").expect("changed");
    assert_eq!(third.bundles, first.bundles);
}

/// The keys come with the facts, a little after the certificate.
async fn eventually_jwt_bundles(
    client: &mut SpiffeWorkloadApiClient<Channel>,
) -> tonic::Streaming<maille_proto::spiffe::JwtBundlesResponse> {
    loop {
        match within(client.fetch_jwt_bundles(meant(JwtBundlesRequest {}))).await {
            Ok(stream) => return stream.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn tokens_are_minted_kept_per_audience_and_validated() {
    let lab = Lab::new().await;
    lab.set_trust(None);
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut client = client(&lab).await;
    drop(eventually_jwt_bundles(&mut client).await);
    let asked = |audience: &[&str], id: &str| {
        meant(JwtsvidRequest {
            audience: audience.iter().map(|one| (*one).to_owned()).collect(),
            spiffe_id: id.to_owned(),
        })
    };
    let first = within(client.fetch_jwtsvid(asked(&["b", "a"], ""))).await.expect("a token").into_inner();
    let own = identity("cart").uri();
    let again = within(client.fetch_jwtsvid(asked(&["a", "b", "a"], &own))).await.expect("kept").into_inner();
    assert_eq!(first, again);
    within(client.fetch_jwtsvid(asked(&["c"], ""))).await.expect("another");
    assert_eq!(*lab.script.jwt.minted.lock(), [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]]);

    let validate = |audience: &str, svid: &str| {
        meant(ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() })
    };
    let token = &first.svids[0].svid;
    let good = within(client.validate_jwtsvid(validate("a", token))).await.expect("good").into_inner();
    assert_eq!(good.spiffe_id, own);
    assert!(good.claims.expect("claims").fields.contains_key("exp"));
    for (audience, token) in [("c", token.as_str()), ("", token), ("a", ""), ("a", "a.b.c")] {
        let refused = within(client.validate_jwtsvid(validate(audience, token))).await.expect_err("bad");
        assert_eq!(refused.code(), Code::InvalidArgument, "{audience} {token}");
    }
    for (audience, id, code) in [
        (&[][..], "", Code::InvalidArgument),
        (&[""], "", Code::InvalidArgument),
        (&["a"], "spiffe://cluster.local/ns/shop/sa/other", Code::PermissionDenied),
        (&["a"], "nonsense", Code::PermissionDenied),
    ] {
        let refused = within(client.fetch_jwtsvid(asked(audience, id))).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{audience:?} {id}");
    }

    // Half of a life later there is another.
    *lab.script.jwt.life.lock() = Duration::from_secs(2);
    let short = within(client.fetch_jwtsvid(asked(&["d"], ""))).await.expect("a token").into_inner();
    let count = lab.script.jwt.minted.lock().len();
    within(async {
        while lab.script.jwt.minted.lock().len() == count {
            client.fetch_jwtsvid(asked(&["d"], "")).await.expect("a token");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(short.svids[0].spiffe_id, own);
}

#[tokio::test]
async fn the_socket_is_for_every_user_replaces_an_old_one_and_streams_are_bounded() {
    let lab = Lab::new().await;
    std::fs::write(lab.socket(), "left by another life").expect("written");
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mode = std::fs::metadata(lab.socket()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    assert!(
        std::fs::read_dir(lab.files.path())
            .expect("listed")
            .flatten()
            .all(|entry| { !entry.file_name().to_string_lossy().starts_with(".socket") })
    );

    // Each connection carries some; all of them together carry 256.
    let mut held = Vec::new();
    let refused = 'full: {
        for _ in 0..9 {
            let mut client = client(&lab).await;
            for _ in 0..32 {
                match within(client.fetch_x509_bundles(meant(X509BundlesRequest {}))).await {
                    Ok(stream) => held.push(stream.into_inner()),
                    Err(status) => break 'full status,
                }
            }
        }
        panic!("{} streams, and no end", held.len());
    };
    assert_eq!((refused.code(), held.len()), (Code::ResourceExhausted, 256));
    held.clear();
    let mut client = client(&lab).await;
    within(async {
        while client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
