//! Policies and requests written as YAML, and what is expected of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use maille_config::istio::{Action, AuthorizationPolicySpec};
use maille_core::{Identity, TrustDomain};
use maille_policy::{
    Authorization, Claims, ConnectionAttributes, ConnectionPolicy, PolicySet, RequestAttributes,
    ShadowResult, TrustContext, forwarded_for,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One request; `tcp: true` makes it opaque bytes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Call {
    pub(crate) peer: Option<String>,
    pub(crate) ip: IpAddr,
    pub(crate) local: IpAddr,
    pub(crate) port: u16,
    pub(crate) sni: Option<String>,
    pub(crate) tcp: bool,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    /// The payload of a verified token.
    pub(crate) claims: Option<Map<String, Value>>,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            peer: None,
            ip: IpAddr::from([192, 0, 2, 1]),
            local: IpAddr::from([10, 1, 2, 3]),
            port: 80,
            sni: None,
            tcp: false,
            method: "GET".to_owned(),
            host: "shop.example".to_owned(),
            path: "/".to_owned(),
            headers: BTreeMap::new(),
            claims: None,
        }
    }
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) allowed: bool,
    /// Printed id of the rule that decided.
    pub(crate) rule: Option<String>,
    pub(crate) reason: String,
    /// As access logs have it.
    pub(crate) details: String,
}

pub(crate) fn mesh(domain: &str, aliases: &[&str]) -> TrustContext {
    let parse = |text: &str| TrustDomain::parse(text).expect("a trust domain");
    TrustContext {
        trust_domain: parse(domain),
        aliases: aliases.iter().map(|a| parse(a)).collect(),
        root_namespace: "istio-system".to_owned(),
    }
}

/// A policy; a `name` of the form `ns/name`, and the spec in YAML.
pub(crate) fn policy(name: &str, spec: &str) -> Authorization {
    let (namespace, name) = name.split_once('/').expect("ns/name");
    let spec: AuthorizationPolicySpec = serde_saphyr::from_str(spec).expect(spec);
    Authorization { namespace: namespace.to_owned(), name: name.to_owned(), dry_run: false, spec }
}

/// A policy `foo/p` with this one rule.
pub(crate) fn with_rule(action: Action, rule: &str) -> Authorization {
    let rule = serde_saphyr::from_str(rule).expect(rule);
    let spec = AuthorizationPolicySpec { action, rules: vec![rule], ..AuthorizationPolicySpec::default() };
    Authorization { namespace: "foo".to_owned(), name: "p".to_owned(), dry_run: false, spec }
}

/// Hands the connection and, unless the call is TCP, the request to `look`.
fn open<T>(
    trust: &TrustContext,
    policies: &[Authorization],
    call: &str,
    look: impl FnOnce(&ConnectionPolicy, Option<&RequestAttributes<'_>>) -> T,
) -> T {
    let call: Call = serde_saphyr::from_str(call).expect(call);
    let peer = call.peer.as_deref().map(|p| Identity::parse_principal(p).expect("a principal"));
    let headers: Vec<(String, String)> = call
        .headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(|v| (name.clone(), v.clone())))
        .collect();
    let claims = call.claims.map(|claims| Claims::new(claims, &["tags".to_owned()]));
    let (set, _) = PolicySet::compile(policies, trust);
    let connection = Arc::new(set).on_connection(&ConnectionAttributes {
        identity: peer.as_ref(),
        source_ip: call.ip,
        remote_ip: call.ip,
        destination_ip: call.local,
        destination_port: call.port,
        sni: call.sni.as_deref(),
    });
    let request = RequestAttributes {
        method: &call.method,
        host: &call.host,
        path: &call.path,
        remote_ip: forwarded_for(&headers),
        headers: &headers,
        claims: claims.as_ref(),
    };
    look(&connection, (!call.tcp).then_some(&request))
}

pub(crate) fn decide_in(trust: &TrustContext, policies: &[Authorization], call: &str) -> Outcome {
    open(trust, policies, call, |connection, request| {
        let decision = match request {
            Some(request) => connection.decide_http(request),
            None => connection.decide_tcp(),
        };
        Outcome {
            allowed: decision.is_allowed(),
            rule: decision.policy.map(ToString::to_string),
            reason: connection.explain(request, &decision),
            details: decision.details(),
        }
    })
}

/// What policies say beside the decision; rules by their printed ids.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Provider, rule and problem.
    pub(crate) ask: Option<(String, String, Option<String>)>,
    pub(crate) audit: Option<String>,
    /// Allowed, and by which rule.
    pub(crate) shadow_deny: Option<(bool, Option<String>)>,
    pub(crate) shadow_allow: Option<(bool, Option<String>)>,
}

pub(crate) fn beside(policies: &[Authorization], call: &str) -> Beside {
    open(&mesh("cluster.local", &[]), policies, call, |connection, request| {
        let (ask, audit, shadow) = match request {
            Some(r) => (connection.ask_http(r), connection.audit_http(r), connection.shadow_http(r)),
            None => (connection.ask_tcp(), connection.audit_tcp(), connection.shadow_tcp()),
        };
        let shadowed = |result: ShadowResult<'_>| (result.allowed, result.rule.map(ToString::to_string));
        Beside {
            ask: ask
                .map(|ask| (ask.provider.to_owned(), ask.rule.to_string(), ask.problem.map(str::to_owned))),
            audit: audit.map(ToString::to_string),
            shadow_deny: shadow.deny.map(shadowed),
            shadow_allow: shadow.allow.map(shadowed),
        }
    })
}

pub(crate) fn decide(policies: &[Authorization], call: &str) -> Outcome {
    decide_in(&mesh("cluster.local", &[]), policies, call)
}

/// Whether a policy `foo/p` with this one rule matches: judged as ALLOW, and for HTTP as DENY too, which must agree.
pub(crate) fn matches(rule: &str, call: &str) -> bool {
    let allowed = decide(&[with_rule(Action::Allow, rule)], call).allowed;
    let denied = !decide(&[with_rule(Action::Deny, rule)], call).allowed;
    let tcp = serde_saphyr::from_str::<Call>(call).expect(call).tcp;
    assert!(tcp || allowed == denied, "ALLOW and DENY disagree on {rule} and {call}");
    allowed
}

/// Checks rows of rule, request and whether they match.
pub(crate) fn check(rows: &[(&str, &str, bool)]) {
    for (rule, call, expected) in rows {
        assert_eq!(matches(rule, call), *expected, "rule {rule}\ncall {call}");
    }
}
