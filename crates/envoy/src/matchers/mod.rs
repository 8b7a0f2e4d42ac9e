//! Envoy's matchers for the strings of policies (reference authorization 6 to 9).

pub(crate) mod claims;

use serde_json::{Value, json};

/// `exact`, `prefix*`, `*suffix`, or `*` for anything that is not empty (reference authorization 6).
pub(crate) fn string(pattern: &str) -> Value {
    if pattern == "*" {
        return json!({"safeRegex": {"regex": ".+"}});
    }
    // The leading one first: `*a*` is what ends with `a*`.
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => json!({"suffix": suffix}),
        (None, Some(prefix)) => json!({"prefix": prefix}),
        (None, None) => json!({"exact": pattern}),
    }
}

/// A principal without its scheme, as people write it, as a name of a certificate.
pub(crate) fn principal(pattern: &str) -> Value {
    let matcher = match (pattern, pattern.strip_prefix('*')) {
        ("*", _) => json!({"safeRegex": {"regex": ".+"}}),
        (_, Some(suffix)) => json!({"safeRegex": {"regex": format!("spiffe://.*{}", literal(suffix))}}),
        (_, None) => match pattern.strip_suffix('*') {
            Some(prefix) => json!({"prefix": format!("spiffe://{prefix}")}),
            None => json!({"exact": format!("spiffe://{pattern}")}),
        },
    };
    json!({"authenticated": {"principalName": matcher}})
}

/// A namespace, by the certificate.
pub(crate) fn namespace(pattern: &str) -> Value {
    identity_part(&format!(".*/ns/{}/.*", glob(pattern)))
}

/// `account` or `namespace/account`, by the certificate.
pub(crate) fn service_account(pattern: &str, own_namespace: &str) -> Value {
    let (namespace, account) = pattern.split_once('/').unwrap_or((own_namespace, pattern));
    let (namespace, account) = (literal(namespace), literal(account));
    identity_part(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?"))
}

/// A trust domain, by the certificate.
pub(crate) fn trust_domain(pattern: &str) -> Value {
    let starts_with = |text: String| json!({"authenticated": {"principalName": {"prefix": text}}});
    match pattern.split_once('*') {
        _ if pattern == "*" => starts_with("spiffe://".to_owned()),
        None => starts_with(format!("spiffe://{pattern}/")),
        Some((before, behind)) => {
            identity_part(&format!("spiffe://{}[^/]*{}/.*", literal(before), literal(behind)))
        }
    }
}

fn identity_part(regex: &str) -> Value {
    json!({"authenticated": {"principalName": {"safeRegex": {"regex": regex}}}})
}

/// `field` is `directRemoteIp`, `remoteIp` or `destinationIp`.
pub(crate) fn cidr(field: &str, block: &str) -> Value {
    let (address, length) = block.split_once('/').unwrap_or((block, ""));
    let all = if address.contains(':') { 128 } else { 32 };
    json!({field: {"addressPrefix": address, "prefixLen": length.parse::<u32>().unwrap_or(all)}})
}

/// A header; `*` asks only for its presence.
pub(crate) fn header(name: &str, pattern: &str) -> Value {
    match pattern {
        "*" => json!({"header": {"name": name, "presentMatch": true}}),
        _ => json!({"header": {"name": name, "stringMatch": string(pattern)}}),
    }
}

/// A host, in any case of letters.
pub(crate) fn host(pattern: &str) -> Value {
    if pattern == "*" {
        return header(":authority", "*");
    }
    let mut matcher = string(pattern);
    if let Some(fields) = matcher.as_object_mut() {
        fields.insert("ignoreCase".to_owned(), json!(true));
    }
    json!({"header": {"name": ":authority", "stringMatch": matcher}})
}

/// A path; the wildcards of templates are Envoy's own (reference authorization 10).
pub(crate) fn path(pattern: &str) -> Value {
    if pattern.contains("{*}") || pattern.contains("{**}") {
        return json!({
            "uriTemplate": {
                "name": "uri-template",
                "typedConfig": {
                    "@type": crate::address::type_url(
                        "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
                    ),
                    "pathTemplate": pattern.replace("{**}", "**").replace("{*}", "*"),
                }
            }
        });
    }
    json!({"urlPath": {"path": string(pattern)}})
}

fn glob(pattern: &str) -> String {
    pattern.split('*').map(literal).collect::<Vec<_>>().join(".*")
}

/// A regular expression (RE2) that matches the text alone.
fn literal(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_alphanumeric() && !matches!(c, '-' | '_' | '/' | ':') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms_of_a_string() {
        assert_eq!(string("a"), json!({"exact": "a"}));
        assert_eq!(string("a*"), json!({"prefix": "a"}));
        assert_eq!(string("*a"), json!({"suffix": "a"}));
        assert_eq!(string("*a*"), json!({"suffix": "a*"}));
        assert_eq!(string("*"), json!({"safeRegex": {"regex": ".+"}}));
    }

    #[test]
    fn what_people_write_becomes_what_certificates_have() {
        let exact =
            json!({"authenticated": {"principalName": {"exact": "spiffe://cluster.local/ns/a/sa/b"}}});
        assert_eq!(principal("cluster.local/ns/a/sa/b"), exact);
        let regex = |text: &str| json!({"authenticated": {"principalName": {"safeRegex": {"regex": text}}}});
        assert_eq!(principal("*/sa/b"), regex("spiffe://.*/sa/b"));
        assert_eq!(namespace("dev*"), regex(".*/ns/dev.*/.*"));
        assert_eq!(service_account("b", "a"), regex("spiffe://.+/ns/a/(.+/|)sa/b(/.+)?"));
        assert_eq!(trust_domain("td.*"), regex(r"spiffe://td\.[^/]*/.*"));
        assert_eq!(
            trust_domain("td.example"),
            json!({"authenticated": {"principalName": {"prefix": "spiffe://td.example/"}}})
        );
    }

    #[test]
    fn an_address_is_a_block_of_one() {
        assert_eq!(
            cidr("remoteIp", "10.0.0.1"),
            json!({"remoteIp": {"addressPrefix": "10.0.0.1", "prefixLen": 32}})
        );
        assert_eq!(
            cidr("remoteIp", "fd00::/8"),
            json!({"remoteIp": {"addressPrefix": "fd00::", "prefixLen": 8}})
        );
    }
}
