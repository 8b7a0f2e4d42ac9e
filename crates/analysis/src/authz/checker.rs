use std::collections::HashMap;
use std::sync::Arc;

use maille_config::istio::{AuthorizationPolicy, AuthorizationPolicySpec, RequestAuthentication};
use maille_config::mesh::MeshConfig;
use maille_config::scope::Attachment;
use maille_core::{Labels, TrustDomain};
use maille_policy::{Authorization, TrustContext};

use super::judge::{Judge, WordLists};
use super::{Answer, Providers, Question, Workload};

/// Annotation that makes a policy a shadow (reference authorization 14).
const DRY_RUN: &str = "istio.io/dry-run";

/// What policies refer to, and do not say themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Other trust domains that count as its own.
    pub aliases: Vec<TrustDomain>,
    /// The namespace of mesh-wide policy.
    pub root_namespace: String,
    /// Whom CUSTOM policies may ask.
    pub providers: Providers,
}

impl Settings {
    /// What the mesh's configuration says; a trust domain that it does not name is `trust_domain`.
    pub fn of(config: &MeshConfig, trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain: config.trust_domain.clone().unwrap_or(trust_domain),
            aliases: config.trust_domain_aliases.clone(),
            root_namespace: config.root_namespace.clone(),
            providers: Providers::Known(config.extension_providers.iter().map(Into::into).collect()),
        }
    }
}

/// Policies, ready to be asked.
#[derive(Debug)]
pub struct Checker {
    policies: Vec<Candidate<Authorization>>,
    authentications: Vec<Candidate<Vec<WordLists>>>,
    trust: TrustContext,
    providers: Providers,
    /// Compiled sets by the policies and RequestAuthentications in them: many workloads share one.
    compiled: HashMap<[Vec<usize>; 2], Arc<Judge>>,
}

/// Something that is attached to workloads.
#[derive(Debug)]
struct Candidate<T> {
    namespace: String,
    attachment: Attachment,
    what: T,
}

impl Checker {
    /// Takes checked policies; which of them concern a workload is reference authorization 2.
    pub fn new<'p>(policies: impl IntoIterator<Item = &'p AuthorizationPolicy>, settings: Settings) -> Self {
        let candidates = policies.into_iter().map(|policy| {
            let what = authorization(policy);
            let namespace = what.namespace.clone();
            Candidate { namespace, attachment: Attachment::from(&policy.spec), what }
        });
        let Settings { trust_domain, aliases, root_namespace, providers } = settings;
        Self {
            policies: candidates.collect(),
            authentications: Vec::new(),
            trust: TrustContext { trust_domain, aliases, root_namespace },
            providers,
            compiled: HashMap::new(),
        }
    }

    /// Takes RequestAuthentications too. A question's claims count as verified; what is left to say of them is which are
    /// lists of words.
    pub fn with_authentications<'a>(
        mut self,
        all: impl IntoIterator<Item = &'a RequestAuthentication>,
    ) -> Self {
        self.authentications.extend(all.into_iter().map(|one| Candidate {
            namespace: one.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            attachment: Attachment::from(&one.spec),
            what: WordLists::of(&one.spec),
        }));
        self.compiled.clear();
        self
    }

    /// Decides one question.
    pub fn decide(&mut self, question: &Question) -> Answer {
        self.judge(&question.workload).decide(&question.request)
    }

    /// `namespace/name` of the policies that select a workload.
    pub fn selected(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let chosen = self.choose(&self.policies, namespace, labels);
        let policies = chosen.iter().filter_map(|index| self.policies.get(*index));
        policies.map(|c| format!("{}/{}", c.what.namespace, c.what.name)).collect()
    }

    fn judge(&mut self, workload: &Workload) -> Arc<Judge> {
        let none = Labels::new();
        let (namespace, labels) = (workload.namespace(), workload.labels().unwrap_or(&none));
        let chosen = [
            self.choose(&self.policies, namespace, labels),
            self.choose(&self.authentications, namespace, labels),
        ];
        let Self { policies, authentications, trust, providers, compiled } = self;
        Arc::clone(compiled.entry(chosen).or_insert_with_key(|[selected, verifying]| {
            let selected = selected.iter().filter_map(|index| policies.get(*index));
            let selected: Vec<Authorization> = selected.map(|c| c.what.clone()).collect();
            let words = verifying.iter().filter_map(|index| authentications.get(*index));
            let words = words.flat_map(|c| c.what.iter().cloned()).collect();
            Arc::new(Judge::new(&selected, trust, providers.clone(), words))
        }))
    }

    fn choose<T>(&self, among: &[Candidate<T>], namespace: &str, labels: &Labels) -> Vec<usize> {
        let root = &self.trust.root_namespace;
        let applies = |c: &Candidate<T>| c.attachment.applies(&c.namespace, root, (namespace, labels));
        among.iter().enumerate().filter(|(_, c)| applies(c)).map(|(index, _)| index).collect()
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
            provider: policy.spec.provider.clone(),
            ..AuthorizationPolicySpec::default()
        },
    }
}
