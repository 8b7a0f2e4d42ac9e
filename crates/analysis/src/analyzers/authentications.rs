//! IST0127: RequestAuthentications that select no workload. ML0216: key sets fetched in plaintext. ML0220: workloads that
//! believe tokens and ask for none.

use maille_config::istio::{Action, Rule};
use maille_config::scope::Attachment;

use crate::code::{KEYS_OVER_PLAINTEXT, NO_MATCHING_WORKLOADS_FOUND, TOKENS_NOT_REQUIRED};
use crate::mesh::policy::sources;
use crate::mesh::{Authentication, Mesh};
use crate::report::Report;

use super::names::workloads;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in &mesh.request_authentications {
        keys_over_plaintext(policy, report);
        let attachment = Attachment::from(&policy.object.spec);
        if attachment.has_targets() {
            continue;
        }
        let selected = selected(mesh, policy);
        if selected.is_empty() {
            selects_nobody(mesh, policy, report);
        } else {
            asks_for_none(mesh, policy, &selected, report);
        }
    }
}

/// Indices of the workloads with a sidecar for which it holds.
pub(super) fn selected(mesh: &Mesh<'_>, policy: &Authentication<'_>) -> Vec<usize> {
    let namespace = policy.resource.namespace().unwrap_or("default");
    let attachment = Attachment::from(&policy.object.spec);
    let root = &mesh.settings.root_namespace;
    let all = mesh.workloads.iter().enumerate();
    all.filter(|(_, w)| w.meshed && attachment.applies(namespace, root, (&w.namespace, &w.labels)))
        .map(|(index, _)| index)
        .collect()
}

fn keys_over_plaintext(policy: &Authentication<'_>, report: &mut Report) {
    for (i, rule) in policy.object.spec.jwt_rules.iter().enumerate() {
        let (field, url) = match (rule.jwks_uri.as_str(), rule.jwks.is_empty()) {
            ("", true) => ("issuer", rule.issuer.as_str()),
            (url, _) => ("jwksUri", url),
        };
        let plaintext = url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
        if plaintext {
            let text = format!(
                "keys are fetched from {url} in plaintext: whoever can change what the control plane reads there can \
                 sign tokens; write an https:// URL"
            );
            report.add(&KEYS_OVER_PLAINTEXT, policy.resource, &format!("spec.jwtRules[{i}].{field}"), text);
        }
    }
}

fn selects_nobody(mesh: &Mesh<'_>, policy: &Authentication<'_>, report: &mut Report) {
    let namespace = policy.resource.namespace().unwrap_or("default");
    let mesh_wide = namespace == mesh.settings.root_namespace;
    let labels = policy.object.spec.selector.as_ref().map(|selector| &selector.match_labels);
    let labels = labels.filter(|labels| !labels.is_empty());
    // A policy for the whole mesh needs nobody yet.
    if mesh_wide && labels.is_none() {
        return;
    }
    let scope = if mesh_wide { "in the mesh".to_owned() } else { format!("in namespace {namespace}") };
    let (path, text) = match labels {
        None => {
            ("metadata.namespace", format!("no workload with a sidecar {scope}: nobody looks at the tokens"))
        }
        Some(labels) => (
            "spec.selector.matchLabels",
            format!("no workload with a sidecar {scope} has the labels {}", super::names::labels(labels)),
        ),
    };
    report.add(&NO_MATCHING_WORKLOADS_FOUND, policy.resource, path, text);
}

/// A token that is there must be good; that one is there is for an AuthorizationPolicy to ask.
fn asks_for_none(mesh: &Mesh<'_>, policy: &Authentication<'_>, selected: &[usize], report: &mut Report) {
    if policy.object.spec.jwt_rules.is_empty() {
        return;
    }
    let asked = |index: &usize| {
        let mut enforced = mesh.policies.iter().filter(|p| !p.dry_run && p.workloads.contains(index));
        enforced.any(|p| {
            matches!(p.action(), Action::Allow | Action::Deny)
                && p.object.spec.rules.iter().any(looks_at_tokens)
        })
    };
    let open = selected.iter().filter(|index| !asked(index)).filter_map(|index| mesh.workloads.get(*index));
    let open: Vec<_> = open.collect();
    if !open.is_empty() {
        let text = format!(
            "requests without a token pass: no AuthorizationPolicy for {} looks at tokens; to ask for one, allow \
             requestPrincipals: [\"*\"], or deny notRequestPrincipals: [\"*\"]",
            workloads(open)
        );
        report.add(&TOKENS_NOT_REQUIRED, policy.resource, "spec.jwtRules", text);
    }
}

/// Whether what a token says can change what the rule does.
pub(super) fn looks_at_tokens(rule: &Rule) -> bool {
    let mut sources = sources("", rule);
    sources.any(|(_, s)| !s.request_principals.is_empty() || !s.not_request_principals.is_empty())
        || rule.when.iter().any(|when| when.key.starts_with("request.auth."))
}
