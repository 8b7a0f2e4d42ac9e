use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use maille_config::istio::{AuthorizationPolicy, AuthorizationPolicySpec};
use maille_core::{Labels, Selector, TrustDomain};
use maille_policy::{
    Authorization, ConnectionAttributes, PolicySet, RequestAttributes, TrustContext, forwarded_for,
};

use super::{Answer, Protocol, Question, Request, Workload};

/// An address that nobody named: no IPv4 block has it, and of the IPv6 blocks only `::/0`.
const UNKNOWN: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Annotation that makes a policy a shadow (reference authorization 14).
const DRY_RUN: &str = "istio.io/dry-run";

/// Names of the mesh that policies refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Other trust domains that count as its own.
    pub aliases: Vec<TrustDomain>,
    /// The namespace of mesh-wide policy.
    pub root_namespace: String,
}

/// Policies, ready to be asked.
#[derive(Debug)]
pub struct Checker {
    policies: Vec<Candidate>,
    trust: TrustContext,
    /// Compiled sets by the policies in them: many workloads share one.
    compiled: HashMap<Vec<usize>, Arc<PolicySet>>,
}

#[derive(Debug)]
struct Candidate {
    selector: Selector,
    policy: Authorization,
}

impl Checker {
    /// Takes checked policies; those attached to gateways and services by `targetRefs` concern no workload
    /// (reference authorization 2.3) and are left out.
    pub fn new<'p>(policies: impl IntoIterator<Item = &'p AuthorizationPolicy>, settings: Settings) -> Self {
        let attached = |p: &&AuthorizationPolicy| {
            p.spec.target_ref.is_some() || p.spec.target_refs.as_ref().is_some_and(|refs| !refs.is_empty())
        };
        let candidates = policies.into_iter().filter(|p| !attached(p)).map(Candidate::of).collect();
        let Settings { trust_domain, aliases, root_namespace } = settings;
        let trust = TrustContext { trust_domain, aliases, root_namespace };
        Self { policies: candidates, trust, compiled: HashMap::new() }
    }

    /// Decides one question.
    pub fn decide(&mut self, question: &Question) -> Answer {
        let set = self.set_for(&question.workload);
        decide(&set, &question.request)
    }

    /// `namespace/name` of the policies that select a workload.
    pub fn selected(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let chosen = self.choose(namespace, labels);
        let policies = chosen.iter().filter_map(|index| self.policies.get(*index));
        policies.map(|c| format!("{}/{}", c.policy.namespace, c.policy.name)).collect()
    }

    fn set_for(&mut self, workload: &Workload) -> Arc<PolicySet> {
        let none = Labels::new();
        let chosen = self.choose(workload.namespace(), workload.labels().unwrap_or(&none));
        let Self { policies, trust, compiled } = self;
        Arc::clone(compiled.entry(chosen).or_insert_with_key(|chosen| {
            let selected = chosen.iter().filter_map(|index| policies.get(*index));
            let selected: Vec<Authorization> = selected.map(|c| c.policy.clone()).collect();
            // Policies that were checked compile; one that does not refuses, and its answers say so.
            Arc::new(PolicySet::compile(&selected, trust).0)
        }))
    }

    /// Reference authorization 2.1 and 2.2.
    fn choose(&self, namespace: &str, labels: &Labels) -> Vec<usize> {
        let applies = |c: &Candidate| {
            (c.policy.namespace == namespace || c.policy.namespace == self.trust.root_namespace)
                && c.selector.selects(labels)
        };
        self.policies.iter().enumerate().filter(|(_, c)| applies(c)).map(|(index, _)| index).collect()
    }
}

impl Candidate {
    fn of(policy: &AuthorizationPolicy) -> Self {
        let pairs = policy.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
        Self { selector: Selector::new(pairs), policy: authorization(policy) }
    }
}

/// A policy as it is compiled for the workloads that it selects.
pub fn authorization(policy: &AuthorizationPolicy) -> Authorization {
    let metadata = &policy.metadata;
    let annotation = metadata.annotations.as_ref().and_then(|all| all.get(DRY_RUN));
    Authorization {
        namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: metadata.name.clone().unwrap_or_default(),
        // A Go boolean.
        dry_run: annotation.is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "TRUE" | "true" | "True")),
        spec: AuthorizationPolicySpec {
            action: policy.spec.action,
            rules: policy.spec.rules.clone(),
            ..AuthorizationPolicySpec::default()
        },
    }
}

/// What the policies of one workload say to a request.
pub fn decide_among(policies: &[Authorization], trust: &TrustContext, request: &Request) -> Answer {
    decide(&Arc::new(PolicySet::compile(policies, trust).0), request)
}

/// What compiled policies say to one request.
fn decide(set: &Arc<PolicySet>, request: &Request) -> Answer {
    let source_ip = request.source_ip().unwrap_or(UNKNOWN);
    let connection = set.on_connection(&ConnectionAttributes {
        identity: request.identity(),
        source_ip,
        remote_ip: request.remote_ip().unwrap_or(source_ip),
        destination_ip: request.destination_ip().unwrap_or(UNKNOWN),
        destination_port: request.destination_port().unwrap_or(0),
        sni: request.sni(),
    });
    match request.protocol() {
        Protocol::Tcp => {
            let decision = connection.decide_tcp();
            Answer::new(&decision, connection.explain(None, &decision))
        }
        Protocol::Http => {
            let attributes = RequestAttributes {
                method: request.method().unwrap_or_default(),
                host: request.host().unwrap_or_default(),
                path: request.path().unwrap_or_default(),
                // What the question says is right; else what a sidecar would take from the headers.
                remote_ip: request.remote_ip().or_else(|| forwarded_for(&Lines(request.headers()))),
                headers: &Lines(request.headers()),
                claims: None,
            };
            let decision = connection.decide_http(&attributes);
            Answer::new(&decision, connection.explain(Some(&attributes), &decision))
        }
    }
}

/// Headers by name, without case.
struct Lines<'r>(&'r [(String, String)]);

impl maille_policy::HeaderLookup for Lines<'_> {
    fn values<'h>(&'h self, name: &str, visit: &mut dyn FnMut(&'h [u8])) {
        self.0.values(name, visit);
    }
}
