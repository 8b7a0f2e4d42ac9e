use maille_config::istio::{self, AuthorizationPolicy};
use maille_config::scope::Attachment;
use maille_core::NamespacedName;
use maille_proto::facts as wire;
use maille_xds::type_urls::AUTHORIZATION;

use super::{Fact, targets};
use crate::world::Pod;

/// Annotation that makes a policy a shadow (reference authorization 14).
const DRY_RUN: &str = "istio.io/dry-run";

/// One AuthorizationPolicy: whom it selects, and the fact it is for those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    namespace: String,
    name: String,
    attachment: Attachment,
    targets: String,
    /// The external authorizer of a CUSTOM policy.
    provider: Option<String>,
    fact: Fact,
}

impl Policy {
    /// Reads a policy.
    pub fn of(policy: &AuthorizationPolicy) -> Self {
        let message = authorization(policy);
        let asks = policy.spec.action == istio::Action::Custom;
        Self {
            namespace: message.namespace.clone(),
            name: message.name.clone(),
            attachment: Attachment::from(&policy.spec),
            targets: targets(policy.spec.target_refs.as_ref(), policy.spec.target_ref.as_ref()),
            provider: asks.then(|| message.provider.clone()),
            fact: Fact::of(AUTHORIZATION, &message),
        }
    }

    /// Namespace and name.
    pub fn name(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.clone(), self.name.clone())
    }

    /// The resource's name.
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The fact.
    pub fn fact(&self) -> &Fact {
        &self.fact
    }

    /// Whether the policy applies to a pod (reference authorization 2).
    pub fn applies_to(&self, pod: &Pod, root_namespace: &str) -> bool {
        self.attachment.applies(&self.namespace, root_namespace, (&pod.name.namespace, &pod.labels))
    }

    /// The gateways and services that it is attached to, for people.
    pub fn targets(&self) -> &str {
        &self.targets
    }

    /// What it is attached to.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The external authorizer that a CUSTOM policy asks.
    pub fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
    }
}

fn authorization(policy: &AuthorizationPolicy) -> wire::Authorization {
    use wire::authorization::Action;
    let action = match policy.spec.action {
        istio::Action::Allow => Action::Allow,
        istio::Action::Deny => Action::Deny,
        istio::Action::Audit => Action::Audit,
        istio::Action::Custom => Action::Custom,
    };
    let annotation = policy.metadata.annotations.as_ref().and_then(|a| a.get(DRY_RUN));
    wire::Authorization {
        namespace: policy.metadata.namespace.clone().unwrap_or_default(),
        name: policy.metadata.name.clone().unwrap_or_default(),
        action: action.into(),
        // A Go boolean; anything else is not dry-run, so that a typing error does not switch a policy off.
        dry_run: annotation.is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "TRUE" | "true" | "True")),
        rules: policy.spec.rules.iter().map(rule).collect(),
        provider: policy.spec.provider.as_ref().map(|provider| provider.name.clone()).unwrap_or_default(),
    }
}

fn rule(rule: &istio::Rule) -> wire::Rule {
    wire::Rule {
        from: rule.from.iter().map(|from| source(from.source.clone().unwrap_or_default())).collect(),
        to: rule.to.iter().map(|to| operation(to.operation.clone().unwrap_or_default())).collect(),
        when: rule.when.iter().cloned().map(condition).collect(),
    }
}

// The fields are taken apart by name, so that a field added to the kind cannot be forgotten here.

fn source(source: istio::Source) -> wire::Source {
    let istio::Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        trust_domains,
        not_trust_domains,
    } = source;
    wire::Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        trust_domains,
        not_trust_domains,
    }
}

fn operation(operation: istio::Operation) -> wire::Operation {
    let istio::Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } =
        operation;
    wire::Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths }
}

fn condition(condition: istio::Condition) -> wire::Condition {
    let istio::Condition { key, values, not_values } = condition;
    wire::Condition { key, values, not_values }
}
