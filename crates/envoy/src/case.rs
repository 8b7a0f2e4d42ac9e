//! Protobuf's two spellings of field names. The admin port of Envoy writes `snake_case`, istioctl prints `camelCase`,
//! and readers take both.

use serde_json::{Map, Value};

/// The one word in field names that begins with a digit: `consecutive_5xx`.
const CLASS: &str = "5xx";

/// Field names as `dynamic_active_secrets`.
pub(crate) fn to_snake(value: Value) -> Value {
    rename(value, &|name| {
        let is_field = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric())
            && (name.contains(|c: char| c.is_ascii_uppercase()) || name.ends_with(CLASS));
        is_field.then(|| {
            let mut snake = String::with_capacity(name.len() + 4);
            for c in name.chars() {
                if c.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
            match snake.strip_suffix(CLASS) {
                Some(rest) => format!("{rest}_{CLASS}"),
                None => snake,
            }
        })
    })
}

/// Field names as `dynamicActiveSecrets`.
pub(crate) fn to_camel(value: Value) -> Value {
    rename(value, &|name| {
        let is_field = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && name.contains('_');
        is_field.then(|| {
            let mut camel = String::with_capacity(name.len());
            let mut upper = false;
            for c in name.chars() {
                match c {
                    '_' => upper = true,
                    _ if upper => {
                        camel.push(c.to_ascii_uppercase());
                        upper = false;
                    }
                    _ => camel.push(c),
                }
            }
            camel
        })
    })
}

/// Keys that are no field names (policies, `@type`, filters' names) have other characters and stay.
fn rename(value: Value, other_name: &dyn Fn(&str) -> Option<String>) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (other_name(&name).unwrap_or(name), rename(value, other_name)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| rename(item, other_name)).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn field_names_change_and_other_keys_and_all_values_stay() {
        let camel = json!({
            "dynamicActiveSecrets": [{"@type": "a.B_c", "ns[a]-policy[b-c]-rule[0]": {"filterMetadata": {"envoy.lb": "aB_c"}}}]
        });
        let snake = to_snake(camel.clone());
        assert_eq!(
            snake,
            json!({
                "dynamic_active_secrets":
                    [{"@type": "a.B_c", "ns[a]-policy[b-c]-rule[0]": {"filter_metadata": {"envoy.lb": "aB_c"}}}]
            })
        );
        assert_eq!(to_camel(snake), camel);
    }
}
