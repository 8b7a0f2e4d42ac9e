//! What a workload enforces.

use anyhow::Result;
use maille_config::istio::Action;
use maille_core::PortProtocol;
use maille_policy::Authorization;
use serde_json::{Value, json};

use super::CheckArgs;
use super::held::{Held, held};
use super::rules;
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
    if held.policy.policies.is_empty() {
        text.push_str("no AuthorizationPolicy: everything that a port accepts is allowed\n");
        return text;
    }
    let policies = ordered(&held.policy.policies);
    let header = ["ACTION", "AuthorizationPolicy", "RULES"].map(str::to_owned).to_vec();
    let rows = policies.iter().map(|p| {
        vec![action(p).to_owned(), format!("{}.{}", p.name, p.namespace), p.spec.rules.len().to_string()]
    });
    text.push_str(&aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    for policy in policies {
        let shadow = if policy.dry_run { ", as a dry run: it decides nothing" } else { "" };
        text.push_str(&format!("\n{} {}/{}{shadow}\n", action(policy), policy.namespace, policy.name));
        match policy.spec.rules.as_slice() {
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
            "rules": p.spec.rules,
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
        "policies": ordered(&policy.policies).iter().map(one).collect::<Vec<_>>(),
    })
}
