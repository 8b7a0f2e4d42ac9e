//! The authority: roots, what signs, what the control plane serves with, a plugged-in CA's files.

use anyhow::Result;
use maille_control::RevocationStatus;
use maille_control::authority::Status;
use maille_control::revocation::CRL_KEY;
use maille_pki::{CertificateDer, Description, RevocationList};
use serde_json::Value;

use super::finding::{Finding, Level, Rule, life};
use crate::commands::ca::asking::{Asked, secret_entry};
use crate::commands::ca::described::{described, short};
use crate::commands::ca::status::{by_domain, facts_of_a_proxy};
use crate::commands::ca::{roots, rotation, serving};

/// The Secret of a plugged-in CA.
const PLUGGED_IN: &str = "cacerts";

/// An error is one of asking; everything else is a finding.
pub(super) async fn findings(asked: &Asked, rule: &Rule) -> Result<Vec<Finding>> {
    let status = rotation::status(asked).await?;
    let bundle = roots::distributed(asked).await?;
    let mut findings = of_status(&status, rule);
    let root = |root: &Description| {
        let what = format!("root {} {}", root.subject, short(&root.fingerprint));
        rule.by_people(what, life(root), replacement(&status))
    };
    findings.extend(bundle.iter().map(|(_, shown)| root(shown)));
    for pod in asked.control_planes().await? {
        match serving::chain(asked, &pod, &roots::pem(&bundle)).await {
            Ok(chain) => findings.extend(of_chain(&chain, &pod.to_string(), &status, rule)),
            Err(error) => findings.push(
                Finding::new(
                    Level::Error,
                    format!("port 15012 of {pod}"),
                    format!("proxies cannot reach it by the distributed roots: {error:#}"),
                )
                .doing(format!(
                    "`maille logs {} -n {}` says what the control plane lacks",
                    pod.name, pod.namespace
                )),
            ),
        }
    }
    findings.extend(other_domains(asked, &bundle, rule).await);
    findings.extend(plugged_in(asked, rule).await);
    match asked.first::<RevocationStatus>("/ca/revocations").await {
        Ok(status) => findings.extend(of_revocations(&status)),
        Err(error) => {
            findings.push(Finding::new(Level::Note, "revocations", format!("not looked at: {error:#}")))
        }
    }
    Ok(findings)
}

fn replacement(status: &Status) -> &'static str {
    match status.authority.source.as_str() {
        PLUGGED_IN => {
            "`maille ca rotate --to DIR` with the CA's new material; --dry-run says first what it would do"
        }
        _ => "`maille ca rotate`; --dry-run says first what it would do",
    }
}

fn of_status(status: &Status, rule: &Rule) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        status.problems.iter().map(|problem| Finding::new(Level::Error, "authority", problem)).collect();
    findings.extend(status.warnings.iter().map(|warning| Finding::new(Level::Warning, "authority", warning)));
    let Some(under_way) = &status.rotation else { return findings };
    let progress = format!("{}: {}", status.phase.name(), rotation::progress(under_way));
    if under_way.waiting_count == 0 {
        findings.push(Finding::new(Level::Ok, "rotation", progress));
        return findings;
    }
    let who = rotation::waiting(&under_way.waiting, under_way.waiting_count, rule.now).join("; ");
    let finding = Finding::new(Level::Warning, "rotation", format!("{progress}, waiting for {who}"));
    findings.push(match rotation::advice(under_way) {
        Some(advice) => finding.doing(advice),
        None => finding,
    });
    findings
}

/// The control plane's own certificate, and those between it and the roots.
fn of_chain(chain: &[Description], pod: &str, status: &Status, rule: &Rule) -> Vec<Finding> {
    let Some((own, above)) = chain.split_first() else { return Vec::new() };
    let mut findings = vec![rule.by_itself(
        format!("serving certificate of {pod}"),
        life(own),
        "the control plane renews it by itself: its log says why it has not",
    )];
    findings.extend(above.iter().map(|one| {
        let kind =
            if one.fingerprint == status.authority.signer.fingerprint { "signing" } else { "intermediate" };
        let what = format!("{kind} certificate {} {}", one.subject, short(&one.fingerprint));
        rule.by_people(what, life(one), replacement(status))
    }));
    findings
}

/// Roots of other trust domains, which others renew.
async fn other_domains(
    asked: &Asked,
    own: &[(CertificateDer<'static>, Description)],
    rule: &Rule,
) -> Vec<Finding> {
    let Some(dump) = facts_of_a_proxy(asked).await else { return Vec::new() };
    let mut findings = Vec::new();
    for (domain, roots) in by_domain(&dump) {
        let is_own = |root: &&Description| own.iter().any(|(_, known)| known.fingerprint == root.fingerprint);
        for root in roots.iter().filter(|root| !is_own(root)) {
            let what = format!("root of {domain} {}", short(&root.fingerprint));
            let action = format!(
                "ask those who run {domain} for their new root, and add it to meshConfig.caCertificates; a \
                 spiffeBundleUrl brings it by itself"
            );
            findings.push(rule.by_people(what, life(root), action));
        }
    }
    findings
}

/// What the Secret of a plugged-in CA holds, as far as one may see it. No key is read.
async fn plugged_in(asked: &Asked, rule: &Rule) -> Vec<Finding> {
    let what = format!("Secret {}/{PLUGGED_IN}", asked.namespace);
    let secret = match asked.object("secrets", PLUGGED_IN).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![Finding::new(Level::Note, what, format!("not looked at: {error}"))],
    };
    of_plugged_in(&secret, &what, rule)
}

fn of_plugged_in(secret: &Value, what: &str, rule: &Rule) -> Vec<Finding> {
    let text = |key: &str| String::from_utf8(secret_entry(secret, key)?).ok();
    let mut findings = Vec::new();
    let mut authorities = Vec::new();
    for key in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "tls.crt", "ca.crt"] {
        let Some(pem) = text(key).filter(|pem| !pem.trim().is_empty()) else { continue };
        match described("certificate", &pem) {
            Ok(found) => {
                for (der, shown) in found {
                    let what = format!("{what} {key} {}", short(&shown.fingerprint));
                    let action =
                        "replace it with the CA's next one; the control plane takes it up step by step";
                    let finding = rule.by_people(what, life(&shown), action);
                    // The same certificate stands in several entries.
                    if !authorities.contains(&der) {
                        findings.push(finding);
                        authorities.push(der);
                    }
                }
            }
            Err(error) => {
                findings.push(Finding::new(Level::Error, format!("{what} {key}"), error.to_string()))
            }
        }
    }
    if let Some(pem) = text(CRL_KEY) {
        match RevocationList::from_pem(&pem, &authorities) {
            Ok(lists) => {
                findings.extend(lists.iter().map(|list| rule.of_list(format!("{what} {CRL_KEY}"), list)))
            }
            Err(error) => {
                findings.push(Finding::new(Level::Error, format!("{what} {CRL_KEY}"), error.to_string()))
            }
        }
    }
    findings
}

fn of_revocations(status: &RevocationStatus) -> Vec<Finding> {
    let mut findings: Vec<Finding> = status
        .problems
        .iter()
        .map(|problem| {
            Finding::new(Level::Error, "revocations", problem)
                .doing("what cannot be read is not in force: repair ConfigMap istio-ca-revocations")
        })
        .collect();
    for proxy in &status.waiting {
        let message = format!("not in force: {}", proxy.why);
        findings.push(Finding::new(Level::Warning, format!("revocations at {}", proxy.name), message));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use maille_core::TrustDomain;
    use maille_pki::Authority;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plugged_in_ca_is_looked_at_once_per_certificate() {
        let now = SystemTime::now();
        let life = Duration::from_secs(20 * 86_400);
        let domain = TrustDomain::parse("cluster.local").expect("a domain");
        let authority = Authority::self_signed(&domain, now, life).expect("made");
        let data: serde_json::Map<String, Value> = authority
            .to_secret()
            .iter()
            .map(|(key, text)| ((*key).to_owned(), json!(STANDARD.encode(text.as_bytes()))))
            .collect();
        let mut secret = json!({ "data": data });
        let found = of_plugged_in(&secret, "cacerts", &Rule::new(now, 30));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].level, Level::Warning, "20 days are less than 30");
        assert_eq!(of_plugged_in(&secret, "cacerts", &Rule::new(now, 10))[0].level, Level::Ok);
        secret["data"]["cert-chain.pem"] = json!(STANDARD.encode("-----BEGIN CERTIFICATE-----\nAAAA\n"));
        secret["data"]["ca-crl.pem"] = json!(STANDARD.encode("no list"));
        let levels: Vec<Level> =
            of_plugged_in(&secret, "cacerts", &Rule::new(now, 10)).iter().map(|f| f.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Error, Level::Error]);
    }
}
