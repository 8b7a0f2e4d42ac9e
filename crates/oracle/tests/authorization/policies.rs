//! Generated policies: small vocabularies, so that values meet.

use maille_config::istio::{Action, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To};
use maille_core::TrustDomain;
use maille_policy::{Authorization, TrustContext};

use crate::random::Random;

pub(crate) const DOMAINS: &[&str] = &["cluster.local", "td-new", "td-old", "ns", "prod.eu"];
pub(crate) const NAMESPACES: &[&str] = &["a", "ab", "ns", "sa", "prod-eu", "foobar"];
pub(crate) const ACCOUNTS: &[&str] = &["b", "web", "web2", "sa"];
pub(crate) const ADDRESSES: &[&str] =
    &["10.0.0.1", "10.1.0.1", "10.1.2.3", "192.0.2.1", "2001:db8::1", "2001:db8:1::2", "::ffff:10.0.0.1"];
pub(crate) const PORTS: &[&str] = &["80", "8080", "443", "65535", "0"];
pub(crate) const NAMES: &[&str] = &["a.corp", "b.corp", "shop.example", "shop.example.evil", "corp"];
pub(crate) const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "get"];
pub(crate) const HOSTS: &[&str] = &["shop.example", "shop.example:8080", "shop", "SHOP.example", "h", "h:80"];
pub(crate) const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/ab",
    "/admin",
    "/admin/x",
    "/v1/q/items",
    "/v1//items",
    "/v1/a/b/c",
    "/a[b",
    "/a*b",
    "/v1/a%20b",
    "*",
    "/v1/",
    "/v1/a/b/end",
];
const TEMPLATES: &[&str] = &[
    "/v1/{*}/items",
    "/v1/{*}",
    "/v1/{**}",
    "/v1/{**}/end",
    "/{*}",
    "/{**}",
    "/{*}/b",
    "/v1/{*}/x/{**}",
    "/a/{x}",
    "/v1/{**}/{*}",
    "/a{*}",
    "/v1/{*}/",
];
pub(crate) const HEADERS: &[&str] =
    &["x-tier", "X-Team", "accept", "via", "host", ":authority", ":path", ":method"];
pub(crate) const VALUES: &[&str] = &["gold", "golden", "a", "b", "a,b", "", "GET", "/a", "shop.example"];
const BLOCKS: &[&str] = &[
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/8",
    "10.1.2.3",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::/32",
    "2001:db8::1",
    "192.0.2.0/24",
    "::ffff:10.0.0.0/104",
    "10.0.0.1/31",
];

pub(crate) fn trust(random: &mut Random) -> TrustContext {
    let domain = |text: &str| TrustDomain::parse(text).expect("valid");
    let aliases = [vec![], vec!["td-old"], vec!["td-old", "cluster.local"], vec!["td-new"]];
    TrustContext {
        trust_domain: domain(random.pick(&["cluster.local", "td-new"])),
        aliases: random.one(&aliases).iter().map(|a| domain(a)).collect(),
        root_namespace: "istio-system".to_owned(),
    }
}

pub(crate) fn policies(random: &mut Random) -> Vec<Authorization> {
    let mut all: Vec<_> = match random.below(50) {
        0 => (0..30 + random.below(90)).map(|index| policy(random, index)).collect(),
        1 => crowd(random),
        _ => (0..random.below(7)).map(|index| policy(random, index)).collect(),
    };
    if random.once_in(2) {
        share(random, &mut all);
    }
    all
}

/// Rules that have a part in common, since what is equal is compiled once.
fn share(random: &mut Random, policies: &mut [Authorization]) {
    let mut rules: Vec<&mut Rule> = policies.iter_mut().flat_map(|p| &mut p.spec.rules).collect();
    for _ in 0..rules.len() / 2 {
        let from = random.one(&rules);
        let (from, to, when) = (from.from.clone(), from.to.clone(), from.when.clone());
        let target = random.below(rules.len());
        let Some(rule) = rules.get_mut(target) else { return };
        match random.below(4) {
            0 => rule.from = from,
            1 => rule.to = to,
            2 => (rule.to, rule.when) = (to, when),
            _ => (rule.from, rule.when) = (from, when),
        }
    }
}

/// Many policies of one kind whose values meet each other everywhere, so that no attribute alone tells them apart.
fn crowd(random: &mut Random) -> Vec<Authorization> {
    let (hosts, paths, header) = (!random.once_in(4), !random.once_in(4), random.once_in(2));
    let action = *random.one(&[Action::Allow, Action::Deny]);
    let one = |random: &mut Random| {
        let mut operation = Operation { methods: values(random, method), ..Operation::default() };
        if hosts {
            operation.hosts = values(random, host);
        }
        if paths {
            operation.paths = values(random, path);
        }
        let mut rule = Rule { to: vec![To { operation: Some(operation) }], ..Rule::default() };
        if header {
            let key = "request.headers[x-tier]".to_owned();
            rule.when.push(Condition { key, values: values(random, header_value), ..Condition::default() });
        }
        if random.once_in(2) {
            rule.from.push(From { source: Some(source(random)) });
        }
        rule
    };
    let crowd = (0..60 + random.below(120)).map(|index| Authorization {
        namespace: "a".to_owned(),
        name: format!("p{index}"),
        dry_run: false,
        spec: AuthorizationPolicySpec {
            action,
            rules: vec![one(random)],
            ..AuthorizationPolicySpec::default()
        },
    });
    crowd.collect()
}

fn policy(random: &mut Random, index: usize) -> Authorization {
    let action = match random.below(20) {
        0..10 => Action::Allow,
        10..18 => Action::Deny,
        18 => Action::Audit,
        _ => Action::Custom,
    };
    // Rule ids sort by bytes: more than ten rules, now and then, put `rule[10]` before `rule[1]`.
    let rules = if random.once_in(30) { 12 } else { random.below(4) };
    Authorization {
        namespace: random.pick(&["a", "istio-system"]).to_owned(),
        name: format!("p{index}"),
        dry_run: random.once_in(12),
        spec: AuthorizationPolicySpec {
            action,
            rules: (0..rules).map(|_| rule(random)).collect(),
            ..AuthorizationPolicySpec::default()
        },
    }
}

fn rule(random: &mut Random) -> Rule {
    let mut several = |max: usize| match random.below(8) {
        0..3 => 0,
        3..6 => 1,
        _ => 1 + random.below(max),
    };
    let (from, to, when) = (several(3), several(3), several(2));
    Rule {
        from: (0..from).map(|_| From { source: (!random.once_in(30)).then(|| source(random)) }).collect(),
        to: (0..to).map(|_| To { operation: (!random.once_in(30)).then(|| operation(random)) }).collect(),
        when: (0..when).map(|_| condition(random)).collect(),
    }
}

type Maker = fn(&mut Random) -> String;

fn values(random: &mut Random, make: Maker) -> Vec<String> {
    let count = match random.below(12) {
        0..9 => 1,
        9..11 => 2,
        _ => 1 + random.below(12),
    };
    (0..count).map(|_| make(random)).collect()
}

fn source(random: &mut Random) -> Source {
    let mut s = Source::default();
    for _ in 0..1 + random.below(2) {
        let negated = random.once_in(3);
        let (make, field): (Maker, &mut Vec<String>) = match (random.below(6), negated) {
            (0, false) => (principal, &mut s.principals),
            (0, true) => (principal, &mut s.not_principals),
            (1, false) => (namespace, &mut s.namespaces),
            (1, true) => (namespace, &mut s.not_namespaces),
            (2, false) => (account, &mut s.service_accounts),
            (2, true) => (account, &mut s.not_service_accounts),
            (3, false) => (trust_domain, &mut s.trust_domains),
            (3, true) => (trust_domain, &mut s.not_trust_domains),
            (4, false) => (block, &mut s.ip_blocks),
            (4, true) => (block, &mut s.not_ip_blocks),
            (_, false) => (block, &mut s.remote_ip_blocks),
            (_, true) => (block, &mut s.not_remote_ip_blocks),
        };
        *field = values(random, make);
    }
    if random.once_in(300) {
        s.request_principals.push("*".to_owned());
    }
    s
}

fn operation(random: &mut Random) -> Operation {
    let mut o = Operation::default();
    for _ in 0..1 + random.below(3) {
        let negated = random.once_in(3);
        let (make, field): (Maker, &mut Vec<String>) = match (random.below(5), negated) {
            (0, false) => (host, &mut o.hosts),
            (0, true) => (host, &mut o.not_hosts),
            (1, false) => (port, &mut o.ports),
            (1, true) => (port, &mut o.not_ports),
            (2, false) => (method, &mut o.methods),
            (2, true) => (method, &mut o.not_methods),
            (_, false) => (path, &mut o.paths),
            (_, true) => (path, &mut o.not_paths),
        };
        *field = values(random, make);
    }
    o
}

fn condition(random: &mut Random) -> Condition {
    let (key, make): (String, Maker) = match random.below(40) {
        0..4 => ("source.ip".into(), block),
        4..8 => ("remote.ip".into(), block),
        8..10 => ("destination.ip".into(), block),
        10..12 => ("source.namespace".into(), namespace),
        12..14 => ("source.serviceAccount".into(), account),
        14..16 => ("source.principal".into(), principal),
        16..18 => ("source.trustDomain".into(), trust_domain),
        18..20 => ("destination.port".into(), port),
        20..24 => ("connection.sni".into(), |r| starred(r, NAMES)),
        24 if random.once_in(8) => ("destination.user".into(), port),
        24 if random.once_in(8) => ("request.headers[]".into(), port),
        _ => (format!("request.headers[{}]", random.pick(HEADERS)), header_value),
    };
    let mut condition = Condition { key, ..Condition::default() };
    let which = random.below(8);
    if which < 5 {
        condition.values = values(random, make);
    }
    if which > 3 {
        condition.not_values = values(random, make);
    }
    condition
}

/// A text of the vocabulary with a star in it, somewhere, or none.
fn starred(random: &mut Random, from: &[&str]) -> String {
    let text = random.pick(from);
    with_star(random, text)
}

fn with_star(random: &mut Random, text: &str) -> String {
    let at = random.below(text.len() + 1);
    let (start, end) = text.split_at_checked(at).unwrap_or((text, ""));
    match random.below(16) {
        0..8 => text.to_owned(),
        8..11 => format!("{start}*"),
        11..13 => format!("*{end}"),
        13 => format!("{start}*{end}"),
        14 => format!("*{end}*"),
        _ => "*".to_owned(),
    }
}

fn principal(random: &mut Random) -> String {
    let domain = match random.below(6) {
        0 => "*-old".to_owned(),
        1 => "td*".to_owned(),
        2 => "*".to_owned(),
        _ => random.pick(DOMAINS).to_owned(),
    };
    let text = format!("{domain}/ns/{}/sa/{}", random.pick(NAMESPACES), random.pick(ACCOUNTS));
    match random.below(12) {
        0..6 => text,
        6 => format!("spiffe://{text}"),
        _ => with_star(random, &text),
    }
}

fn namespace(random: &mut Random) -> String {
    match random.below(20) {
        0 => "f*r".to_owned(),
        1 => "a*/sa".to_owned(),
        2 => "ns/a".to_owned(),
        _ => starred(random, NAMESPACES),
    }
}

fn account(random: &mut Random) -> String {
    match random.below(40) {
        0 => "a/b/c".to_owned(),
        1..20 => random.pick(ACCOUNTS).to_owned(),
        _ => format!("{}/{}", random.pick(NAMESPACES), random.pick(ACCOUNTS)),
    }
}

fn trust_domain(random: &mut Random) -> String {
    match random.below(40) {
        0 => "a*b*".to_owned(),
        1..8 => random.pick(&["prod.*", "*.eu", "td-*", "t*w", "*"]).to_owned(),
        _ => random.pick(DOMAINS).to_owned(),
    }
}

fn block(random: &mut Random) -> String {
    match random.below(60) {
        0 => random.pick(&["1.2.3", "10.0.0.0/33", "10.0.0.0/08", ""]).to_owned(),
        1..30 => random.pick(BLOCKS).to_owned(),
        _ => random.pick(ADDRESSES).to_owned(),
    }
}

fn port(random: &mut Random) -> String {
    match random.below(60) {
        0 => random.pick(&["http", "65536", "-1", "+80"]).to_owned(),
        1 => "0080".to_owned(),
        _ => random.pick(PORTS).to_owned(),
    }
}

fn method(random: &mut Random) -> String {
    starred(random, METHODS)
}

fn host(random: &mut Random) -> String {
    starred(random, HOSTS)
}

fn path(random: &mut Random) -> String {
    match random.below(4) {
        0 if random.once_in(3) => random.pick(TEMPLATES).to_owned(),
        0 => random.pick(&TEMPLATES[..8]).to_owned(),
        _ => starred(random, PATHS),
    }
}

fn header_value(random: &mut Random) -> String {
    starred(random, &VALUES[..VALUES.len()])
}
