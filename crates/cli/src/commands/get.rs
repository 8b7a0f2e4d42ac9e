//! `maille get`: objects as a table, or as JSON or YAML.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::objects::find_kind;
use crate::Outcome;
use crate::client::{Api, ApiArgs, NamespaceArgs, collection_path};
use crate::output::{Format, print_table, print_value};

#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// Kind, e.g. pods, svc, peerauthentications; several joined by commas; or KIND/NAME.
    kind: String,
    /// Names; none means all.
    names: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels, e.g. app=cart.
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Form of the output.
    #[arg(short = 'o', long, value_enum)]
    output: Option<Format>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: GetArgs) -> Result<Outcome> {
    let (kinds, names) = match args.kind.split_once('/') {
        Some((kind, name)) if args.names.is_empty() => (kind.to_owned(), vec![name.to_owned()]),
        Some(_) => bail!("give either KIND/NAME or KIND NAME…"),
        None => (args.kind.clone(), args.names.clone()),
    };
    let api = Api::connect(&args.api).await?;
    let mut collected = Vec::new();
    let mut found = true;
    for name in kinds.split(',') {
        let kind = find_kind(name)?;
        let version = kind.versions.first().copied().unwrap_or("v1");
        let namespace = (!args.all_namespaces).then_some(args.namespace.of(&api));
        let collection = collection_path(kind, version, namespace);
        let query =
            args.selector.as_ref().map(|l| format!("?labelSelector={}", encode(l))).unwrap_or_default();
        let paths: Vec<String> = match names.as_slice() {
            [] => vec![format!("{collection}{query}")],
            names => names.iter().map(|name| format!("{collection}/{name}")).collect(),
        };
        for path in paths {
            match args.output {
                None | Some(Format::Wide) => {
                    let table = match api.get_table(&path).await {
                        Ok(table) => table,
                        Err(error) if error.is_not_found() => {
                            eprintln!("{error}");
                            found = false;
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    };
                    let rows = table["rows"].as_array().map_or(0, Vec::len);
                    if rows == 0 {
                        match (namespace, kind.namespaced) {
                            (Some(namespace), true) => {
                                eprintln!("No resources found in {namespace} namespace.")
                            }
                            _ => eprintln!("No resources found"),
                        }
                    } else {
                        print_table(
                            &table,
                            args.output == Some(Format::Wide),
                            args.all_namespaces && kind.namespaced,
                        );
                    }
                }
                Some(_) => match api.get(&path).await {
                    Ok(value) => collected.push(value),
                    Err(error) if error.is_not_found() => {
                        eprintln!("{error}");
                        found = false;
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }
    if let Some(format) = args.output.filter(|format| *format != Format::Wide) {
        print_collected(collected, format)?;
    }
    Ok(if found { Outcome::Fine } else { Outcome::NotFine })
}

/// One object, or one list, as it came; several as one List.
fn print_collected(mut collected: Vec<Value>, format: Format) -> Result<()> {
    let whole = match collected.len() {
        0 => return Ok(()),
        1 => collected.remove(0),
        _ => {
            let items: Vec<Value> = collected
                .into_iter()
                .flat_map(|value| match value {
                    Value::Object(mut map) if map.contains_key("items") => match map.remove("items") {
                        Some(Value::Array(items)) => items,
                        _ => Vec::new(),
                    },
                    single => vec![single],
                })
                .collect();
            json!({"apiVersion": "v1", "kind": "List", "items": items})
        }
    };
    print_value(&whole, format)
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
