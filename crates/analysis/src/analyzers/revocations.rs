//! ML0227: entries of the list of revocations that revoke nobody, because they cannot be read.

use maille_core::{Identity, ROOT_NAMESPACE};
use serde_json::Value;

use crate::code::REVOCATION_NOT_IN_FORCE;
use crate::mesh::Mesh;
use crate::report::Report;

/// The list, as `maille ca revoke` writes it.
const CONFIG_MAP: &str = "istio-ca-revocations";
const KEY: &str = "revocations.json";
/// Hexadecimal digits of the longest serial number (RFC 5280 section 4.1.2.2: 20 octets).
const MAX_SERIAL: usize = 40;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let maps = mesh.of_kind("", "ConfigMap");
    for map in maps.filter(|map| map.name() == CONFIG_MAP && map.namespace() == Some(ROOT_NAMESPACE)) {
        let text = map.value.get("data").and_then(|data| data.get(KEY)).and_then(Value::as_str);
        let Some(text) = text else {
            let text = format!("the key {KEY} is not there; write {KEY}: \"[]\" to revoke nobody");
            report.add(&REVOCATION_NOT_IN_FORCE, map, "data", text);
            continue;
        };
        let path = format!("data.{KEY}");
        match serde_json::from_str::<Vec<Value>>(text) {
            Err(error) => {
                let text =
                    format!("{KEY} is no JSON array of revocations ({error}): nothing new of it is in force");
                report.add(&REVOCATION_NOT_IN_FORCE, map, &path, text);
            }
            Ok(entries) => {
                for (number, entry) in entries.iter().enumerate() {
                    if let Some(problem) = problem(entry) {
                        let text = format!("{KEY}[{number}] revokes nobody: {problem}");
                        report.add(&REVOCATION_NOT_IN_FORCE, map, &path, text);
                    }
                }
            }
        }
    }
}

/// Why the control plane cannot take an entry in.
fn problem(entry: &Value) -> Option<String> {
    let known = ["serial", "identity", "before", "reason", "by", "at"];
    let Some(fields) = entry.as_object() else {
        return Some("an entry is an object with 'serial' or 'identity'".to_owned());
    };
    for (field, value) in fields {
        if !known.contains(&field.as_str()) {
            return Some(format!("'{field}' is none of its fields, which are {}", known.join(", ")));
        }
        if !value.is_string() {
            return Some(format!("'{field}' is no text"));
        }
    }
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    match (text("serial"), text("identity")) {
        (Some(_), Some(_)) => Some("it has both 'serial' and 'identity'; write two entries".to_owned()),
        (None, None) => Some("it has neither 'serial' nor 'identity'".to_owned()),
        (Some(_), None) if fields.contains_key("before") => Some("'before' goes with 'identity'".to_owned()),
        (Some(serial), None) => (!is_serial(serial)).then(|| {
            format!(
                "serial '{serial}' is no certificate's: up to {MAX_SERIAL} hexadecimal digits, not all zero"
            )
        }),
        (None, Some(identity)) => {
            let error = Identity::parse_uri(identity).err()?;
            Some(format!("identity '{identity}' is no SPIFFE ID of a workload: {error}"))
        }
    }
}

fn is_serial(text: &str) -> bool {
    let text = text.trim();
    let digits: String = text.strip_prefix("0x").unwrap_or(text).chars().filter(|c| *c != ':').collect();
    let digits = digits.trim_start_matches('0');
    (1..=MAX_SERIAL).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}
