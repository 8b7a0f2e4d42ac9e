//! IST0174: DestinationRules for hosts that nothing declares.

use maille_config::HostPattern;
use maille_config::destination_rule::host_of;
use maille_core::CLUSTER_DOMAIN;

use crate::code::UNKNOWN_DESTINATION_RULE_HOST;
use crate::mesh::Mesh;
use crate::report::Report;

use super::names::nearest;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for rule in &mesh.destination_rules {
        let pattern = host_of(&rule.object, CLUSTER_DOMAIN);
        let mut hosts: Vec<String> = mesh.services.iter().map(crate::mesh::Service::host).collect();
        for entry in &mesh.service_entries {
            let visible = maille_config::exported_to(
                &entry.object.spec.export_to,
                entry.resource.namespace().unwrap_or_default(),
                rule.resource.namespace().unwrap_or_default(),
            );
            if visible {
                hosts.extend(entry.object.spec.hosts.iter().map(|host| host.to_ascii_lowercase()));
            }
        }
        let known = |host: &String| {
            let host = HostPattern::new(host);
            // A rule for one host of a wildcard entry is meant for that entry.
            pattern.covers(&host) || host.covers(&pattern)
        };
        if hosts.iter().any(known) || pattern.as_str() == "*" {
            continue;
        }
        let written = &rule.object.spec.host;
        let hint = match written.split('.').collect::<Vec<_>>().as_slice() {
            [name] => mesh.services.iter().find(|s| s.name == *name).map(|service| {
                format!(
                    "a name without a dot is a Service of the rule's own namespace; write {}",
                    service.host()
                )
            }),
            // Not completed, though curl's users are used to it.
            [name, namespace] | [name, namespace, "svc"] => {
                let meant = mesh.services.iter().find(|s| s.name == *name && s.namespace == *namespace);
                meant.map(|service| format!("names with a dot are not completed; write {}", service.host()))
            }
            _ => None,
        };
        let hint = hint
            .or_else(|| {
                let near = nearest(pattern.as_str(), hosts.iter().map(String::as_str))?;
                Some(format!("did you mean {near}?"))
            })
            .unwrap_or_else(|| {
                "the rule has no effect until a Service or ServiceEntry has this host".to_owned()
            });
        let text = format!("host '{written}' is in no Service and no visible ServiceEntry; {hint}");
        report.add(&UNKNOWN_DESTINATION_RULE_HOST, rule.resource, "spec.host", text);
    }
}
