//! Requests by HTTP under policies of every action: what Envoy's filters and the engine make of them.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use maille_config::istio::Action;
use maille_policy::path::{Normalization, normalize};
use maille_policy::{Authorization, Claims, DecidedBy, PolicySet, RequestAttributes, ShadowResult};
use serde_json::{Value, json};

use crate::client::Client;
use crate::keys::Key;
use crate::lab::{Lab, PORTS, addresses, cluster, http_manager, router, tcp_address};
use crate::themes::{Question, Set};
use crate::translate::{Choice, providers, rbac};
use crate::wire::{Answer, serve};
use crate::{realizable, trust};

const AUTHORIZER: u16 = 7001;
/// Says who asked the external authorizer, and what it is to answer.
const QUESTION: &str = "x-question";
const BAD_CUSTOM: &str = "-deny-due-to-bad-CUSTOM-action";
/// In place of the rule's name, since Envoy's filters name the first provider's and the engine the first policy's.
const SEVERAL_PROVIDERS: &str = "a CUSTOM rule, of several providers";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";

/// Which set decides is said by the header `x-set`; the filters are those that Istio generates, in its order.
fn configuration(sets: &[Set], key: &Key, tls: &Value) -> Value {
    let routes: Vec<Value> =
        sets.iter().enumerate().map(|(index, set)| route(index, &set.policies)).collect();
    let jwt = json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "all": {
                "local_jwks": { "inline_string": json!({ "keys": [key.jwk()] }).to_string() },
                "from_headers": [{ "name": "x-token" }],
                "payload_in_metadata": "payload",
                "normalize_payload_in_metadata": { "space_delimited_claims": ["permission", "scope"] },
            }},
            "rules": [{ "match": { "prefix": "/" }, "requires": { "requires_any": {
                "requirements": [{ "provider_name": "all" }, { "allow_missing": {} }],
            }}}],
        },
    });
    let empty = |name: &str| json!({ "name": name, "typed_config": { "@type": RBAC } });
    let authorizer = json!({
        "name": "authorizer",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "http_service": { "server_uri": { "uri": "http://authorizer", "cluster": "authorizer", "timeout": "10s" } },
            "allowed_headers": { "patterns": [{ "exact": QUESTION }] },
            "filter_enabled_metadata": {
                "filter": "envoy.filters.http.rbac",
                "path": [{ "key": "istio_ext_authz_shadow_effective_policy_id" }],
                "value": { "string_match": { "prefix": "istio-ext-authz" } },
            },
        },
    });
    let filters =
        json!([jwt, empty("custom"), authorizer, empty("audit"), empty("deny"), empty("allow"), router()]);
    let said = |name: &str, format: &str| json!({ "header": { "key": name, "value": format }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" });
    let metadata = |key: &str| format!("%DYNAMIC_METADATA(envoy.filters.http.rbac:{key})%");
    let mut reply = vec![said("x-details", "%RESPONSE_CODE_DETAILS%")];
    reply.push(said("x-audit", "%DYNAMIC_METADATA(envoy.common:access_log_hint)%"));
    for action in ["deny", "allow"] {
        for what in ["engine_result", "effective_policy_id"] {
            let format = metadata(&format!("istio_dry_run_{action}_shadow_{what}"));
            reply.push(said(&format!("x-{action}-{}", what.replace('_', "-")), &format));
        }
    }
    let manager = http_manager(routes.into(), filters, reply.into());
    let listener = |(address, port): (&str, &u16)| {
        json!({
            "name": format!("{address}-{port}"),
            "address": tcp_address(address, *port),
            "listener_filters": [{
                "name": "tls",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
            }],
            "filter_chains": [
                { "filter_chain_match": { "transport_protocol": "tls" }, "transport_socket": tls, "filters": [manager] },
                { "filter_chain_match": { "transport_protocol": "raw_buffer" }, "filters": [manager] },
            ],
        })
    };
    let all = PORTS.iter().flat_map(|port| [("::", port), ("0.0.0.0", port)]);
    let listeners: Vec<Value> = all.map(listener).collect();
    json!({ "static_resources": { "listeners": listeners, "clusters": [cluster("authorizer", AUTHORIZER)] } })
}

fn route(index: usize, policies: &[Authorization]) -> Value {
    let rules = |action: Action, dry_run: bool, provider: Option<&str>| {
        rbac(policies, Choice { action, dry_run, provider, tcp: false })
    };
    let mut overrides = serde_json::Map::new();
    let mut set = |name: &str, members: Value| {
        let filled =
            members.as_object().is_some_and(|members| members.values().any(|value| !value.is_null()));
        if filled {
            overrides.insert(name.to_owned(), json!({ "@type": PER_ROUTE, "rbac": members }));
        }
    };
    let providers = providers(policies);
    match providers.iter().collect::<Vec<_>>().as_slice() {
        [] => {}
        [only] => set(
            "custom",
            json!({
                "shadow_rules": rules(Action::Custom, false, Some(only)),
                "shadow_rules_stat_prefix": "istio_ext_authz_",
            }),
        ),
        // Several: Istio refuses what their rules match (reference authorization 15).
        several => {
            let mut all = json!({ "action": "DENY", "policies": {} });
            for provider in several {
                let more = rules(Action::Custom, false, Some(provider)).unwrap_or_default();
                for (id, rule) in more["policies"].as_object().into_iter().flatten() {
                    all["policies"][format!("{id}{BAD_CUSTOM}")] = rule.clone();
                }
            }
            set("custom", json!({ "rules": all }));
        }
    }
    set("audit", json!({ "rules": rules(Action::Audit, false, None) }));
    for (name, action) in [("deny", Action::Deny), ("allow", Action::Allow)] {
        let mut members = json!({ "rules": rules(action, false, None) });
        if let Some(shadow) = rules(action, true, None) {
            members["shadow_rules"] = shadow;
            members["shadow_rules_stat_prefix"] = format!("istio_dry_run_{name}_").into();
        }
        set(name, members);
    }
    json!({
        "match": {
            "prefix": "/",
            "headers": [{ "name": "x-set", "string_match": { "exact": index.to_string() } }],
        },
        "direct_response": { "status": 200 },
        "typed_per_filter_config": overrides,
    })
}

/// All that can be compared of one answer.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: u16,
    /// Whether the external authorizer was asked.
    asked: bool,
    /// The DENY rule that refused.
    refused_by: Option<String>,
    /// Whether an AUDIT rule marked the request; only where there is an AUDIT policy.
    audit: Option<bool>,
    /// Results of dry-run policies that were judged: action, whether allowed, rule.
    shadow: Vec<(&'static str, bool, Option<String>)>,
}

impl Outcome {
    fn of_envoy(answer: &Answer, asked: bool) -> Self {
        let header = |name: &str| answer.header(name).filter(|value| !matches!(*value, "" | "-"));
        let details = header("x-details").unwrap_or_default();
        let rule =
            details.strip_prefix("rbac_access_denied_matched_policy[").and_then(|t| t.strip_suffix(']'));
        let shadow = |action: &'static str| {
            let result = header(&format!("x-{action}-engine-result"))?;
            let rule = header(&format!("x-{action}-effective-policy-id")).map(str::to_owned);
            Some((action, result == "allowed", rule))
        };
        Self {
            status: answer.status,
            asked,
            refused_by: rule.filter(|id| *id != "none").map(|id| match id.ends_with(BAD_CUSTOM) {
                true => SEVERAL_PROVIDERS.to_owned(),
                false => id.to_owned(),
            }),
            audit: header("x-audit").map(|mark| mark == "true"),
            shadow: ["deny", "allow"].into_iter().filter_map(shadow).collect(),
        }
    }

    /// What the engine says; nothing for a path that is refused before policy.
    fn of_engine(set: &Arc<PolicySet>, question: &Question) -> Option<Self> {
        let facts = &question.facts;
        let path = normalize(Normalization::Base, &facts.path).ok()?;
        let claims = question.claims().map(|claims| Claims::new(claims, &[]));
        let remote_ip = question.forwarded();
        let request =
            RequestAttributes { path: &path, claims: claims.as_ref(), remote_ip, ..facts.request() };
        let policy = set.on_connection(&facts.connection());
        let nothing = Self { status: 403, asked: false, refused_by: None, audit: None, shadow: Vec::new() };
        let ask = policy.ask_http(&request);
        let asked = match &ask {
            // A provider that cannot be asked: refused (reference authorization 15).
            Some(ask) if ask.problem.is_some() => {
                return Some(Self { refused_by: Some(SEVERAL_PROVIDERS.to_owned()), ..nothing });
            }
            Some(_) if question.authorizer_refuses => {
                return Some(Self { status: 401, asked: true, ..nothing });
            }
            other => other.is_some(),
        };
        let audit = policy.needs().audits.then(|| policy.audit_http(&request).is_some());
        let result = |action, result: Option<ShadowResult<'_>>| {
            result.map(|result| (action, result.allowed, result.rule.map(ToString::to_string)))
        };
        let shadow = policy.shadow_http(&request);
        let (deny, allow) = (result("deny", shadow.deny), result("allow", shadow.allow));
        let decision = policy.decide_http(&request);
        let denied = decision.action == DecidedBy::DenyRule;
        // A filter that refuses tells no dry-run result, and those behind it are not reached.
        let deny = deny.filter(|_| !denied);
        let allow = allow.filter(|_| decision.is_allowed());
        Some(Self {
            status: if decision.is_allowed() { 200 } else { 403 },
            asked,
            refused_by: decision.policy.filter(|_| denied).map(ToString::to_string),
            audit,
            shadow: deny.into_iter().chain(allow).collect(),
        })
    }
}

/// Sets that one Envoy is given; with more, it takes long to start.
const SETS_AT_ONCE: usize = 250;

/// Asks every question of every set.
pub(crate) fn compare(envoy: &Path, mut sets: Vec<Set>) {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut differences = Vec::new();
    while !sets.is_empty() {
        let some = sets.drain(..sets.len().min(SETS_AT_ONCE)).collect();
        compare_some(envoy, some, &mut outcomes, &mut differences);
    }
    println!("Envoy and the engine: {outcomes:#?}");
    for difference in &differences {
        println!("{difference}\n");
    }
    assert!(differences.is_empty(), "{} differences, printed above", differences.len());
    let total = |what: &str| -> u64 {
        outcomes.iter().filter(|(name, _)| name.ends_with(what)).map(|(_, count)| count).sum()
    };
    for what in ["allowed by both", "refused by both"] {
        assert!(total(what) > 200, "too few were {what}: {outcomes:?}");
    }
}

fn compare_some(
    envoy: &Path,
    sets: Vec<Set>,
    outcomes: &mut BTreeMap<String, u64>,
    differences: &mut Vec<String>,
) {
    let key = Key::p256();
    let address = addresses().first().copied().expect("there are some");
    let ready = SocketAddr::new(address, PORTS.last().copied().unwrap_or_default());
    let lab = Lab::start(envoy, "decisions", ready, &|tls| configuration(&sets, &key, tls));
    let asked: Arc<Mutex<HashSet<String>>> = Arc::default();
    let seen_by = asked.clone();
    serve(&lab.namespace, AUTHORIZER, move |seen| {
        let question = seen.headers.iter().find(|(name, _)| name == QUESTION);
        let question = question.map(|(_, value)| value.clone()).unwrap_or_default();
        let status = if question.ends_with("refuse") { 401 } else { 200 };
        seen_by.lock().expect("no panic").insert(question);
        (status, Vec::new())
    });
    let client = Client::new(&lab);
    let mut number = 0;
    for (index, Set { theme, policies, questions }) in sets.into_iter().enumerate() {
        let set = Arc::new(PolicySet::compile(&policies, &trust()).0);
        for mut question in questions {
            number += 1;
            let count = |what: &str| format!("{theme}: {what}");
            let Some(facts) = realizable(question.facts) else {
                *outcomes.entry(count("cannot be sent")).or_default() += 1;
                continue;
            };
            question.facts = facts;
            let name = format!("{number}-{}", if question.authorizer_refuses { "refuse" } else { "allow" });
            let mut more = format!("x-set: {index}\r\n{QUESTION}: {name}\r\n");
            if let Some(claims) = question.claims() {
                let payload = json!(claims).to_string();
                let token = key.token(&json!({ "alg": "ES256" }), payload.as_bytes());
                more.push_str(&format!("x-token: {token}\r\n"));
            }
            let answer = client.ask(&question.facts, &more);
            let was_asked = asked.lock().expect("no panic").remove(&name);
            let envoy = Outcome::of_envoy(&answer, was_asked);
            let engine = Outcome::of_engine(&set, &question);
            let outcome = match (envoy.status, &engine) {
                // No request at all for Envoy, so nothing to judge; what the proxy makes of it is its own test.
                (400 | 404, _) => "malformed for Envoy",
                (_, Some(engine)) if *engine == envoy && envoy.asked => "asked by both",
                (200, Some(engine)) if *engine == envoy => "allowed by both",
                (403, Some(engine)) if *engine == envoy => "refused by both",
                _ => {
                    let policies: Vec<_> =
                        policies.iter().map(|p| (&p.name, p.dry_run, json!(p.spec).to_string())).collect();
                    differences.push(format!(
                        "{theme}, set {index}:\nEnvoy {envoy:?} {}\nengine {engine:?}\n{question:?}\n{policies:?}",
                        answer.text()
                    ));
                    "different"
                }
            };
            *outcomes.entry(count(outcome)).or_default() += 1;
        }
    }
}
