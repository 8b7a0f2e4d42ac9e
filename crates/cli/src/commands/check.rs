//! `maille check`: what ends soon, before it does.

mod authority;
mod elsewhere;
mod finding;
mod workloads;

use anyhow::Result;
use serde_json::json;

use super::admin::MeshArgs;
use super::ca::asking::{Asked, now};
use crate::Outcome;
use crate::output::{aligned, out, write_out};
use finding::{Finding, Level, Rule};

/// Looks at every certificate that the mesh depends on, and fails before one of them ends.
///
/// What people renew (roots, signing and intermediate certificates, CRLs, credentials of DestinationRules, files mounted
/// into sidecars, webhooks) is a warning from --cert-days before its end. What renews by itself (certificates of
/// workloads and of the control plane) is a warning when less than a third of its life is left, or when its renewal
/// fails: it should have been renewed at half of it. What has ended, is not valid yet or does not verify is an error, and
/// so is a control plane that names a problem. What may not be looked at is a note.
///
/// -o json prints {"fine", "errors", "warnings", "findings": [{"level", "what", "notAfter", "message", "action"}]}; level
/// is ok, note, warning or error.
///
/// Exit code 0 if there is nothing at or above --fail-on, 1 if there is, 2 if the mesh could not be asked.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CheckArgs {
    /// Warn of what ends within so many days.
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = days, allow_negative_numbers = true)]
    cert_days: u32,
    /// What makes the command fail.
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "error")]
    fail_on: Level,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
}

fn days(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("'{text}' is no number of days, such as 30"))
}

pub(crate) async fn run(args: CheckArgs) -> Result<Outcome> {
    let asked = Asked::connect(&args.mesh).await?;
    let rule = Rule::new(now(), args.cert_days);
    let mut findings = authority::findings(&asked, &rule).await?;
    findings.extend(workloads::findings(&asked, &rule).await?);
    findings.extend(elsewhere::findings(&asked, &rule).await);
    // The worst first, and of those the one that ends first.
    findings
        .sort_by_key(|finding| (std::cmp::Reverse(finding.level), finding.not_after, finding.what.clone()));
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let fine = findings.iter().all(|finding| finding.level < args.fail_on);
    match args.output {
        Some(_) => {
            let all: Vec<_> = findings.iter().map(Finding::to_json).collect();
            let value = json!({"fine": fine, "errors": errors, "warnings": warnings, "findings": all});
            out!("{}", serde_json::to_string_pretty(&value)?);
        }
        None => {
            write_out(&aligned(&finding::table(&findings, rule.now)));
            for finding in findings.iter().filter(|finding| finding.level >= Level::Warning) {
                if let Some(action) = &finding.action {
                    eprintln!("{}: {action}", finding.what);
                }
            }
            eprintln!("{}", summary(errors, warnings, args.cert_days));
        }
    }
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

fn summary(errors: usize, warnings: usize, days: u32) -> String {
    match (errors, warnings) {
        (0, 0) => format!("nothing ends within {days} days that does not renew by itself"),
        (0, warnings) => format!("{warnings} to look at soon"),
        (errors, 0) => format!("{errors} to repair now"),
        (errors, warnings) => format!("{errors} to repair now, {warnings} to look at soon"),
    }
}
