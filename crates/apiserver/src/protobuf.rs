//! Bodies in Kubernetes' protobuf form, which current clients send for Kubernetes' own kinds.
//!
//! A generic reader of the wire format, driven by `openapi/protobuf.json`: for each message its fields' numbers,
//! JSON names and types (after `k8s-pb` 0.9). A field that the table lacks is refused unless it is empty, since
//! it would be lost. Source: Kubernetes "Protobuf encoding"; protobuf.dev, "Encoding".

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::json;

const TABLE: &str = include_str!("openapi/protobuf.json");
/// What comes before the envelope.
const MAGIC: &[u8] = b"k8s\0";
/// Messages nest less deep than this in any object.
const MAX_DEPTH: usize = 32;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Field number to JSON name (empty: its fields stand in the parent), type, message.
type Fields = HashMap<u64, (String, String, Option<String>)>;

static MESSAGES: LazyLock<HashMap<String, Fields>> = LazyLock::new(|| {
    let raw: HashMap<String, HashMap<String, Vec<String>>> = serde_json::from_str(TABLE).unwrap_or_default();
    let field = |mut f: Vec<String>| {
        let message = if f.len() > 2 { f.pop() } else { None };
        let kind = f.pop().unwrap_or_default();
        (f.pop().unwrap_or_default(), kind, message)
    };
    raw.into_iter()
        .map(|(name, fields)| {
            let fields = fields.into_iter().filter_map(|(n, f)| Some((n.parse().ok()?, field(f)))).collect();
            (name, fields)
        })
        .collect()
});

/// Fields that Go holds as plain values: zero is "not given" in them.
const ZERO_IS_UNSET: &[&str] = &[
    "hostPort",
    "nodePort",
    "minReadySeconds",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "generation",
    "observedGeneration",
    "count",
    "healthCheckNodePort",
];
const FALSE_IS_UNSET: &[&str] = &[
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "stdin",
    "stdinOnce",
    "tty",
    "paused",
    "readOnly",
    "publishNotReadyAddresses",
    "unschedulable",
];

/// A field on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed(u64),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    /// The next field; `Ok(None)` at the end.
    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut next = || -> Option<(u64, Wire<'a>)> {
            let key = self.varint()?;
            let wire = match key & 7 {
                0 => Wire::Number(self.varint()?),
                1 => Wire::Fixed(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    Wire::Bytes(self.take(length)?)
                }
                5 => Wire::Fixed(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
                _ => return None,
            };
            Some((key >> 3, wire))
        };
        next().map(Some).ok_or_else(|| "the protobuf body is cut off or malformed".to_owned())
    }
}

/// Reads a body: the envelope with `apiVersion` and `kind`, and the object in it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, String> {
    let body = bytes.strip_prefix(MAGIC).ok_or("the body does not begin as Kubernetes protobuf does")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut envelope = Reader(body);
    while let Some((number, wire)) = envelope.field()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.field()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err("compressed protobuf bodies are not read".to_owned());
            }
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let package = match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    let name = match kind.as_str() {
        // Options are sent in the group of what they are about.
        "DeleteOptions" => format!("{META}DeleteOptions"),
        kind => format!("io.k8s.api.{package}.{version}.{kind}"),
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.clone().into());
    object.insert("kind".into(), kind.clone().into());
    if !MESSAGES.contains_key(&name) {
        return Err(format!("{kind} of {api_version} is not read as protobuf; send it as JSON"));
    }
    message(raw, &name, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| "a text of the protobuf body is no UTF-8".to_owned())
}

fn message(bytes: &[u8], name: &str, object: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("the protobuf body nests too deep".to_owned());
    }
    let fields = MESSAGES.get(name).ok_or_else(|| format!("message {name} is not known"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        let Some((key, kind, inner)) = fields.get(&number) else {
            let empty = matches!(wire, Wire::Number(0) | Wire::Fixed(0) | Wire::Bytes(&[]));
            if empty {
                continue;
            }
            return Err(format!("field {number} of {name} is not known; send the object as JSON"));
        };
        let inner = inner.as_deref().unwrap_or_default();
        match (kind.as_str(), wire) {
            ("M", Wire::Bytes(bytes)) if key.is_empty() => message(bytes, inner, object, depth + 1)?,
            (map, Wire::Bytes(bytes)) if map.starts_with('m') => {
                let (k, v) = entry(bytes, map.get(1..).unwrap_or_default(), inner, depth)?;
                json::object_mut(object, key).insert(k, v);
            }
            (repeated, wire) if repeated.starts_with('r') => {
                let item = value(wire, repeated.get(1..).unwrap_or_default(), inner, depth)?;
                match object.get_mut(key) {
                    Some(Value::Array(list)) => list.push(item),
                    _ => drop(object.insert(key.clone(), json!([item]))),
                }
            }
            (single, wire) => {
                let value = value(wire, single, inner, depth)?;
                let unset = match &value {
                    Value::Null => true,
                    Value::String(text) => text.is_empty(),
                    Value::Bool(false) => FALSE_IS_UNSET.contains(&key.as_str()),
                    Value::Number(n) => n.as_i64() == Some(0) && ZERO_IS_UNSET.contains(&key.as_str()),
                    _ => false,
                };
                if !unset {
                    object.insert(key.clone(), value);
                }
            }
        }
    }
    Ok(())
}

fn value(wire: Wire<'_>, kind: &str, inner: &str, depth: usize) -> Result<Value, String> {
    match (kind, wire) {
        ("s", Wire::Bytes(bytes)) => Ok(utf8(bytes)?.into()),
        ("y", Wire::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        // Signed numbers are sent in two's complement.
        ("i", Wire::Number(number)) => Ok(number.cast_signed().into()),
        ("b", Wire::Number(number)) => Ok((number != 0).into()),
        ("d", Wire::Fixed(bits)) => Ok(f64::from_bits(bits).into()),
        ("M", Wire::Bytes(bytes)) => special(bytes, inner, depth),
        _ => Err("a field of the protobuf body has another type than its message says".to_owned()),
    }
}

/// Messages whose JSON is no object; all others.
fn special(bytes: &[u8], name: &str, depth: usize) -> Result<Value, String> {
    let short = name.rsplit('.').next().unwrap_or(name);
    match short {
        "Time" | "MicroTime" => {
            let (mut seconds, mut nanos) = (0i64, 0i64);
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.field()? {
                match (number, wire) {
                    (1, Wire::Number(n)) => seconds = n.cast_signed(),
                    (2, Wire::Number(n)) => nanos = n.cast_signed(),
                    _ => {}
                }
            }
            // The zero time, of Go or of Unix, is none.
            if bytes.is_empty() || seconds == 0 && nanos == 0 || seconds == -62_135_596_800 {
                return Ok(Value::Null);
            }
            let nanos = i32::try_from(nanos).unwrap_or(0);
            let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
            let format = if short == "Time" { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
            Ok(at.strftime(format).to_string().into())
        }
        "IntOrString" => {
            let (mut text_wins, mut number, mut text) = (false, 0, String::new());
            let mut reader = Reader(bytes);
            while let Some((field, wire)) = reader.field()? {
                match (field, wire) {
                    (1, Wire::Number(n)) => text_wins = n == 1,
                    (2, Wire::Number(n)) => number = n.cast_signed(),
                    (3, Wire::Bytes(bytes)) => text = utf8(bytes)?,
                    _ => {}
                }
            }
            Ok(if text_wins { text.into() } else { number.into() })
        }
        "Quantity" => {
            let mut reader = Reader(bytes);
            let mut text = String::new();
            while let Some((field, wire)) = reader.field()? {
                if let (1, Wire::Bytes(bytes)) = (field, wire) {
                    text = utf8(bytes)?;
                }
            }
            Ok(text.into())
        }
        "FieldsV1" | "RawExtension" => {
            let mut reader = Reader(bytes);
            while let Some((field, wire)) = reader.field()? {
                if let (1, Wire::Bytes(bytes)) = (field, wire) {
                    return serde_json::from_slice(bytes).map_err(|e| e.to_string());
                }
            }
            Ok(Value::Null)
        }
        "ExtraValue" => {
            let mut map = Map::new();
            message(bytes, name, &mut map, depth + 1)?;
            Ok(map.shift_remove("items").unwrap_or_else(|| json!([])))
        }
        _ => {
            let mut map = Map::new();
            message(bytes, name, &mut map, depth + 1)?;
            Ok(Value::Object(map))
        }
    }
}

fn entry(bytes: &[u8], kind: &str, inner: &str, depth: usize) -> Result<(String, Value), String> {
    let empty = if matches!(kind, "s" | "y") { Value::from("") } else { Value::Null };
    let (mut key, mut found) = (String::new(), empty);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(text)) => key = utf8(text)?,
            (2, wire) => found = value(wire, kind, inner, depth)?,
            _ => {}
        }
    }
    Ok((key, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).expect("short")];
        out.extend_from_slice(content);
        out
    }

    #[test]
    fn an_object_is_read_with_its_maps_and_without_empty_texts() {
        let meta = [field(1, b"x"), field(2, b"")].concat();
        let data = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &meta), field(2, &data)].concat();
        let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
        let body = [MAGIC.to_vec(), field(1, &kind), field(2, &raw)].concat();
        let want =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"k": "v"}});
        assert_eq!(decode(&body).expect("read"), want);
    }

    #[test]
    fn the_table_is_whole() {
        assert!(MESSAGES.len() > 200);
        for (name, fields) in MESSAGES.iter() {
            for (_, kind, inner) in fields.values() {
                if let Some(inner) = inner {
                    let known = MESSAGES.contains_key(inner)
                        || ["Time", "MicroTime", "IntOrString", "Quantity", "FieldsV1", "RawExtension"]
                            .contains(&inner.rsplit('.').next().unwrap_or_default());
                    assert!(known, "{name}: {inner}");
                } else {
                    assert!(!kind.ends_with('M'), "{name}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let pod = [field(1, b"v1"), field(2, b"Pod")].concat();
            let body = [MAGIC.to_vec(), field(1, &pod), field(2, &bytes)].concat();
            let _ = decode(&body);
            let _ = decode(&bytes);
        }
    }
}
