//! Values of questions, read with errors that name the key and say what would be right.

use std::fmt;
use std::net::IpAddr;

use maille_core::{Identity, Labels};
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};

use super::question::Protocol;

/// Adds the key to the message of an error, and keeps its position.
fn keyed<'de, D: Deserializer<'de>, T: Deserialize<'de>>(key: &str, value: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(value).map_err(|error| D::Error::custom(format!("{key}: {error}")))
}

/// One reader for each key, since an attribute cannot pass an argument.
macro_rules! readers {
    ($($key:ident: $type:ty),* $(,)?) => {$(
        pub(super) fn $key<'de, D: Deserializer<'de>>(value: D) -> Result<Option<$type>, D::Error> {
            keyed(stringify!($key), value)
        }
    )*};
}

readers! {
    namespace: String,
    labels: Labels,
    source_principal: Principal,
    source_ip: Address,
    remote_ip: Address,
    destination_ip: Address,
    destination_port: u16,
    protocol: Protocol,
    method: String,
    host: String,
    path: String,
    headers: Headers,
    sni: String,
    jwt: Map<String, Value>,
}

/// An object of its own keys.
pub(super) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    value: D,
) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// An identity as policies write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Principal(pub(super) Identity);

impl<'de> Deserialize<'de> for Principal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = match text.strip_prefix("spiffe://") {
            Some(principal) => Identity::parse_principal(principal),
            None => Identity::parse_principal(&text),
        };
        parsed.map(Self).map_err(|_| {
            D::Error::custom(format!(
                "'{text}' is no principal; write it like \"cluster.local/ns/shop/sa/web\", or null for plaintext"
            ))
        })
    }
}

/// An IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) IpAddr);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.parse().map(Self);
        parsed.map_err(|_| D::Error::custom(format!("'{text}' is no IP address; write it like \"10.0.0.7\"")))
    }
}

/// Header lines in order; a list of values is one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Headers(pub(super) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lines;
        impl<'de> Visitor<'de> for Lines {
            type Value = Headers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from header names to a value or a list of values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut lines = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let OneOrMany(values) = map.next_value()?;
                    lines.extend(values.into_iter().map(|value| (name.clone(), value)));
                }
                Ok(Headers(lines))
            }
        }
        deserializer.deserialize_map(Lines)
    }
}

/// `"a"` or `["a", "b"]`.
struct OneOrMany(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the value of a header as a text, or a list of texts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element::<String>()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }
        deserializer.deserialize_any(Values)
    }
}
