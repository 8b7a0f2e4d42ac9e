//! ML0215: rules about tokens, where no RequestAuthentication believes any that would fit (reference authorization 19,
//! 20).
//!
//! Without one, a request has no identity: no positive value matches it and every negative one does.

use std::collections::BTreeSet;

use maille_config::istio::{Action, Rule};

use crate::code::TOKEN_RULE_WITHOUT_AUTHENTICATION;
use crate::mesh::policy::sources;
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::authentications::{looks_at_tokens, selected};
use super::names::{list, nearest, workloads};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    // (workload, issuer) for all rules that hold for a workload.
    let mut believed: BTreeSet<(usize, &str)> = BTreeSet::new();
    for authentication in &mesh.request_authentications {
        for index in selected(mesh, authentication) {
            let issuers = authentication.object.spec.jwt_rules.iter().map(|rule| rule.issuer.as_str());
            believed.extend(issuers.map(|issuer| (index, issuer)));
        }
    }
    for policy in mesh.policies.iter().filter(|policy| !policy.workloads.is_empty()) {
        for (path, rule) in policy.rules() {
            without_any(mesh, policy, &path, rule, &believed, report);
            without_issuer(policy, &path, rule, &believed, report);
        }
    }
}

fn without_any(
    mesh: &Mesh<'_>,
    policy: &Policy<'_>,
    path: &str,
    rule: &Rule,
    believed: &BTreeSet<(usize, &str)>,
    report: &mut Report,
) {
    if !looks_at_tokens(rule) {
        return;
    }
    let bare: Vec<_> = policy
        .workloads
        .iter()
        .filter(|index| believed.range((**index, "")..).next().is_none_or(|(other, _)| other != *index))
        .filter_map(|index| mesh.workloads.get(*index))
        .collect();
    if bare.is_empty() {
        return;
    }
    let consequence = match policy.action() {
        Action::Allow => "what asks for a token in this rule allows nobody",
        Action::Deny => "every request counts as one without a token",
        Action::Audit | Action::Custom => "no request has an identity for this rule",
    };
    let text = format!(
        "no RequestAuthentication holds for {}, so that no token is looked at there: {consequence}; write one with \
         the issuer of the tokens",
        workloads(bare)
    );
    report.add(&TOKEN_RULE_WITHOUT_AUTHENTICATION, policy.resource, path, text);
}

/// Principals of an issuer that no workload of the policy believes; often one that was split where it was not meant.
fn without_issuer(
    policy: &Policy<'_>,
    path: &str,
    rule: &Rule,
    believed: &BTreeSet<(usize, &str)>,
    report: &mut Report,
) {
    let known: BTreeSet<&str> = believed
        .iter()
        .filter(|(index, _)| policy.workloads.contains(index))
        .map(|(_, issuer)| *issuer)
        .collect();
    // A rule without issuer believes all of them; without any rule the other finding says it all.
    if known.is_empty() || known.contains("") {
        return;
    }
    let mut named: Vec<(String, &str)> = Vec::new();
    for (path, source) in sources(path, rule) {
        for (field, values) in [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
        ] {
            let each = values.iter().enumerate();
            named.extend(each.map(|(i, value)| (format!("{path}.{field}[{i}]"), value.as_str())));
        }
    }
    for (w, when) in rule.when.iter().enumerate().filter(|(_, when)| when.key == "request.auth.principal") {
        for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
            let each = values.iter().enumerate();
            named.extend(each.map(|(i, value)| (format!("{path}.when[{w}].{field}[{i}]"), value.as_str())));
        }
    }
    for (path, value) in named {
        let Some((issuer, _)) = value.rsplit_once('/') else { continue };
        let fits = |known: &&str| match issuer.strip_prefix('*') {
            Some(suffix) => known.ends_with(suffix),
            None => *known == issuer,
        };
        if known.iter().any(fits) {
            continue;
        }
        let hint = match nearest(issuer, known.iter().copied()) {
            Some(near) => format!("did you mean '{near}/…'?"),
            None => match known.iter().find(|known| known.starts_with(value.trim_end_matches('*'))) {
                Some(whole) => format!("write '{whole}/*'"),
                None => format!("issuers are {}", list(known.iter().map(|issuer| format!("'{issuer}'")))),
            },
        };
        let text = format!(
            "'{value}' means tokens of issuer '{issuer}', which no RequestAuthentication of the policy's workloads \
             believes: what stands before the last '/' is the issuer; {hint}"
        );
        report.add(&TOKEN_RULE_WITHOUT_AUTHENTICATION, policy.resource, &path, text);
    }
}
