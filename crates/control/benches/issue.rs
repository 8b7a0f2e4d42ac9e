//! How many certificates a control plane issues: through TLS and gRPC on loopback, by the authority alone, and beside them
//! what the signature itself costs.
//!
//! `cargo bench -p maille-control --bench issue`. The load is 200 Pods on one connection each, all renewing at once, as
//! after a rotation; tokens are taken at their word, since their review is the API server's work.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use futures::future::{BoxFuture, join_all};
use hyper_util::rt::TokioIo;
use maille_control::world::{Change, Event, MeshConfig, Pod, World};
use maille_control::{ControlPlane, Hub, ReviewError, Reviewed, TokenReviewer};
use maille_core::{Identity, NamespacedName, SystemClock, TrustDomain};
use maille_pki::{Authority, CertificateRequest, ROOT_TTL, create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_tls::control::discovery_client;
use maille_xds::configure_endpoint;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Both within what one Pod, and all of them, may ask at once.
const PODS: u8 = 200;
const REQUESTS_PER_POD: usize = 10;
/// For what runs on one core only.
const SPAN: Duration = Duration::from_secs(2);
const THREADS: &str = "issue-server";

struct Anyone;

impl TokenReviewer for Anyone {
    fn review<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        Box::pin(async {
            Ok(Reviewed { namespace: "shop".into(), service_account: "cart".into(), pod: None })
        })
    }
}

fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let random = SystemRandom::new();
    let message = [7; 600];
    let ecdsa = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key");
    let signature = per_second(|| {
        black_box(ecdsa.sign(&random, &message).expect("signed"));
    });
    row("signature alone, ECDSA P-256", signature, "per core");
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("key");
    let mut place = vec![0; rsa.public_modulus_len()];
    let of_rsa = per_second(|| rsa.sign(&RSA_PKCS1_SHA256, &random, &message, &mut place).expect("signed"));
    row("signature alone, RSA 2048", of_rsa, "per core");

    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let identity = Identity::new(domain.clone(), "shop", "cart").expect("valid");
    let csr = create_csr(&generate_key().expect("key"), &identity).expect("csr");
    let authority = Authority::self_signed(&domain, SystemTime::now(), ROOT_TTL).expect("root");
    let alone = per_second(|| {
        let request = CertificateRequest::parse_pem(&csr).expect("own csr");
        let issued = authority.issue(&request, &identity, Duration::from_secs(3600), SystemTime::now());
        drop(issued.expect("issued"));
    });
    row("authority alone: CSR checked, certificate signed", alone, "per core");

    let (mut best, mut of_core) = (0.0_f64, 0.0_f64);
    for _ in 0..3 {
        let (rate, core) = end_to_end(&domain, &csr);
        (best, of_core) = (best.max(rate), of_core.max(core));
    }
    row("end to end: TLS, gRPC, attestation, audit", best, "in all, callers on the same machine");
    row("end to end, per core of the control plane", of_core, "per core");
    println!(
        "signature's share of the control plane's time per certificate: {:.0} %",
        100.0 * of_core / signature
    );
}

fn row(what: &str, rate: f64, of: &str) {
    println!("{what:<52} {rate:>9.0}/s  {:>8.1} us  {of}", 1e6 / rate);
}

fn per_second(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < SPAN {
        work();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Certificates per second, and per second of the control plane's processor time.
fn end_to_end(domain: &TrustDomain, csr: &str) -> (f64, f64) {
    let threads = |name: &str, count| {
        Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name(name)
            .enable_all()
            .build()
            .expect("runtime")
    };
    let (server, callers) = (threads(THREADS, 2), threads("callers", 2));
    let (address, roots_pem) = serve(&server, domain);
    let channels =
        callers.block_on(join_all((1..=PODS).map(|n| channel(address, pod_address(n), &roots_pem))));
    let (start, used) = (Instant::now(), processor_time());
    let asking = channels.into_iter().map(|channel| {
        let csr = csr.to_owned();
        callers.spawn(async move {
            let mut client = IstioCertificateServiceClient::new(channel);
            for _ in 0..REQUESTS_PER_POD {
                let asked = IstioCertificateRequest { csr: csr.clone(), ..Default::default() };
                let mut request = Request::new(asked);
                request.metadata_mut().insert("authorization", "Bearer any".parse().expect("header"));
                client.create_certificate(request).await.expect("issued");
            }
        })
    });
    let asking: Vec<_> = asking.collect();
    callers.block_on(async {
        for one in asking {
            one.await.expect("no panic");
        }
    });
    let (took, used) = (start.elapsed(), processor_time().saturating_sub(used));
    let count = f64::from(u32::from(PODS)) * REQUESTS_PER_POD as f64;
    callers.shutdown_background();
    server.shutdown_background();
    (count / took.as_secs_f64(), count / used.as_secs_f64())
}

fn pod_address(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 7, n).into()
}

fn serve(server: &Runtime, domain: &TrustDomain) -> (SocketAddr, String) {
    let hub = Hub::new(World::new(MeshConfig::new(domain.clone())));
    let control = ControlPlane::new(hub, Arc::new(Anyone), Arc::new(SystemClock));
    let authority = Authority::self_signed(domain, SystemTime::now(), ROOT_TTL).expect("root");
    let roots_pem = authority.roots_pem();
    control.set_authority(authority);
    control.hub.apply((1..=PODS).map(|n| Event::Pod(Change::Put(pod(n)))));
    let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).expect("bind");
    let address = listener.local_addr().expect("address");
    server.spawn(async move { control.serve(vec![listener], std::future::pending()).await.expect("serve") });
    (address, roots_pem)
}

fn pod(n: u8) -> Pod {
    Pod {
        name: NamespacedName::new("shop", format!("cart-{n}")),
        uid: format!("uid-{n}"),
        addresses: vec![pod_address(n)],
        labels: Default::default(),
        service_account: "cart".into(),
        node: "node-1".into(),
        workload_name: "cart".into(),
        meshed: true,
        multiplexes: false,
        ready: true,
        terminating: false,
        named_ports: Vec::new(),
        scrape: None,
    }
}

async fn channel(address: SocketAddr, from: IpAddr, roots_pem: &str) -> Channel {
    let connector = TlsConnector::from(discovery_client(roots_pem, None).expect("TLS"));
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            let stream = socket.connect(address).await?;
            let name = "istiod.istio-system.svc".try_into().map_err(std::io::Error::other)?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    let endpoint = configure_endpoint(Endpoint::from_static("http://istiod.istio-system.svc:15012"));
    endpoint.connect_with_connector(connect).await.expect("connects")
}

/// Processor time of the control plane's threads; the kernel counts in hundredths of a second.
fn processor_time() -> Duration {
    let mut ticks = 0_u64;
    for thread in std::fs::read_dir("/proc/self/task").expect("/proc").flatten() {
        let text = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // proc(5): the name in parentheses, then from field 3 on; utime and stime are fields 14 and 15.
        let Some((name, rest)) = text.split_once(") ") else { continue };
        if name.ends_with(THREADS) {
            let fields = rest.split(' ').skip(11).take(2);
            ticks += fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 10)
}
