//! Mutual TLS and policies of a workload: what the objects say, and what its proxy does.

use std::collections::BTreeMap;

use maille_config::istio::{Action, AuthorizationPolicy};
use maille_config::k8s::api::core::v1::Pod;
use maille_config::k8s::meta::ObjectMeta;
use maille_config::mtls::{ResolvedMtls, resolve};
use maille_config::scope::Attachment;
use maille_core::{Labels, MtlsMode, Selector};
use maille_proto::facts as wire;
use wire::authorization::Action as Held;

use super::Report;
use super::facts::Facts;
use super::pod::Proxy;

pub(super) fn labels_of(pod: &Pod) -> Labels {
    pod.metadata.labels.clone().unwrap_or_default()
}

fn resolved(facts: &Facts, pod: &Pod) -> ResolvedMtls {
    resolve(&facts.peer_authentications, &facts.root_namespace, &facts.namespace, &labels_of(pod))
}

/// istioctl's section, and whether the proxy agrees.
pub(super) fn peer_authentication(facts: &Facts, pod: &Pod, proxy: &Proxy, report: &mut Report) {
    let resolved = resolved(facts, pod);
    report.line("Effective PeerAuthentication:");
    report.line(format!("   Workload mTLS mode: {}", resolved.mode.as_str()));
    if !resolved.ports.is_empty() {
        report.line("   Port Level mTLS mode:");
        for (port, mode) in &resolved.ports {
            report.line(format!("      {port}: {}", mode.as_str()));
        }
    }
    let applied = applied(facts, &labels_of(pod));
    if !applied.is_empty() {
        report.line("Applied PeerAuthentication:");
        report.line(format!("   {}", applied.join(", ")));
    }
    let Some(held) = proxy.dump.facts.as_ref().and_then(|facts| facts.inbound.as_ref()) else {
        report.warn("", "Proxy has no facts of its own workload yet, and serves nothing");
        return;
    };
    if held.mode().as_core() != resolved.mode {
        report.warn(
            "",
            format!(
                "Proxy is stale; it enforces {} where the objects say {}",
                held.mode().as_core().as_str(),
                resolved.mode.as_str()
            ),
        );
    }
    let of_held: BTreeMap<u16, MtlsMode> = held
        .port_modes
        .iter()
        .filter_map(|(port, mode)| {
            Some((u16::try_from(*port).ok()?, wire::MtlsMode::try_from(*mode).ok()?.as_core()))
        })
        .collect();
    let numbers: std::collections::BTreeSet<u16> =
        of_held.keys().chain(resolved.ports.keys()).copied().collect();
    for port in numbers {
        let enforced = of_held.get(&port).copied().unwrap_or(held.mode().as_core());
        let meant = resolved.for_port(port);
        if enforced != meant {
            report.warn(
                "",
                format!(
                    "Proxy is stale; on port {port} it enforces {} where the objects say {}",
                    enforced.as_str(),
                    meant.as_str()
                ),
            );
        }
    }
}

trait AsCore {
    fn as_core(&self) -> MtlsMode;
}

impl AsCore for wire::MtlsMode {
    /// As a proxy reads it: what it does not know is STRICT.
    fn as_core(&self) -> MtlsMode {
        match self {
            Self::Disable => MtlsMode::Disable,
            Self::Permissive => MtlsMode::Permissive,
            Self::Strict | Self::Unspecified => MtlsMode::Strict,
        }
    }
}

/// The policies that concern the workload, the root namespace's first (reference mtls 1.2).
fn applied(facts: &Facts, labels: &Labels) -> Vec<String> {
    let mut names = Vec::new();
    for namespace in [&facts.root_namespace, &facts.namespace] {
        let is_root = *namespace == facts.root_namespace;
        for policy in &facts.peer_authentications {
            let pairs = policy.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
            let selector = Selector::new(pairs);
            // PA-2: a selector in the root namespace selects nothing.
            let selects = selector.is_empty() || (!is_root && selector.selects(labels));
            if policy.metadata.namespace.as_ref() == Some(namespace) && selects {
                let name = name_of(&policy.metadata);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    names
}

/// `<name>.<namespace>`.
pub(super) fn name_of(meta: &ObjectMeta) -> String {
    format!("{}.{}", meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default())
}

/// The policies in force in the proxy, and those that should be and are not.
pub(super) fn authorization(facts: &Facts, pod: &Pod, proxy: &Proxy, report: &mut Report) {
    report.separate();
    let held = proxy.dump.facts.as_ref().map(|facts| facts.authorizations.as_slice()).unwrap_or_default();
    if held.is_empty() {
        report.line("AuthorizationPolicies: none; every caller that gets through is allowed");
    } else {
        report.line("AuthorizationPolicies:");
    }
    for action in [Held::Custom, Held::Deny, Held::Allow, Held::Audit, Held::Unspecified] {
        for policy in held.iter().filter(|policy| policy.action() == action) {
            let word = match action {
                Held::Custom => "CUSTOM",
                Held::Allow => "ALLOW",
                Held::Audit => "AUDIT",
                Held::Deny | Held::Unspecified => "DENY",
            };
            let rules = match (policy.rules.len(), action) {
                (0, Held::Allow) => "no rules: allows nothing".to_owned(),
                (0, _) => "no rules: matches nothing".to_owned(),
                (1, _) => "1 rule".to_owned(),
                (many, _) => format!("{many} rules"),
            };
            let more = match (policy.dry_run, action) {
                (true, _) => ", dry run: decides nothing".to_owned(),
                (false, Held::Audit) => ", decides nothing".to_owned(),
                (false, Held::Custom) => format!(", asks {}", policy.provider),
                (false, _) => String::new(),
            };
            report.line(format!("   {word} {}.{} ({rules}{more})", policy.name, policy.namespace));
            if let (Held::Custom, Some(why)) = (action, why_not_asked(proxy, held, policy)) {
                report.warn(
                    "      ",
                    format!("nobody can be asked, and what it matches is refused with 403: {why}"),
                );
            }
        }
    }
    let labels = labels_of(pod);
    let meant: Vec<String> = facts
        .authorization_policies
        .iter()
        .filter(|policy| applies(policy, facts, &labels))
        .map(|policy| name_of(&policy.metadata))
        .collect();
    let in_force: Vec<String> =
        held.iter().map(|policy| format!("{}.{}", policy.name, policy.namespace)).collect();
    for name in meant.iter().filter(|name| !in_force.contains(name)) {
        report.warn("", format!("Proxy is stale; it does not enforce AuthorizationPolicy {name}"));
    }
    for name in in_force.iter().filter(|name| !meant.contains(name)) {
        report.warn("", format!("Proxy is stale; AuthorizationPolicy {name} does not apply to it any more"));
    }
}

fn applies(policy: &AuthorizationPolicy, facts: &Facts, labels: &Labels) -> bool {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let workload = (facts.namespace.as_str(), labels);
    Attachment::from(&policy.spec).applies(namespace, &facts.root_namespace, workload)
}

/// Why the provider of a CUSTOM policy is not asked (reference authorization 15).
fn why_not_asked(
    proxy: &Proxy,
    held: &[wire::Authorization],
    policy: &wire::Authorization,
) -> Option<String> {
    let name = &policy.provider;
    let others = held.iter().filter(|other| other.action() == Held::Custom && other.provider != *name);
    if let Some(other) = others.map(|other| &other.provider).next() {
        return Some(format!("the policies of one workload ask several providers, {name} and {other}"));
    }
    let settings = proxy.dump.facts.as_ref().and_then(|facts| facts.mesh_settings.as_ref());
    let mut known = settings.into_iter().flat_map(|settings| &settings.extension_providers);
    match known.find(|provider| provider.name == *name) {
        None => Some(format!("the mesh's configuration has no extension provider {name}")),
        Some(provider) if !provider.problem.is_empty() => Some(provider.problem.clone()),
        Some(_) => None,
    }
}

/// What becomes of a caller without a sidecar, port by port.
pub(super) fn plaintext_callers(proxy: &Proxy, report: &mut Report) {
    let Some(facts) = &proxy.dump.facts else { return };
    let Some(inbound) = &facts.inbound else { return };
    let mut numbers: Vec<u32> =
        inbound.ports.iter().map(|port| port.port).chain(inbound.port_modes.keys().copied()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    report.line("Plaintext callers:");
    for number in numbers {
        let own = inbound.port_modes.get(&number).and_then(|mode| wire::MtlsMode::try_from(*mode).ok());
        let mode = own.unwrap_or(inbound.mode()).as_core();
        report.line(format!("   {number}: {}", verdict(mode, &facts.authorizations, number)));
    }
    report.line(format!("   others: {}", verdict(inbound.mode().as_core(), &facts.authorizations, 0)));
}

/// Port 0 stands for one that no policy names.
fn verdict(mode: MtlsMode, policies: &[wire::Authorization], port: u32) -> String {
    if mode == MtlsMode::Strict {
        return "refused, since mutual TLS is required (STRICT)".to_owned();
    }
    let enforced = || policies.iter().filter(|policy| !policy.dry_run);
    let names = |action: Held| -> Vec<String> {
        let of_action = enforced().filter(move |policy| policy.action() == action);
        let rules =
            of_action.flat_map(|policy| policy.rules.iter().enumerate().map(move |rule| (policy, rule)));
        rules
            .filter(|(_, (_, rule))| may_match_without_identity(rule, port))
            .map(|(policy, (index, _))| {
                format!("ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name)
            })
            .collect()
    };
    let denying = names(Held::Deny);
    let unless = match denying.is_empty() {
        true => String::new(),
        false => format!(", unless {} refuses", denying.join(" or ")),
    };
    let mode = mode.as_str();
    if !enforced().any(|policy| policy.action() == Held::Allow) {
        return format!("accepted ({mode}){unless}");
    }
    match names(Held::Allow).as_slice() {
        [] => format!(
            "refused by policy: the port takes plaintext ({mode}), but no ALLOW rule is for callers without identity"
        ),
        allowing => format!("accepted ({mode}) where {} allows{unless}", allowing.join(" or ")),
    }
}

/// Whether a rule can match a caller that proves nothing.
fn may_match_without_identity(rule: &wire::Rule, port: u32) -> bool {
    let needs_identity = |source: &wire::Source| {
        !source.principals.is_empty()
            || !source.namespaces.is_empty()
            || !source.service_accounts.is_empty()
            || !source.trust_domains.is_empty()
    };
    let from = rule.from.is_empty() || rule.from.iter().any(|source| !needs_identity(source));
    let text = port.to_string();
    let on_port = |operation: &wire::Operation| {
        (operation.ports.is_empty() || operation.ports.contains(&text))
            && !operation.not_ports.contains(&text)
    };
    let to = rule.to.is_empty() || rule.to.iter().any(on_port);
    let identity_keys =
        ["source.principal", "source.namespace", "source.serviceAccount", "source.trustDomain"];
    let when = rule
        .when
        .iter()
        .all(|condition| condition.values.is_empty() || !identity_keys.contains(&condition.key.as_str()));
    from && to && when
}

/// What policy there is that nothing enforces, for want of a sidecar.
pub(super) fn of_unmeshed(facts: &Facts, pod: &Pod, report: &mut Report) {
    let labels = labels_of(pod);
    let policies: Vec<String> = facts
        .authorization_policies
        .iter()
        .filter(|policy| policy.spec.action != Action::Audit && applies(policy, facts, &labels))
        .map(|policy| name_of(&policy.metadata))
        .collect();
    let mode = resolved(facts, pod).mode;
    if mode == MtlsMode::Strict || !policies.is_empty() {
        let mut unenforced = vec![format!("mTLS mode {}", mode.as_str())];
        unenforced.extend(policies.iter().map(|name| format!("AuthorizationPolicy {name}")));
        report.warn("", format!("nothing enforces {} here", unenforced.join(", ")));
    }
    report.line("Plaintext callers: accepted on every port");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(action: Held, principals: &[&str], ports: &[&str]) -> wire::Authorization {
        let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let source = wire::Source { principals: list(principals), ..Default::default() };
        let operation = wire::Operation { ports: list(ports), ..Default::default() };
        wire::Authorization {
            namespace: "shop".into(),
            name: "p".into(),
            action: action.into(),
            rules: vec![wire::Rule { from: vec![source], to: vec![operation], when: Vec::new() }],
            ..Default::default()
        }
    }

    #[test]
    fn a_plaintext_caller_is_told_what_stands_in_its_way() {
        use MtlsMode::{Permissive, Strict};
        let open = policy(Held::Allow, &[], &["9090"]);
        let named = policy(Held::Allow, &["cluster.local/ns/a/sa/b"], &[]);
        for (mode, policies, port, expected) in [
            (Strict, vec![open.clone()], 9090, "refused, since mutual TLS"),
            (Permissive, vec![], 80, "accepted (PERMISSIVE)"),
            (
                Permissive,
                vec![open.clone()],
                9090,
                "accepted (PERMISSIVE) where ns[shop]-policy[p]-rule[0] allows",
            ),
            (Permissive, vec![open], 80, "refused by policy"),
            (Permissive, vec![named], 80, "refused by policy"),
            (Permissive, vec![policy(Held::Deny, &[], &[])], 80, "unless ns[shop]-policy[p]-rule[0] refuses"),
        ] {
            let verdict = verdict(mode, &policies, port);
            assert!(verdict.contains(expected), "{verdict}");
        }
    }
}
