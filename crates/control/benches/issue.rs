//! How many certificates a control plane issues: through TLS and gRPC on loopback, by the authority alone, and beside them
//! what the signature itself costs.
//!
//! `cargo bench -p maille-control --bench issue --profile demo`: half a minute, beside the build. The load is 200 Pods on one
//! connection each, all renewing at once, as after a rotation; tokens are taken at their word, since their review is the API
//! server's work.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use futures::future::{BoxFuture, join_all};
use hyper_util::rt::TokioIo;
use maille_control::world::{Change, Event, MeshConfig, Pod, World};
use maille_control::{ControlPlane, Hub, ReviewError, Reviewed, TokenReviewer};
use maille_core::{Identity, NamespacedName, SystemClock, TrustDomain};
use maille_pki::{Authority, CertificateRequest, create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_tls::control::discovery_client;
use maille_xds::configure_endpoint;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Both within what one Pod, and all of them, may ask at once.
const PODS: u8 = 200;
const REQUESTS_PER_POD: usize = 10;
/// For what runs on one core only.
const SPAN: Duration = Duration::from_secs(1);
/// Of the whole, since callers and server share the machine with whatever else runs.
const ROUNDS: usize = 3;
const THREADS: &str = "issue-server";

struct Anyone;

impl TokenReviewer for Anyone {
    fn review<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        Box::pin(async {
            Ok(Reviewed { namespace: "shop".into(), service_account: "cart".into(), pod: None })
        })
    }
}

/// A CA whose key is of one kind, and what signs as it does, without anything around it.
struct Kind {
    name: &'static str,
    authority: fn() -> Authority,
    sign: Box<dyn FnMut()>,
}

fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let domain = domain();
    let identity = Identity::new(domain.clone(), "shop", "cart").expect("valid");
    let csr = create_csr(&generate_key().expect("key"), &identity).expect("csr");
    println!(
        "certificates per second; workloads' keys are P-256; {PODS} connections, {ROUNDS} rounds, the best counts"
    );
    println!(
        "{:<12} {:>16} {:>16} {:>16} {:>16} {:>12}",
        "key of CA",
        "signature alone",
        "authority alone",
        "end to end, all",
        "end to end, core",
        "signature's"
    );
    println!(
        "{:<12} {:>16} {:>16} {:>16} {:>16} {:>12}",
        "", "per core", "per core", "this machine", "of server", "share"
    );
    for mut kind in kinds() {
        let signature = per_second(&mut kind.sign);
        let authority = (kind.authority)();
        let alone = per_second(|| {
            let request = CertificateRequest::parse_pem(&csr).expect("own csr");
            let issued = authority.issue(&request, &identity, Duration::from_secs(3600), SystemTime::now());
            drop(black_box(issued.expect("issued")));
        });
        let (mut best, mut of_core) = (0.0_f64, 0.0_f64);
        for _ in 0..ROUNDS {
            let (rate, core) = end_to_end(kind.authority, &csr);
            (best, of_core) = (best.max(rate), of_core.max(core));
        }
        let share = 100.0 * of_core / signature;
        let name = kind.name;
        println!("{name:<12} {signature:>16.0} {alone:>16.0} {best:>16.0} {of_core:>16.0} {share:>10.0} %");
    }
    println!(
        "end to end is TLS, gRPC, attestation, the CSR's check, the signature and the audit log, callers on the same machine;"
    );
    println!("of server: its threads' processor time; tokens are taken at their word");
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").expect("valid")
}

/// As long as what is signed of a certificate.
const MESSAGE: [u8; 600] = [7; 600];

fn kinds() -> [Kind; 4] {
    let random = SystemRandom::new();
    let ecdsa = |algorithm| {
        let (key, random) = (EcdsaKeyPair::generate(algorithm).expect("key"), random.clone());
        Box::new(move || {
            black_box(key.sign(&random, &MESSAGE).expect("signed"));
        })
    };
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("key");
    let mut place = vec![0; rsa.public_modulus_len()];
    let edwards = Ed25519KeyPair::generate().expect("key");
    [
        Kind {
            name: "P-256",
            authority: || authority(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)),
            sign: ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
        },
        Kind {
            name: "P-384",
            authority: || authority(KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)),
            sign: ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
        },
        Kind {
            name: "RSA 2048",
            authority: || authority(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)),
            sign: Box::new(move || {
                rsa.sign(&RSA_PKCS1_SHA256, &random, &MESSAGE, &mut place).expect("signed");
            }),
        },
        Kind {
            name: "Ed25519",
            authority: || authority(KeyPair::generate_for(&PKCS_ED25519)),
            sign: Box::new(move || {
                black_box(edwards.sign(&MESSAGE));
            }),
        },
    ]
}

/// A root of an operator's.
fn authority(key: Result<KeyPair, rcgen::Error>) -> Authority {
    let key = key.expect("key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "bench");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).expect("root").pem();
    Authority::from_pem(&root, &key.serialize_pem(), "", &root).expect("a usable CA")
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
fn end_to_end(authority: fn() -> Authority, csr: &str) -> (f64, f64) {
    let threads = |name: &str, count| {
        Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name(name)
            .enable_all()
            .build()
            .expect("runtime")
    };
    let (server, callers) = (threads(THREADS, 2), threads("callers", 2));
    let (address, roots_pem) = serve(&server, authority());
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

fn serve(server: &Runtime, authority: Authority) -> (SocketAddr, String) {
    let hub = Hub::new(World::new(MeshConfig::new(domain())));
    let control = ControlPlane::new(hub, Arc::new(Anyone), Arc::new(SystemClock));
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

/// Processor time of the control plane's threads.
fn processor_time() -> Duration {
    let mut nanoseconds = 0_u64;
    for thread in std::fs::read_dir("/proc/self/task").expect("/proc").flatten() {
        let read = |name: &str| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        if read("comm").trim() == THREADS {
            // The first field of proc(5)'s schedstat: time spent on the processor.
            nanoseconds +=
                read("schedstat").split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanoseconds)
}
