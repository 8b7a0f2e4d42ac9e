//! `maille ca status`: what signs, what is trusted, how far a rotation is, who is revoked.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::Result;
use maille_control::RevocationStatus;
use maille_control::authority::{Phase, Status};
use maille_pki::{CertificateDer, Description};
use maille_proto::facts::ConfigDump;
use serde_json::{Value, json};

use super::asking::{Asked, now};
use super::described::{distance, moment, of_millis, short, to_json};
use super::{roots, rotation, serving};
use crate::Outcome;
use crate::commands::admin::MeshArgs;
use crate::output::{aligned, out, write_out};

/// Shows the authority: what signs and until when, which roots are trusted, per trust domain, how far a rotation is and
/// whom it waits for, how many are revoked and where that is in force, and what the log of issued certificates has.
///
/// -o json prints {"authority", "phase", "sinceMs", "rotation", "last", "answer", "problems", "warnings", "chain", "trust",
/// "revocations", "issued"}: the first eight as the control plane's GET /ca, "chain" what the control plane serves with
/// (its own certificate first, then the authority's, without the root), "trust" the roots by trust domain.
///
/// Exit code 1 if a rotation waits, something has expired, or the control plane names a problem.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct StatusArgs {
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(super) async fn run(args: StatusArgs) -> Result<Outcome> {
    let asked = Asked::connect(&args.mesh).await?;
    let seen = Seen::of(&asked).await?;
    match args.output {
        Some(_) => out!("{}", serde_json::to_string_pretty(&seen.to_json()?)?),
        None => write_out(&aligned(&seen.table(now()))),
    }
    Ok(if seen.is_fine(now()) { Outcome::Fine } else { Outcome::NotFine })
}

/// Everything that is shown.
struct Seen {
    status: Status,
    /// What the control plane serves with, or why that cannot be seen.
    chain: Result<Vec<Description>, String>,
    /// Roots by trust domain.
    trust: BTreeMap<String, Vec<Description>>,
    revocations: Result<RevocationStatus, String>,
    issued: Result<Value, String>,
}

impl Seen {
    async fn of(asked: &Asked) -> Result<Self> {
        let status = rotation::status(asked).await?;
        let told = |error: anyhow::Error| format!("{error:#}");
        let bundle = roots::distributed(asked).await;
        let chain = match (&bundle, asked.control_planes().await?.first()) {
            (Ok(bundle), Some(pod)) => serving::chain(asked, pod, &roots::pem(bundle)).await.map_err(told),
            (Err(error), _) => Err(format!("{error:#}")),
            (_, None) => Err("there is no control plane".to_owned()),
        };
        Ok(Self {
            trust: trust(asked).await,
            chain,
            revocations: asked.first("/ca/revocations").await.map_err(told),
            issued: asked.first("/ca/issued?limit=1").await.map_err(told),
            status,
        })
    }

    fn is_fine(&self, now: SystemTime) -> bool {
        let authority = &self.status.authority;
        let certificates = authority.roots.iter().chain([&authority.signer]);
        let ends = certificates.filter_map(|one| of_millis(one.not_after_ms));
        let waits = self.status.rotation.as_ref().is_some_and(|rotation| rotation.waiting_count > 0);
        let revoked = self.revocations.as_ref().is_ok_and(|status| status.problems.is_empty());
        self.status.problems.is_empty()
            && self.chain.is_ok()
            && revoked
            && !waits
            && ends.into_iter().all(|end| end > now)
    }

    fn to_json(&self) -> Result<Value> {
        let mut value = serde_json::to_value(&self.status)?;
        let or_error = |problem: &String| json!({"problem": problem});
        value["chain"] = match &self.chain {
            Ok(chain) => chain.iter().map(to_json).collect(),
            Err(problem) => or_error(problem),
        };
        let of_domain = |roots: &Vec<Description>| roots.iter().map(to_json).collect::<Value>();
        value["trust"] =
            self.trust.iter().map(|(domain, roots)| (domain.clone(), of_domain(roots))).collect();
        value["revocations"] = match &self.revocations {
            Ok(status) => serde_json::to_value(status)?,
            Err(problem) => or_error(problem),
        };
        value["issued"] = self.issued.as_ref().map_or_else(or_error, |issued| issued["log"].clone());
        Ok(value)
    }

    /// Lines of a heading and what it says.
    fn table(&self, now: SystemTime) -> Vec<Vec<String>> {
        let mut lines = Vec::new();
        let mut line = |name: &str, text: String| lines.push(vec![name.to_owned(), text]);
        let status = &self.status;
        let kind = if rotation::is_self_signed(&status.authority) { "self-signed" } else { "plugged in" };
        line("authority", format!("{kind}, Secret {}", status.authority.source));
        let signer = &status.authority.signer;
        let key = self.key_of(&signer.fingerprint).map(|key| format!(", {key}")).unwrap_or_default();
        line("signs", format!("{}{key}", rotation::certificate(signer, now)));
        match &self.chain {
            Ok(chain) => {
                for above in chain.iter().skip(1).filter(|above| above.fingerprint != signer.fingerprint) {
                    line("intermediate", certificate(above, now));
                }
                if let Some(own) = chain.first() {
                    let end = own.not_after;
                    line(
                        "serves with",
                        format!("serial {}, ends {} ({})", own.serial, moment(end), distance(end, now)),
                    );
                }
            }
            Err(problem) => line("serves with", format!("cannot be seen: {problem}")),
        }
        for (domain, roots) in &self.trust {
            for (number, root) in roots.iter().enumerate() {
                let what = format!("{domain}: {}", certificate(root, now));
                line(if number == 0 { "trusts" } else { "" }, what);
            }
        }
        line("rotation", self.rotation(now));
        if let Some(rotation) = &status.rotation {
            for who in rotation::waiting(&rotation.waiting, rotation.waiting_count, now) {
                line("  waiting for", who);
            }
            for name in &rotation.waived {
                line("  not for", name.clone());
            }
            if let Some(advice) = rotation::advice(rotation) {
                line("", advice);
            }
        }
        line("revoked", self.revoked());
        if let Ok(status) = &self.revocations {
            status.problems.iter().for_each(|problem| line("  problem", problem.clone()));
            status
                .waiting
                .iter()
                .take(5)
                .for_each(|one| line("  not at", format!("{}: {}", one.name, one.why)));
        }
        line("log", self.log());
        status.problems.iter().for_each(|problem| line("problem", problem.clone()));
        status.warnings.iter().for_each(|warning| line("warning", warning.clone()));
        lines
    }

    /// Kind of key of a certificate that has been seen whole.
    fn key_of(&self, fingerprint: &str) -> Option<&str> {
        let seen = self.chain.iter().flatten().chain(self.trust.values().flatten());
        seen.filter(|one| one.fingerprint == fingerprint).map(|one| one.key.as_str()).next()
    }

    fn rotation(&self, now: SystemTime) -> String {
        let since = of_millis(self.status.since_ms).map(|since| distance(since, now));
        match (&self.status.rotation, &self.status.last) {
            (Some(rotation), _) if self.status.phase != Phase::Idle => format!(
                "{}{}; {} ({}), begun {}",
                if rotation.backwards { "back, " } else { "" },
                rotation::step(self.status.phase),
                rotation::progress(rotation),
                rotation.cause,
                of_millis(rotation.started_ms).map(|at| distance(at, now)).unwrap_or_default()
            ),
            (_, Some(last)) => format!(
                "{}; the last one {} {}",
                rotation::step(Phase::Idle),
                if last.rolled_back { "was rolled back" } else { "ended" },
                of_millis(last.ended_ms)
                    .or(of_millis(self.status.since_ms))
                    .map(|at| distance(at, now))
                    .unwrap_or_default()
            ),
            _ => match since {
                Some(_) => rotation::step(Phase::Idle).to_owned(),
                None => format!("{}, and none ever was", rotation::step(Phase::Idle)),
            },
        }
    }

    fn revoked(&self) -> String {
        match &self.revocations {
            Ok(RevocationStatus { serials, identities, crls, connected, in_force, .. }) => {
                let lists =
                    if *crls == 0 { String::new() } else { format!(", {crls} revocation lists of the CA") };
                format!(
                    "{} identities, {} certificates{lists}; in force at {in_force} of {connected} connected proxies",
                    identities.len(),
                    serials.len()
                )
            }
            Err(problem) => format!("cannot be seen: {problem}"),
        }
    }

    fn log(&self) -> String {
        let issued = match &self.issued {
            Ok(issued) => issued,
            Err(problem) => return format!("cannot be seen: {problem}"),
        };
        super::issued::log_state(&issued["log"])
    }
}

fn certificate(certificate: &Description, now: SystemTime) -> String {
    let end = certificate.not_after;
    let subject = &certificate.subject;
    format!(
        "{subject} {}, {}, ends {} ({})",
        short(&certificate.fingerprint),
        certificate.key,
        moment(end),
        distance(end, now)
    )
}

/// The roots of every trust domain that proxies are told of; empty if there is no proxy to ask about.
async fn trust(asked: &Asked) -> BTreeMap<String, Vec<Description>> {
    facts_of_a_proxy(asked).await.map(|dump| by_domain(&dump)).unwrap_or_default()
}

/// What the control plane means some connected proxy to hold.
pub(crate) async fn facts_of_a_proxy(asked: &Asked) -> Option<ConfigDump> {
    let answer: Value = asked.first("/proxies").await.ok()?;
    let uid = answer["proxies"].as_array()?.iter().find_map(|proxy| proxy["uid"].as_str())?;
    asked.first(&format!("/facts?proxy={uid}")).await.ok()
}

/// The roots in a dump of facts.
pub(crate) fn by_domain(dump: &ConfigDump) -> BTreeMap<String, Vec<Description>> {
    let bundles = dump.facts.iter().flat_map(|facts| &facts.trust_bundles);
    bundles
        .map(|bundle| {
            let certificates = bundle.roots.iter().map(|der| CertificateDer::from(der.to_vec()));
            let described = certificates.filter_map(|der| maille_pki::describe(&der).ok()).collect();
            (bundle.trust_domain.clone(), described)
        })
        .collect()
}
