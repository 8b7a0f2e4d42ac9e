//! What a workload enforces.

use anyhow::Result;
use maille_analysis::authz::{Provider, Providers};
use maille_config::istio::Action;
use maille_core::PortProtocol;
use maille_policy::Authorization;
use maille_policy::authentication::{JwtRule, RequestAuthentication};
use serde_json::{Value, json};

use super::CheckArgs;
use super::held::{Held, held};
use super::{rules, token};
use crate::Outcome;
use crate::output::{aligned, out, write_out};

pub(super) async fn run(args: &CheckArgs, pod: &str) -> Result<Outcome> {
    let held = held(args, pod).await?;
    if args.output.is_some() {
        out!("{}", serde_json::to_string_pretty(&as_json(&held))?);
    } else {
        write_out(&for_people(&held));
    }
    Ok(Outcome::Fine)
}

fn for_people(held: &Held) -> String {
    let mut text = format!("Pod {}/{}, {}\n\n", held.pod.namespace, held.pod.name, held.identity);
    if !held.policy.meshed {
        return text + "no sidecar: nothing is enforced\n";
    }
    text.push_str(&ports(held));
    text.push('\n');
    text.push_str(&authentications(held));
    if held.policy.policies.is_empty() {
        text.push_str("no AuthorizationPolicy: everything that a port accepts is allowed\n");
        return text;
    }
    let policies = ordered(&held.policy.policies);
    let header = ["ACTION", "AuthorizationPolicy", "RULES", "NOTE"].map(str::to_owned).to_vec();
    let rows = policies.iter().map(|p| {
        let name = format!("{}.{}", p.name, p.namespace);
        vec![action(p).to_owned(), name, p.spec.rules.len().to_string(), note(p)]
    });
    text.push_str(&aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    for policy in policies {
        let said = match policy.spec.action {
            _ if policy.dry_run => ", as a dry run: it decides nothing".to_owned(),
            Action::Audit => ": it marks what it matches, and decides nothing".to_owned(),
            Action::Custom => format!(": {}", asks(policy, held)),
            Action::Allow | Action::Deny => String::new(),
        };
        text.push_str(&format!("\n{} {}/{}{said}\n", action(policy), policy.namespace, policy.name));
        match policy.spec.rules.as_slice() {
            [] if policy.spec.action == Action::Allow => {
                text.push_str(
                    "  no rule: it matches nothing, and what no other ALLOW policy allows is refused\n",
                );
            }
            [] => text.push_str("  no rule: it matches nothing\n"),
            all => {
                for (index, rule) in all.iter().enumerate() {
                    text.push_str(&format!("  rule {index}: {}\n", rules::describe(rule)));
                }
            }
        }
    }
    text
}

/// What a reader of the table should know of a policy beside its action.
fn note(policy: &Authorization) -> String {
    match (&policy.spec.provider, policy.dry_run) {
        (_, true) => "dry run".to_owned(),
        (Some(provider), false) => format!("asks {}", provider.name),
        (None, false) => "-".to_owned(),
    }
}

/// Whom a CUSTOM policy asks, as far as the proxy knows it.
fn asks(policy: &Authorization, held: &Held) -> String {
    let name = policy.spec.provider.as_ref().map(|provider| provider.name.as_str()).unwrap_or_default();
    let custom = held.policy.policies.iter().filter(|policy| policy.spec.action == Action::Custom);
    let several = custom.filter_map(|policy| policy.spec.provider.as_ref()).any(|other| other.name != name);
    let found = match &held.providers {
        Providers::Known(all) => all.iter().find(|provider| provider.name == name),
        Providers::Unknown => None,
    };
    let refuses = "what it matches is refused with 403";
    match found {
        _ if several => format!("the policies of the workload ask several providers, so that {refuses}"),
        None => format!("the mesh has no extension provider {name}, so that {refuses}"),
        Some(Provider { problem: Some(problem), .. }) => {
            format!("provider {name} cannot be used ({problem}), so that {refuses}")
        }
        Some(provider) => {
            let form = if provider.asks_tcp { "gRPC" } else { "HTTP, so that TCP passes unasked" };
            let open = if provider.fail_open { ", and whose failure counts as a yes" } else { "" };
            format!("it asks provider {name} at {} ({form}){open}", provider.address)
        }
    }
}

/// Who may issue tokens, and whether they can be verified.
fn authentications(held: &Held) -> String {
    let rules = held.authentications.iter().flat_map(|one| one.rules.iter().map(move |rule| (one, rule)));
    let mut lines =
        vec![["RequestAuthentication", "ISSUER", "AUDIENCES", "KEYS"].map(str::to_owned).to_vec()];
    for (one, rule) in rules {
        let or = |text: String, empty: &str| if text.is_empty() { empty.to_owned() } else { text };
        lines.push(vec![
            format!("{}.{}", one.name, one.namespace),
            or(rule.issuer.clone(), "any"),
            or(rule.audiences.join(","), "any"),
            token::keys(rule),
        ]);
    }
    if lines.len() == 1 { String::new() } else { aligned(&lines) + "\n" }
}

/// What each port accepts.
fn ports(held: &Held) -> String {
    let (policy, header) = (&held.policy, ["PORT", "PROTOCOL", "MTLS", "SERVICE"]);
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    let mut numbers: Vec<u16> = policy.ports.keys().chain(policy.mtls.ports.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let (protocol, service) = match policy.ports.get(&number) {
            Some((protocol, service)) => (protocol_name(*protocol), service.as_str()),
            None => ("auto", "-"),
        };
        lines.push(vec![
            number.to_string(),
            protocol.to_owned(),
            policy.mtls.for_port(number).as_str().to_owned(),
            service.to_owned(),
        ]);
    }
    lines.push(vec!["other".into(), "auto".into(), policy.mtls.mode.as_str().into(), "-".into()]);
    aligned(&lines)
}

/// In the order of istioctl: DENY, ALLOW, LOG, CUSTOM, and by name.
fn ordered(policies: &[Authorization]) -> Vec<&Authorization> {
    let rank = |action: Action| match action {
        Action::Deny => 0,
        Action::Allow => 1,
        Action::Audit => 2,
        Action::Custom => 3,
    };
    let mut all: Vec<_> = policies.iter().collect();
    all.sort_by_key(|policy| (rank(policy.spec.action), format!("{}.{}", policy.name, policy.namespace)));
    all
}

fn action(policy: &Authorization) -> &'static str {
    match policy.spec.action {
        Action::Deny => "DENY",
        Action::Allow => "ALLOW",
        Action::Audit => "LOG",
        Action::Custom => "CUSTOM",
    }
}

fn protocol_name(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Auto => "auto",
        PortProtocol::Http => "http",
        PortProtocol::Http2 => "http2",
        PortProtocol::Tcp => "tcp",
    }
}

fn as_json(held: &Held) -> Value {
    let policy = &held.policy;
    let port = |(number, (protocol, service)): (&u16, &(PortProtocol, String))| {
        json!({
            "port": number,
            "protocol": protocol_name(*protocol),
            "mtls": policy.mtls.for_port(*number).as_str(),
            "service": service,
        })
    };
    let one = |p: &&Authorization| {
        json!({
            "action": action(p),
            "policy": format!("{}/{}", p.namespace, p.name),
            "dryRun": p.dry_run,
            "provider": p.spec.provider.as_ref().map(|provider| &provider.name),
            "rules": p.spec.rules,
        })
    };
    let rule = |rule: &JwtRule| {
        json!({
            "issuer": rule.issuer,
            "audiences": rule.audiences,
            "keys": token::key_names(rule).ok(),
            "problem": token::key_names(rule).err(),
        })
    };
    let authentication = |one: &RequestAuthentication| {
        json!({
            "name": format!("{}/{}", one.namespace, one.name),
            "rules": one.rules.iter().map(rule).collect::<Vec<_>>(),
        })
    };
    let modes = policy.mtls.ports.iter().map(|(port, mode)| (port.to_string(), json!(mode.as_str())));
    json!({
        "pod": format!("{}/{}", held.pod.namespace, held.pod.name),
        "identity": held.identity,
        "source": if held.generation.is_some() { "proxy" } else { "api" },
        "generation": held.generation,
        "sidecar": policy.meshed,
        "mtls": {"mode": policy.mtls.mode.as_str(), "ports": modes.collect::<serde_json::Map<_, _>>()},
        "ports": policy.ports.iter().map(port).collect::<Vec<_>>(),
        "requestAuthentications": held.authentications.iter().map(authentication).collect::<Vec<_>>(),
        "policies": ordered(&policy.policies).iter().map(one).collect::<Vec<_>>(),
    })
}
