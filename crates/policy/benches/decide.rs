//! Time per decision and per connection, against the number of policies on one workload.
//!
//! `cargo bench -p maille-policy`. Each shape asks for a different way of finding the rule; requests go round over
//! many rules, so that caches see what a busy proxy's see. The bar: a decision with 10,000 policies takes at most
//! twice the time that it takes with one, and less than a microsecond.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use maille_config::istio::{Action, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To};
use maille_core::{Identity, TrustDomain};
use maille_policy::{
    Authorization, Claims, ConnectionAttributes, ConnectionPolicy, PolicySet, RequestAttributes, TrustContext,
};
use serde_json::json;

const COUNTS: [usize; 4] = [1, 100, 1_000, 10_000];

/// How many different requests are asked about in turn.
const REQUESTS: usize = 256;

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
    /// A value of one claim each.
    Claim,
    /// A claim each, all with one value.
    ClaimName,
    /// A subject of one issuer each.
    RequestPrincipal,
    /// DENY of a path prefix each; none matches.
    Deny,
}

const SHAPES: [Shape; 10] = [
    Shape::PathPrefix,
    Shape::PathAndMethod,
    Shape::Principal,
    Shape::Host,
    Shape::Header,
    Shape::HostAndPath,
    Shape::Claim,
    Shape::ClaimName,
    Shape::RequestPrincipal,
    Shape::Deny,
];

struct Request {
    host: String,
    path: String,
    headers: Vec<(String, String)>,
    claims: Claims,
}

impl Request {
    fn attributes(&self) -> RequestAttributes<'_> {
        RequestAttributes {
            method: "GET",
            host: &self.host,
            path: &self.path,
            remote_ip: None,
            headers: &self.headers,
            claims: Some(&self.claims),
        }
    }
}

fn condition(key: String, value: String) -> Vec<Condition> {
    vec![Condition { key, values: vec![value], ..Condition::default() }]
}

impl Shape {
    fn policy(self, i: usize) -> Authorization {
        let caller = match self {
            Self::Principal => format!("cluster.local/ns/shop/sa/caller-{i}"),
            _ => "cluster.local/ns/shop/sa/frontend".to_owned(),
        };
        let request_principals = match self {
            Self::RequestPrincipal => vec![format!("https://idp.example/user-{i}")],
            _ => Vec::new(),
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
            Self::Header | Self::Claim | Self::ClaimName | Self::RequestPrincipal => {
                Operation { methods: vec!["GET".to_owned()], ..Operation::default() }
            }
            Self::HostAndPath => Operation {
                hosts: vec![format!("shop-{}.example", i % 100)],
                paths: vec![format!("/api/{}/*", i / 100)],
                ..Operation::default()
            },
            Self::Deny => Operation { paths: vec![format!("/private-{i}/*")], ..Operation::default() },
        };
        let when = match self {
            Self::Header => condition("request.headers[x-tenant]".to_owned(), format!("tenant-{i}")),
            Self::Claim => condition("request.auth.claims[groups]".to_owned(), format!("group-{i}")),
            Self::ClaimName => condition(format!("request.auth.claims[may-{i}]"), "yes".to_owned()),
            _ => Vec::new(),
        };
        let source = Source { principals: vec![caller], request_principals, ..Source::default() };
        let rule = Rule {
            from: vec![From { source: Some(source) }],
            to: vec![To { operation: Some(operation) }],
            when,
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
            Self::Claim | Self::ClaimName | Self::RequestPrincipal => {
                ("shop.example".to_owned(), "/api/v1/items".to_owned())
            }
            Self::Host => (format!("shop-{i}.example"), "/api/v1/items".to_owned()),
            Self::HostAndPath => (format!("shop-{}.example", i % 100), format!("/api/{}/items", i / 100)),
            Self::Deny => ("shop.example".to_owned(), format!("/public-{i}/items")),
        };
        let headers = [("accept", "*/*"), ("user-agent", "bench"), ("x-tenant", &format!("tenant-{i}"))];
        let mut payload = json!({
            "iss": "https://idp.example",
            "sub": format!("user-{i}"),
            "aud": ["shop"],
            "exp": 4_102_444_800_u64,
            "scope": "read write",
            "groups": ["staff", format!("group-{i}")],
        });
        payload[format!("may-{i}")] = json!("yes");
        Request {
            host,
            path,
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            claims: Claims::new(payload.as_object().cloned().unwrap_or_default(), &[]),
        }
    }

    fn compile(self, count: usize) -> Arc<PolicySet> {
        let trust = TrustContext {
            trust_domain: TrustDomain::parse("cluster.local").expect("a trust domain"),
            aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
        };
        let policies: Vec<_> = (0..count).map(|i| self.policy(i)).collect();
        let (set, problems) = PolicySet::compile(&policies, &trust);
        assert!(problems.is_empty(), "{problems:?}");
        Arc::new(set)
    }

    fn open(self, count: usize, set: &Arc<PolicySet>) -> ConnectionPolicy {
        let who = match self {
            Self::Principal => format!("caller-{}", count / 2),
            _ => "frontend".to_owned(),
        };
        let identity =
            Identity::parse_principal(&format!("cluster.local/ns/shop/sa/{who}")).expect("a principal");
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        set.on_connection(black_box(&ConnectionAttributes {
            identity: Some(&identity),
            source_ip: address,
            remote_ip: address,
            destination_ip: address,
            destination_port: 8080,
            sni: Some("outbound_.80_._.cart.shop.svc.cluster.local"),
        }))
    }
}

fn decide(c: &mut Criterion) {
    for shape in SHAPES {
        let mut group = c.benchmark_group(format!("{shape:?}"));
        for count in COUNTS {
            let set = shape.compile(count);
            group.bench_with_input(BenchmarkId::new("connection", count), &count, |b, count| {
                b.iter(|| shape.open(*count, &set));
            });
            let policy = shape.open(count, &set);
            // A prime step visits rules in no order that a prefetcher could guess.
            let requests: Vec<_> = (0..REQUESTS).map(|i| shape.request(i * 7919 % count)).collect();
            let mut turn = requests.iter().cycle();
            group.bench_function(BenchmarkId::new("decision", count), |b| {
                b.iter(|| {
                    let attributes = turn.next().expect("a cycle never ends").attributes();
                    assert!(policy.decide_http(black_box(&attributes)).is_allowed());
                });
            });
        }
    }
}

/// Time and memory of compiling, printed: one run of each is telling enough.
fn compile(_: &mut Criterion) {
    println!("{:<18} {:>10} {:>12} {:>14}", "compile", "policies", "ms", "resident MiB");
    for shape in SHAPES {
        for count in COUNTS {
            let before = resident();
            let start = Instant::now();
            let set = shape.compile(count);
            let ms = start.elapsed().as_secs_f64() * 1e3;
            let mib = (resident() - before) / f64::from(1 << 20);
            println!("{:<18} {count:>10} {ms:>12.2} {mib:>14.1}", format!("{shape:?}"));
            drop(set);
        }
    }
}

/// Bytes that the process holds in memory, or 0 where `/proc` does not say.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<f64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or_default() * 4096.0
}

fn quickly() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(900))
        .sample_size(30)
}

criterion_group!(name = benches; config = quickly(); targets = compile, decide);
criterion_main!(benches);
