//! Bodies of requests: bounded, in time, and decoded without losing anything.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::handler::Incoming;
use crate::protobuf;
use crate::status::{ApiError, ApiResult};

/// The largest body, as in apiserver (`MaxRequestBodyBytes`).
const MAX_BYTES: usize = 3 << 20;
/// A body that has not arrived by then is given up.
const TIMEOUT: Duration = Duration::from_secs(60);

/// So much beyond the limit is thrown away before the answer: a client that is still sending would not read it.
const MAX_DISCARDED: usize = 32 << 20;

/// The whole body.
pub(crate) async fn collect(body: Incoming) -> ApiResult<Bytes> {
    let too_slow = |_| ApiError::new(408, "Timeout", "the body of the request did not arrive in time");
    tokio::time::timeout(TIMEOUT, read(body)).await.map_err(too_slow)?
}

/// Throws away a body that nobody wants, as far as it comes soon and is small.
pub(crate) async fn discard(mut body: Incoming) {
    const MOST: usize = 64 << 10;
    const SOON: Duration = Duration::from_secs(1);
    let rest = async {
        let mut total = 0;
        while let Some(Ok(frame)) = body.frame().await {
            total += frame.data_ref().map_or(0, Bytes::len);
            if total > MOST {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(SOON, rest).await;
}

async fn read(mut body: Incoming) -> ApiResult<Bytes> {
    let (mut bytes, mut total) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| ApiError::bad_request(format!("the body of the request could not be read: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        total += data.len();
        if total <= MAX_BYTES {
            bytes.extend_from_slice(data);
        } else if total > MAX_DISCARDED {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if total > MAX_BYTES { Err(ApiError::too_large(MAX_BYTES)) } else { Ok(bytes.into()) }
}

/// Reads a body by its content type: JSON, YAML or Kubernetes' protobuf.
pub(crate) fn decode(bytes: &[u8], content_type: &str) -> ApiResult<Value> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    if bytes.is_empty() {
        return Err(ApiError::bad_request("the request has no body"));
    }
    let bad =
        |why: String| ApiError::bad_request(format!("the body of the request could not be decoded: {why}"));
    match media {
        "application/json" | "" | "*/*" => json(bytes),
        media if media.ends_with("+json") => json(bytes),
        "application/yaml" | "application/apply-patch+yaml" => {
            // What clients apply is JSON most of the time.
            if bytes.first() == Some(&b'{') && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
            {
                return json(bytes);
            }
            let text = std::str::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
            let documents = maille_config::yaml::parse("request body", text)
                .map_err(|d| bad(d.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
            let mut documents = documents.into_iter();
            match (documents.next(), documents.next()) {
                (Some(one), None) => Ok(one.value),
                _ => Err(bad("it must hold exactly one YAML document".into())),
            }
        }
        "application/vnd.kubernetes.protobuf" => protobuf::decode(bytes).map_err(bad),
        other => Err(ApiError::unsupported_media_type(
            other,
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// JSON in which no field stands twice: the second would silently win.
fn json(bytes: &[u8]) -> ApiResult<Value> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let node = Node { path: String::new(), duplicates: &mut duplicates };
    let value = node
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|e| ApiError::bad_request(format!("the body of the request could not be decoded: {e}")))?;
    if duplicates.is_empty() {
        return Ok(value);
    }
    let list: Vec<String> = duplicates.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
    Err(ApiError::bad_request(format!("strict decoding error: {}", list.join(", "))))
}

/// One value and its path; duplicates are gathered.
struct Node<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            match items.next_element_seed(Node { path, duplicates: &mut *self.duplicates })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            // Enough to mend.
            if map.contains_key(&key) && self.duplicates.len() < 20 {
                self.duplicates.push(path.clone());
            }
            let value = fields.next_value_seed(Node { path, duplicates: &mut *self.duplicates })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_as_itself_and_a_field_given_twice_is_named() {
        let text = r#"{"a":[1,-2,2.5,"x",null,true,{"b":{}}],"c":18446744073709551615}"#;
        let want: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(json(text.as_bytes()).expect("read"), want);
        let twice = r#"{"spec":{"mtls":{},"x":[{"a":1,"a":2}],"mtls":{}}}"#;
        let error = json(twice.as_bytes()).expect_err("refused");
        assert!(
            error.message.contains("\"spec.mtls\"") && error.message.contains("\"spec.x[0].a\""),
            "{error}"
        );
        assert!(json(b"{} x").is_err() && json(b"{").is_err());
        let deep = "[".repeat(100_000);
        assert!(json(deep.as_bytes()).is_err(), "nesting is bounded");
    }
}
