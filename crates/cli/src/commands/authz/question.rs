//! One decision of a running workload.

use anyhow::{Context, Result, bail};
use maille_analysis::authz::{Answer, Question};
use maille_core::{Identity, MtlsMode, PortProtocol, TrustDomain};
use maille_policy::path::normalize;
use serde_json::{Map, Value, json};

use super::held::{Held, held};
use super::{Call, CheckArgs, offline, token};
use crate::Outcome;
use crate::output::{out, write_out};

/// Reads `NAME: VALUE`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        }
        _ => Err(format!("'{text}' is no header; write it like 'x-tier: gold'")),
    }
}

pub(super) async fn run(args: &CheckArgs, pod: &str) -> Result<Outcome> {
    let held = held(args, pod).await?;
    let caller = args.from.as_deref().map(|from| identity(from, &held.trust.trust_domain)).transpose()?;
    let port = port(&held, args.call.port)?;
    let mode = held.policy.mtls.for_port(port);
    let answer = if !held.policy.meshed {
        Answer::without_rule(true, "the workload has no sidecar, so that nothing is enforced".to_owned())
    } else if caller.is_none() && mode == MtlsMode::Strict {
        let reason = format!(
            "PeerAuthentication: port {port} is STRICT and accepts mutual TLS only; a caller in plaintext is cut off"
        );
        Answer::without_rule(false, reason)
    } else {
        match claims(args, &held, is_tcp(&held, &args.call, port))? {
            Ok(claims) => decide(&held, &args.call, port, caller.as_ref(), mode, claims)?,
            Err(refused) => Answer::without_rule(false, refused),
        }
    };
    if args.output.is_some() {
        let mut value = serde_json::to_value(&answer)?;
        if let Value::Object(members) = &mut value {
            members.insert("pod".to_owned(), json!(format!("{}/{}", held.pod.namespace, held.pod.name)));
            members.insert("port".to_owned(), json!(port));
            members.insert("mtls".to_owned(), json!(mode.as_str()));
            members
                .insert("source".to_owned(), json!(if held.generation.is_some() { "proxy" } else { "api" }));
        }
        out!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        write_out(&for_people(&held, &args.call, port, caller.as_ref(), mode, &answer));
    }
    Ok(if answer.allowed { Outcome::Fine } else { Outcome::NotFine })
}

/// Who calls.
fn identity(text: &str, trust_domain: &TrustDomain) -> Result<Identity> {
    let parts: Vec<&str> = text.split('/').collect();
    let parsed = match parts.as_slice() {
        [namespace, account] => Identity::new(trust_domain.clone(), namespace, account),
        _ if text.starts_with("spiffe://") => Identity::parse_uri(text),
        _ => Identity::parse_principal(text),
    };
    parsed.with_context(|| {
        format!("--from '{text}': write NAMESPACE/SERVICEACCOUNT, or a principal like {trust_domain}/ns/shop/sa/web")
    })
}

/// The port called: the one given, or the only one.
fn port(held: &Held, given: Option<u16>) -> Result<u16> {
    let known: Vec<u16> = held.policy.ports.keys().copied().collect();
    let listed = || known.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    match (given, known.as_slice()) {
        (Some(port), known) => {
            if !known.is_empty() && !known.contains(&port) {
                eprintln!(
                    "no Service leads to port {port} of the workload, but to {}; policies judge by the workload's port, \
                     not by the Service's",
                    listed()
                );
            }
            Ok(port)
        }
        (None, [port]) => Ok(*port),
        (None, []) => bail!("no Service declares a port of the workload; name one with --port"),
        (None, _) => bail!("the workload has several ports; name one with --port: {}", listed()),
    }
}

/// Claims of the call's token; or why the call is refused for it, which comes before any policy.
fn claims(
    args: &CheckArgs,
    held: &Held,
    tcp: bool,
) -> Result<std::result::Result<Option<Map<String, Value>>, String>> {
    if tcp {
        return Ok(Ok(None));
    }
    if let Some(file) = &args.token {
        let checked = token::check(&token::read(file)?, held);
        return Ok(match checked.claims {
            Some(claims) => Ok(Some(claims)),
            None if held.authentications.is_empty() => Ok(None),
            None => Err(format!("the token is refused with {}: {}", checked.status, checked.reason)),
        });
    }
    let Some(given) = &args.call.jwt else { return Ok(Ok(None)) };
    let text = match given.trim_start().starts_with('{') {
        true => given.clone(),
        false => std::fs::read_to_string(given).with_context(|| format!("cannot read {given}"))?,
    };
    let claims: Map<String, Value> = serde_json::from_str(&text)
        .context("--jwt is no JSON object of claims; a token itself goes to --token")?;
    let mut rules = held.authentications.iter().flat_map(|one| &one.rules).peekable();
    if rules.peek().is_none() {
        eprintln!(
            "no RequestAuthentication applies to the workload: tokens are not looked at, and claims are unknown"
        );
        return Ok(Ok(None));
    }
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    if !rules.any(|rule| rule.issuer.is_empty() || rule.issuer == issuer) {
        return Ok(Err(format!(
            "no RequestAuthentication of the workload takes tokens of issuer '{issuer}': refused with 401, Jwt issuer \
             is not configured"
        )));
    }
    Ok(Ok(Some(claims)))
}

fn is_tcp(held: &Held, call: &Call, port: u16) -> bool {
    let declared = held.policy.ports.get(&port);
    call.tcp || declared.is_some_and(|(protocol, _)| *protocol == PortProtocol::Tcp)
}

fn decide(
    held: &Held,
    call: &Call,
    port: u16,
    caller: Option<&Identity>,
    mode: MtlsMode,
    claims: Option<Map<String, Value>>,
) -> Result<Answer> {
    // A port that takes plaintext only learns of nobody who it is.
    let proven = caller.filter(|_| mode != MtlsMode::Disable);
    let declared = held.policy.ports.get(&port);
    let path = normalize(held.normalization, &call.path)
        .map_err(|error| anyhow::anyhow!("--path '{}' would be answered with 400: {error}", call.path))?;
    let host = call.host.clone().or_else(|| declared.map(|(_, service)| service.clone()));
    let mut headers: serde_json::Map<String, Value> = serde_json::Map::new();
    for (name, value) in &call.headers {
        if let Value::Array(values) = headers.entry(name.clone()).or_insert_with(|| json!([])) {
            values.push(json!(value));
        }
    }
    let request = json!({"request": {
        "source_principal": proven.map(ToString::to_string),
        "source_ip": call.source_ip,
        "destination_port": port,
        "protocol": if is_tcp(held, call, port) { "tcp" } else { "http" },
        "method": call.method,
        "path": path,
        "host": host,
        "headers": headers,
        "jwt": claims,
    }});
    let question: Question = serde_json::from_value(request).context("the request cannot be asked")?;
    Ok(held.judge().decide(&question.request))
}

fn for_people(
    held: &Held,
    call: &Call,
    port: u16,
    caller: Option<&Identity>,
    mode: MtlsMode,
    answer: &Answer,
) -> String {
    let from = match caller {
        Some(identity) if mode == MtlsMode::Disable => {
            format!("{identity}, unproven: the port takes plaintext only, so that nobody's identity is known")
        }
        Some(identity) => identity.to_string(),
        None => "plaintext, no identity".to_owned(),
    };
    let what = match is_tcp(held, call, port) {
        true => "TCP".to_owned(),
        false => format!("{} {}", call.method, call.path),
    };
    let mut lines = vec![
        ("to", format!("Pod {}/{}, port {port} ({})", held.pod.namespace, held.pod.name, mode.as_str())),
        ("from", from),
        ("request", what),
    ];
    lines.extend(offline::why(answer));
    let lines = lines.into_iter().map(|(name, text)| format!("   {name:<9} {}\n", offline::one_line(&text)));
    format!("{}\n{}", offline::verdict(answer), lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_named_in_three_ways() {
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let read = |text: &str| identity(text, &domain).map(|id| id.to_string()).ok();
        let expected = Some("cluster.local/ns/shop/sa/web".to_owned());
        for text in ["shop/web", "cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web"] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(read("web"), None);
        assert_eq!(read("a/b/c"), None);
    }

    #[test]
    fn headers_are_read_without_case_and_blanks() {
        assert_eq!(header("X-Tier:  gold "), Ok(("x-tier".into(), "gold".into())));
        assert!(header("gold").is_err() && header(": gold").is_err());
    }
}
