//! Time per decision against the number of policies on one workload.
//!
//! `cargo run --release -p maille-policy --example decide`. Each shape asks for a different way of finding the
//! rule; requests go round over many rules, so that caches see what a busy proxy's see.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use maille_config::istio::{Action, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To};
use maille_core::{Identity, IdentityError, TrustDomain};
use maille_policy::{
    Authorization, ConnectionAttributes, ConnectionPolicy, PolicySet, RequestAttributes, TrustContext,
};

const COUNTS: [usize; 4] = [1, 100, 1_000, 10_000];
const ROUNDS: usize = 15;
const DECISIONS: usize = 20_000;

/// What the policies look like; policy `i` of a shape is the only one that lets request `i` through.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// One caller, a path prefix each.
    PathPrefix,
    /// One caller, an exact path and a method each.
    PathAndMethod,
    /// A caller each, one path.
    Principal,
    /// A host each.
    Host,
    /// A header value each.
    Header,
    /// 100 hosts times 100 paths.
    HostAndPath,
    /// DENY of a path prefix each; none matches.
    Deny,
}

const SHAPES: [Shape; 7] = [
    Shape::PathPrefix,
    Shape::PathAndMethod,
    Shape::Principal,
    Shape::Host,
    Shape::Header,
    Shape::HostAndPath,
    Shape::Deny,
];

struct Request {
    method: &'static str,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Shape {
    fn policy(self, i: usize) -> Authorization {
        let caller = match self {
            Self::Principal => format!("cluster.local/ns/shop/sa/caller-{i}"),
            _ => "cluster.local/ns/shop/sa/frontend".to_owned(),
        };
        let operation = match self {
            Self::PathPrefix => {
                Operation { paths: vec![format!("/api/v1/resource-{i}/*")], ..Operation::default() }
            }
            Self::PathAndMethod => Operation {
                methods: vec!["GET".to_owned()],
                paths: vec![format!("/api/v1/resource-{i}")],
                ..Operation::default()
            },
            Self::Principal => Operation { paths: vec!["/api/*".to_owned()], ..Operation::default() },
            Self::Host => Operation { hosts: vec![format!("shop-{i}.example")], ..Operation::default() },
            Self::Header => Operation { methods: vec!["GET".to_owned()], ..Operation::default() },
            Self::HostAndPath => Operation {
                hosts: vec![format!("shop-{}.example", i % 100)],
                paths: vec![format!("/api/{}/*", i / 100)],
                ..Operation::default()
            },
            Self::Deny => Operation { paths: vec![format!("/private-{i}/*")], ..Operation::default() },
        };
        let header = Condition {
            key: "request.headers[x-tenant]".to_owned(),
            values: vec![format!("tenant-{i}")],
            ..Condition::default()
        };
        let rule = Rule {
            from: vec![From { source: Some(Source { principals: vec![caller], ..Source::default() }) }],
            to: vec![To { operation: Some(operation) }],
            when: if matches!(self, Self::Header) { vec![header] } else { Vec::new() },
        };
        Authorization {
            namespace: "shop".to_owned(),
            name: format!("policy-{i}"),
            dry_run: false,
            spec: AuthorizationPolicySpec {
                action: if matches!(self, Self::Deny) { Action::Deny } else { Action::Allow },
                rules: vec![rule],
                ..AuthorizationPolicySpec::default()
            },
        }
    }

    fn request(self, i: usize) -> Request {
        let (host, path) = match self {
            Self::PathPrefix => ("shop.example".to_owned(), format!("/api/v1/resource-{i}/items?page=2")),
            Self::PathAndMethod => ("shop.example".to_owned(), format!("/api/v1/resource-{i}?page=2")),
            Self::Principal | Self::Header => ("shop.example".to_owned(), "/api/v1/items".to_owned()),
            Self::Host => (format!("shop-{i}.example"), "/api/v1/items".to_owned()),
            Self::HostAndPath => (format!("shop-{}.example", i % 100), format!("/api/{}/items", i / 100)),
            Self::Deny => ("shop.example".to_owned(), format!("/public-{i}/items")),
        };
        let headers = [("accept", "*/*"), ("user-agent", "bench"), ("x-tenant", &format!("tenant-{i}"))];
        Request {
            method: "GET",
            host,
            path,
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }
}

fn main() -> Result<(), IdentityError> {
    let trust = TrustContext {
        trust_domain: TrustDomain::parse("cluster.local")?,
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    };
    println!(
        "{:<14} {:>8} {:>12} {:>14} {:>12}",
        "shape", "policies", "compile ms", "connection ns", "decision ns"
    );
    for shape in SHAPES {
        for count in COUNTS {
            let policies: Vec<_> = (0..count).map(|i| shape.policy(i)).collect();
            let start = Instant::now();
            let (set, problems) = PolicySet::compile(&policies, &trust);
            let compile_ms = start.elapsed().as_secs_f64() * 1e3;
            assert!(problems.is_empty(), "{problems:?}");
            let set = Arc::new(set);
            let (connection_ns, decision_ns) = measure(shape, count, &set)?;
            println!(
                "{:<14} {count:>8} {compile_ms:>12.2} {connection_ns:>14.0} {decision_ns:>12.1}",
                format!("{shape:?}")
            );
        }
    }
    Ok(())
}

/// The fastest round of each: on a machine that does other things too, the minimum is the code's own time.
fn measure(shape: Shape, count: usize, set: &Arc<PolicySet>) -> Result<(f64, f64), IdentityError> {
    let who = if matches!(shape, Shape::Principal) {
        format!("caller-{}", count / 2)
    } else {
        "frontend".to_owned()
    };
    let identity = Identity::parse_principal(&format!("cluster.local/ns/shop/sa/{who}"))?;
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let attributes = ConnectionAttributes {
        identity: Some(&identity),
        source_ip: address,
        remote_ip: address,
        destination_ip: address,
        destination_port: 8080,
        sni: Some("outbound_.80_._.cart.shop.svc.cluster.local"),
    };
    let open = || -> ConnectionPolicy { set.on_connection(black_box(&attributes)) };
    let connection_ns = fastest(DECISIONS / 20, &mut |_| drop(black_box(open())));
    let policy = open();
    // A prime step visits rules in no order that a prefetcher could guess.
    let requests: Vec<_> = (0..256).map(|i| shape.request(i * 7919 % count)).collect();
    let decision_ns = fastest(DECISIONS, &mut |i| {
        let request = &requests[i % requests.len()];
        let attributes = RequestAttributes {
            method: request.method,
            host: &request.host,
            path: &request.path,
            remote_ip: None,
            headers: &request.headers,
            claims: None,
        };
        let decision = policy.decide_http(black_box(&attributes));
        assert!(decision.is_allowed());
    });
    Ok((connection_ns, decision_ns))
}

fn fastest(times: usize, work: &mut dyn FnMut(usize)) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..times).for_each(&mut *work);
        start.elapsed().as_nanos() as f64 / times as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}
