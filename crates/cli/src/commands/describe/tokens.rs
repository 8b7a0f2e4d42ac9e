//! The tokens that a workload takes: what the objects say, and what its proxy has.

use maille_config::k8s::api::core::v1::Pod;
use maille_config::scope::Attachment;
use maille_proto::facts as wire;

use super::Report;
use super::facts::Facts;
use super::pod::Proxy;
use super::security::{labels_of, name_of};

/// The RequestAuthentications in force in the proxy, and those that should be and are not.
pub(super) fn request_authentication(facts: &Facts, pod: &Pod, proxy: &Proxy, report: &mut Report) {
    of_service(proxy, report);
    let labels = labels_of(pod);
    let workload = (facts.namespace.as_str(), &labels);
    let applies = |namespace: &str, attachment: Attachment| {
        attachment.applies(namespace, &facts.root_namespace, workload)
    };
    let meant: Vec<String> = facts
        .request_authentications
        .iter()
        .filter(|one| {
            applies(one.metadata.namespace.as_deref().unwrap_or_default(), Attachment::from(&one.spec))
        })
        .map(|one| name_of(&one.metadata))
        .collect();
    let in_force: Vec<String> =
        held(proxy).iter().map(|one| format!("{}.{}", one.name, one.namespace)).collect();
    for name in meant.iter().filter(|name| !in_force.contains(name)) {
        report.warn("", format!("Proxy is stale; it does not verify tokens by RequestAuthentication {name}"));
    }
    for name in in_force.iter().filter(|name| !meant.contains(name)) {
        report
            .warn("", format!("Proxy is stale; RequestAuthentication {name} does not apply to it any more"));
    }
}

/// Those in force; nothing is said where there are none, as istioctl says nothing.
pub(super) fn of_service(proxy: &Proxy, report: &mut Report) {
    let held = held(proxy);
    if held.is_empty() {
        return;
    }
    report.separate();
    report.line("RequestAuthentications:");
    for one in held {
        report.line(format!("   {}.{}", one.name, one.namespace));
        for rule in &one.jwt_rules {
            let issuer = if rule.issuer.is_empty() { "any issuer" } else { &rule.issuer };
            let audiences = match rule.audiences.is_empty() {
                true => "any audience".to_owned(),
                false => format!("audience {}", rule.audiences.join(" or ")),
            };
            report.line(format!("      {issuer}, {audiences}, in {}", location(rule)));
            if !rule.jwks_problem.is_empty() {
                let problem = &rule.jwks_problem;
                report.warn(
                    "      ",
                    format!("no keys, so that every token of {issuer} is refused: {problem}"),
                );
            }
        }
    }
}

fn held(proxy: &Proxy) -> &[wire::RequestAuthentication] {
    let facts = proxy.dump.facts.as_ref();
    facts.map(|facts| facts.request_authentications.as_slice()).unwrap_or_default()
}

/// Where a rule looks for tokens (reference authorization 19).
fn location(rule: &wire::JwtRule) -> String {
    let headers = rule.from_headers.iter().map(|header| format!("header {}", header.name));
    let parameters = rule.from_params.iter().map(|name| format!("query parameter {name}"));
    let cookies = rule.from_cookies.iter().map(|name| format!("cookie {name}"));
    let all: Vec<String> = headers.chain(parameters).chain(cookies).collect();
    match all.is_empty() {
        true => "header Authorization or query parameter access_token".to_owned(),
        false => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_named_replaces_the_usual_ones() {
        assert!(location(&wire::JwtRule::default()).contains("access_token"));
        let named = wire::JwtRule { from_cookies: vec!["session".into()], ..Default::default() };
        assert_eq!(location(&named), "cookie session");
    }
}
