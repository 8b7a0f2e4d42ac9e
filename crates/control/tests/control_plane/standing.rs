//! Connections that are open when what they were opened with is believed no more.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use maille_control::revocation::read_lists;
use maille_control::world::Event;
use maille_core::TrustDomain;
use maille_pki::{Authority, ROOT_TTL, Svid, create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_proto::facts::TrustBundle;
use maille_proto::flows::flows_client::FlowsClient;
use maille_proto::flows::{FlowReport, FlowReportSummary};
use maille_proto::identity::MintJwtSvidRequest;
use maille_proto::identity::identity_client::IdentityClient;
use maille_xds::type_urls::TRUST_BUNDLE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::lab::{CART, Lab, Proxy, WEB, channel, eventually, identity};

fn request() -> IstioCertificateRequest {
    let csr = create_csr(&generate_key().expect("key"), &identity("shop", "web")).expect("csr");
    IstioCertificateRequest { csr, ..Default::default() }
}

/// Everything that a proxy has open.
struct Open {
    proxy: Proxy,
    channel: Channel,
    /// Held, so that reports go on.
    _reports: mpsc::Sender<FlowReport>,
    reporting: JoinHandle<Result<FlowReportSummary, Status>>,
}

impl Open {
    async fn new(lab: &Lab, from: &'static str, svid: &Svid) -> Self {
        let proxy = lab.proxy(from, svid.clone()).await;
        proxy.client.subscribe_wildcard(TRUST_BUNDLE);
        let channel = lab.channel(from, Some(svid)).await.expect("connects");
        let (sender, reports) = mpsc::channel(1);
        let mut flows = FlowsClient::new(channel.clone());
        let reporting = tokio::spawn(async move {
            flows.report(ReceiverStream::new(reports)).await.map(tonic::Response::into_inner)
        });
        sender.send(FlowReport::default()).await.expect("taken");
        let open = Self { proxy, channel, _reports: sender, reporting };
        eventually("the trust bundle", || open.roots()).await;
        IstioCertificateServiceClient::new(open.channel.clone())
            .create_certificate(request())
            .await
            .expect("the certificate is proof enough");
        open
    }

    fn roots(&self) -> Option<Vec<Vec<u8>>> {
        let bundle: TrustBundle = self.proxy.seen.get(TRUST_BUNDLE, "cluster.local")?;
        Some(bundle.roots.iter().map(|root| root.to_vec()).collect())
    }

    fn errors(&self) -> Vec<String> {
        self.proxy.seen.errors.lock().expect("lock").clone()
    }

    /// Each of its streams ends with that, and its connection proves nothing any more.
    async fn ends(mut self, saying: &str) {
        let reason = eventually("the stream's end", || self.errors().first().cloned()).await;
        assert!(reason.contains(saying) && reason.contains("Unauthenticated"), "{reason}");
        let status = (&mut self.reporting).await.expect("no panic").expect_err("reports end, too");
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().starts_with(saying), "{status}");
        let mut authority = IstioCertificateServiceClient::new(self.channel.clone());
        let status = authority.create_certificate(request()).await.expect_err("it proves nothing");
        assert_eq!(status.code(), Code::Unauthenticated);
        let mint = MintJwtSvidRequest { audience: vec!["shop".to_owned()] };
        let status =
            IdentityClient::new(self.channel.clone()).mint_jwt_svid(mint).await.expect_err("nor here");
        assert!(status.message().starts_with(saying), "{status}");
        // A token is another proof, on this connection as on any other.
        let mut request = tonic::Request::new(request());
        request.metadata_mut().insert("authorization", "Bearer shop:web".parse().expect("header"));
        authority.create_certificate(request).await.expect("issued");
    }
}

#[tokio::test]
async fn streams_end_when_the_root_behind_them_is_withdrawn_and_those_renewed_before_do_not() {
    let lab = Lab::new().await;
    let old = lab.control.authority.load_full().expect("one");
    let web = Open::new(&lab, WEB, &lab.svid(WEB, "shop:web").await).await;
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let new = Authority::self_signed(&domain, std::time::SystemTime::now(), ROOT_TTL).expect("root");
    let new_root = new.certificate().to_vec();
    // The new one signs, both are trusted: nobody is disturbed.
    lab.control.set_authority(new.with_trust(old.own_roots().to_vec()).expect("roots"));
    eventually("both roots", || web.roots().filter(|roots| roots.len() == 2)).await;
    let lab = Lab { roots_pem: new.roots_pem(), ..lab };
    let renewed = eventually_signed(&lab, CART, "shop:cart").await;
    let cart = Open::new(&lab, CART, &renewed).await;
    assert_eq!((web.errors(), cart.errors()), (vec![], vec![]));
    assert!(!web.reporting.is_finished());
    // The new one alone.
    lab.control.set_authority(new);
    let told = |open: &Open| open.roots().filter(|roots| *roots == [new_root.clone()]);
    eventually("it hears of it first", || told(&web)).await;
    eventually("so does the other", || told(&cart)).await;
    web.ends("certificate not trusted").await;
    assert_eq!(cart.errors(), Vec::<String>::new(), "it had renewed");
    assert!(!cart.reporting.is_finished());
}

/// A certificate from a port that serves with one of its own by now.
async fn eventually_signed(lab: &Lab, from: &str, token: &str) -> Svid {
    for _ in 0..1000 {
        if channel(lab.address, from, &lab.roots_pem, None).await.is_ok() {
            return lab.svid(from, token).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("within five seconds: the port's new certificate")
}

/// A list of an authority's with this serial number, DER.
fn list(authority: &Arc<Authority>, serial: &str, directory: &Path) -> Vec<Vec<u8>> {
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("writable");
    let even = if serial.len().is_multiple_of(2) { "" } else { "0" };
    let serial = format!("{even}{}", serial.to_uppercase());
    write("index", &format!("R\t351231235959Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n"));
    write("number", "01\n");
    write("config", "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\n");
    write("ca", &authority.cert_pem());
    write("key", &authority.key_pem());
    let arguments = "ca -gencrl -config config -keyfile key -cert ca -crlhours 1 -out crl";
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
    let output = output.expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pem = std::fs::read_to_string(directory.join("crl")).expect("written");
    read_lists(&pem, &[authority.cert_pem()]).expect("a list")
}

#[tokio::test]
async fn streams_end_when_the_authority_revokes_the_certificate_behind_them() {
    let lab = Lab::new().await;
    let directory = tempfile::tempdir().expect("directory");
    let svid = lab.svid(WEB, "shop:web").await;
    let web = Open::new(&lab, WEB, &svid).await;
    let cart = Open::new(&lab, CART, &lab.svid(CART, "shop:cart").await).await;
    let lists = list(&lab.control.authority.load_full().expect("one"), svid.serial(), directory.path());
    lab.apply(Event::RevocationLists(lists, vec![]));
    web.ends("certificate revoked").await;
    assert_eq!(cart.errors(), Vec::<String>::new(), "its certificate is another");
    assert!(!cart.reporting.is_finished());
}
