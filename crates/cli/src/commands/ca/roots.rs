//! `maille ca roots`: what the mesh's proxies are told to trust.

use std::time::SystemTime;

use anyhow::{Context, Result};
use maille_pki::{CertificateDer, Description, certificate_pem};
use serde_json::{Value, json};

use super::asking::{Asked, now};
use super::described::{self, described, to_json};
use crate::Outcome;
use crate::commands::admin::MeshArgs;
use crate::output::{out, write_out};

/// The ConfigMap with the bundle, in every namespace, and its key (reference mtls 5.6).
pub(crate) const CONFIG_MAP: &str = "istio-ca-root-cert";
pub(crate) const KEY: &str = "root-cert.pem";

/// Prints the roots that the mesh distributes, as PEM: the bundle by which openssl or another mesh verifies its
/// certificates.
///
/// During a rotation these are the old roots and the new ones. -o json prints a list of {"fingerprint", "subject",
/// "issuer", "serial", "key", "notBefore", "notAfter", "pem"}; the fingerprint is the SHA-256 of the DER.
///
/// Exit code 1 if one of them is not valid now.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RootsArgs {
    /// Form of the output; PEM unless given.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(super) async fn run(args: RootsArgs) -> Result<Outcome> {
    let asked = Asked::connect(&args.mesh).await?;
    let roots = distributed(&asked).await?;
    match args.output {
        Some(_) => out!("{}", serde_json::to_string_pretty(&as_json(&roots))?),
        None => write_out(&pem(&roots)),
    }
    let now = now();
    let mut fine = true;
    for (_, root) in &roots {
        if let Some(problem) = invalid(root, now) {
            eprintln!("note: root {} {problem}", described::short(&root.fingerprint));
            fine = false;
        }
    }
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

/// The bundle that every namespace has.
pub(crate) async fn distributed(asked: &Asked) -> Result<Vec<(CertificateDer<'static>, Description)>> {
    let namespace = &asked.namespace;
    let object = asked
        .object("configmaps", CONFIG_MAP)
        .await
        .with_context(|| format!("cannot read ConfigMap {namespace}/{CONFIG_MAP}"))?;
    let object = object.with_context(|| {
        format!(
            "there is no ConfigMap {namespace}/{CONFIG_MAP}: the control plane writes it when it has its authority, and \
             so it has not started yet, or not here"
        )
    })?;
    let pem = object["data"][KEY].as_str().unwrap_or_default();
    described("root bundle", pem).with_context(|| {
        format!("ConfigMap {namespace}/{CONFIG_MAP} holds no usable bundle in its key {KEY}")
    })
}

/// The same as PEM.
pub(crate) fn pem(roots: &[(CertificateDer<'static>, Description)]) -> String {
    roots.iter().map(|(der, _)| certificate_pem(der)).collect()
}

fn as_json(roots: &[(CertificateDer<'static>, Description)]) -> Value {
    let entry = |(der, shown): &(CertificateDer<'static>, Description)| {
        let mut entry = to_json(shown);
        entry["pem"] = json!(certificate_pem(der));
        entry
    };
    Value::Array(roots.iter().map(entry).collect())
}

/// Why a certificate is of no use now, if it is not.
pub(crate) fn invalid(certificate: &Description, now: SystemTime) -> Option<String> {
    if now > certificate.not_after {
        return Some(format!("expired {}", described::distance(certificate.not_after, now)));
    }
    (now < certificate.not_before).then(|| {
        let starts = described::moment(certificate.not_before);
        format!("is not valid before {starts}; compare this machine's clock with that of the control plane")
    })
}
