//! `maille delete`: objects by name, or those of files.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::objects::{find_kind, locate, read_sources};
use crate::Outcome;
use crate::client::{Api, ApiArgs, collection_path};
use crate::output::out;

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Kind, or KIND/NAME.
    kind: Option<String>,
    /// Names.
    names: Vec<String>,
    /// Delete the objects of this file or folder; `-` is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE_OR_DIR", conflicts_with_all = ["kind", "names"])]
    files: Vec<PathBuf>,
    /// Namespace.
    #[arg(short = 'n', long, default_value = "default")]
    namespace: String,
    /// What does not exist is fine.
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: DeleteArgs) -> Result<Outcome> {
    let mut targets = Vec::new();
    if let Some(kind) = &args.kind {
        let (kind, names) = match kind.split_once('/') {
            Some((kind, name)) if args.names.is_empty() => (kind, vec![name.to_owned()]),
            _ => (kind.as_str(), args.names.clone()),
        };
        if names.is_empty() {
            bail!("name what to delete: `maille delete {kind} NAME`");
        }
        let kind = find_kind(kind)?;
        let collection =
            collection_path(kind, kind.versions.first().copied().unwrap_or("v1"), Some(&args.namespace));
        for name in names {
            targets.push((format!("{collection}/{name}"), format!("{} \"{name}\"", kind.singular)));
        }
    } else if args.files.is_empty() {
        bail!("name what to delete: `maille delete KIND NAME` or `maille delete -f FILE`");
    } else {
        let documents = match super::apply::check(&read_sources(&args.files)?) {
            Ok(documents) => documents,
            Err(problem) => {
                eprint!("{problem}");
                return Ok(Outcome::NotFine);
            }
        };
        // Last to first: what was created for another goes after it.
        for document in documents.iter().rev() {
            let location = locate(&document.value, &args.namespace)?;
            targets.push((location.object, location.label));
        }
    }
    let api = Api::connect(&args.api).await?;
    let mut outcome = Outcome::Fine;
    for (path, label) in targets {
        match api.delete(&path).await {
            Ok(_) => out!("{label} deleted"),
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) if error.is_not_found() => {
                eprintln!("{error}");
                outcome = Outcome::NotFine;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(outcome)
}
