//! ML0205: identities in policies that no workload can have.

use std::collections::BTreeSet;

use crate::code::UNKNOWN_PRINCIPAL;
use crate::mesh::policy::sources;
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::nearest;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in &mesh.policies {
        for (path, rule) in policy.rules() {
            for (path, source) in sources(&path, rule) {
                for (field, values) in
                    [("principals", &source.principals), ("notPrincipals", &source.not_principals)]
                {
                    each(values, &format!("{path}.{field}"), |path, value| {
                        principal(mesh, policy, path, value, report);
                    });
                }
                for (field, values) in [
                    ("serviceAccounts", &source.service_accounts),
                    ("notServiceAccounts", &source.not_service_accounts),
                ] {
                    each(values, &format!("{path}.{field}"), |path, value| {
                        account(mesh, policy, path, value, report);
                    });
                }
            }
            for (index, when) in rule.when.iter().enumerate() {
                for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
                    let path = format!("{path}.when[{index}].{field}");
                    each(values, &path, |path, value| match when.key.as_str() {
                        "source.principal" => principal(mesh, policy, path, value, report),
                        "source.serviceAccount" => account(mesh, policy, path, value, report),
                        _ => {}
                    });
                }
            }
        }
    }
}

fn each(values: &[String], path: &str, mut visit: impl FnMut(&str, &str)) {
    for (index, value) in values.iter().enumerate() {
        visit(&format!("{path}[{index}]"), value);
    }
}

fn principal(mesh: &Mesh<'_>, policy: &Policy<'_>, path: &str, value: &str, report: &mut Report) {
    let mut say = |text: String| report.add(&UNKNOWN_PRINCIPAL, policy.resource, path, text);
    if let Some(rest) = value.strip_prefix("spiffe://") {
        return say(format!(
            "principal '{value}' never matches: principals are written without spiffe://; write '{rest}'"
        ));
    }
    // (reference authorization 6: a leading star, else a trailing one, else exact)
    if value == "*" || value.starts_with('*') || value.ends_with('*') {
        let own = |(namespace, account): &(String, String)| {
            format!("{}/ns/{namespace}/sa/{account}", mesh.settings.trust_domain)
        };
        let known = mesh.accounts.iter().map(own);
        let fits = |text: String| match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(end), _) => text.ends_with(end),
            (None, Some(start)) => text.starts_with(start),
            (None, None) => true,
        };
        let domain = value.split(['/', '*']).next().unwrap_or_default();
        let foreign = value.contains('/') && !domain.is_empty() && domain != mesh.settings.trust_domain;
        if mesh.settings.complete && !foreign && !known.into_iter().any(fits) {
            say(format!("principal '{value}' fits no ServiceAccount of the mesh"));
        }
        return;
    }
    let parts: Vec<&str> = value.split('/').collect();
    let [domain, "ns", namespace, "sa", name] = parts.as_slice() else {
        let hint = match parts.as_slice() {
            [namespace, name] => format!("{}/ns/{namespace}/sa/{name}", mesh.settings.trust_domain),
            _ => format!("{}/ns/NAMESPACE/sa/SERVICEACCOUNT", mesh.settings.trust_domain),
        };
        return say(format!(
            "principal '{value}' never matches: no identity looks so; write it like '{hint}'"
        ));
    };
    // `cluster.local` stands for the mesh's own trust domain whatever that is; others are not known here.
    if *domain == mesh.settings.trust_domain || *domain == "cluster.local" {
        exists(mesh, policy, path, &format!("principal '{value}'"), namespace, name, report);
    }
}

fn account(mesh: &Mesh<'_>, policy: &Policy<'_>, path: &str, value: &str, report: &mut Report) {
    let (namespace, name) = value.split_once('/').unwrap_or((policy.namespace.as_str(), value));
    exists(mesh, policy, path, &format!("service account '{value}'"), namespace, name, report);
}

fn exists(
    mesh: &Mesh<'_>,
    policy: &Policy<'_>,
    path: &str,
    what: &str,
    namespace: &str,
    name: &str,
    report: &mut Report,
) {
    if mesh.accounts.contains(&(namespace.to_owned(), name.to_owned())) {
        return;
    }
    let there: BTreeSet<&str> =
        mesh.accounts.iter().filter(|(n, _)| n == namespace).map(|(_, name)| name.as_str()).collect();
    // Files that say nothing of a namespace's accounts do not say that it has none.
    let known = mesh.settings.complete || there.iter().any(|name| *name != "default");
    if !known {
        return;
    }
    let hint = match nearest(name, there.iter().copied()) {
        Some(near) => format!("did you mean '{near}'?"),
        None if !mesh.namespaces.contains_key(namespace) => format!("there is no namespace {namespace}"),
        None => match mesh.accounts.iter().find(|(_, other)| other == name) {
            Some((elsewhere, _)) => format!("there is one in namespace {elsewhere}"),
            None => format!("ServiceAccounts of {namespace}: {}", super::names::list(there)),
        },
    };
    let text = format!("{what} names no ServiceAccount: {namespace}/{name} does not exist; {hint}");
    report.add(&UNKNOWN_PRINCIPAL, policy.resource, path, text);
}
