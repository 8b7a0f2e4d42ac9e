//! External authorizers as Envoy's ext_authz filters, the way Istio writes them (reference authorization 15).

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};
use wire::extension_provider::Kind;

use crate::address::{outbound_cluster, type_url};
use crate::rbac::{CUSTOM_NAME, CUSTOM_PREFIX, Layer};

/// Status of a refusal unless the provider says otherwise.
const FORBIDDEN: u32 = 403;

/// The filter that asks; nothing where this kind of provider cannot be asked.
pub(crate) fn filter(provider: &wire::ExtensionProvider, layer: Layer) -> Option<Value> {
    let cluster = outbound_cluster(provider.port, &provider.host);
    let timeout = duration(provider.timeout_ms);
    let grpc =
        || json!({"envoyGrpc": {"clusterName": cluster, "authority": provider.host}, "timeout": timeout});
    let (name, message) = match layer {
        Layer::Http => {
            ("envoy.filters.http.ext_authz", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz")
        }
        Layer::Tcp => {
            ("envoy.filters.network.ext_authz", "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz")
        }
    };
    let mut config = Map::new();
    let mut set = |field: &str, value: Value| config.insert(field.to_owned(), value);
    set("@type", json!(type_url(message)));
    match (provider.kind.as_ref()?, layer) {
        (Kind::Http(_), Layer::Tcp) => return None,
        (Kind::Http(http), Layer::Http) => {
            set("httpService", http_service(http, provider, &cluster, &timeout));
            if let Some(headers) = header_list(&http.include_request_headers) {
                set("allowedHeaders", headers);
            }
        }
        (Kind::Grpc(_), _) => drop(set("grpcService", grpc())),
    }
    if layer == Layer::Tcp {
        set("statPrefix", json!("tcp."));
    } else {
        if provider.status_on_error != FORBIDDEN {
            set("statusOnError", json!({"code": status_name(provider.status_on_error)}));
        }
        if let Some(body) = &provider.body {
            set("withRequestBody", with_body(body));
        }
    }
    if provider.fail_open {
        set("failureModeAllow", json!(true));
    }
    set("transportApiVersion", json!("V3"));
    set("filterEnabledMetadata", if_matched(&provider.name, layer));
    Some(json!({"name": name, "typedConfig": config}))
}

fn http_service(
    http: &wire::ExtAuthzHttp,
    provider: &wire::ExtensionProvider,
    cluster: &str,
    timeout: &str,
) -> Value {
    let mut service = Map::new();
    let uri = format!("http://{}", provider.host);
    service.insert("serverUri".to_owned(), json!({"uri": uri, "cluster": cluster, "timeout": timeout}));
    if !http.path_prefix.is_empty() {
        service.insert("pathPrefix".to_owned(), json!(http.path_prefix));
    }
    let mut added: Vec<_> = http.include_additional_headers.iter().collect();
    added.sort();
    if !added.is_empty() {
        let added: Vec<_> = added.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        service.insert("authorizationRequest".to_owned(), json!({"headersToAdd": added}));
    }
    let mut response = Map::new();
    for (field, headers) in [
        ("allowedUpstreamHeaders", &http.headers_to_upstream_on_allow),
        ("allowedClientHeaders", &http.headers_to_downstream_on_deny),
        ("allowedClientHeadersOnSuccess", &http.headers_to_downstream_on_allow),
    ] {
        if let Some(headers) = header_list(headers) {
            response.insert(field.to_owned(), headers);
        }
    }
    if !response.is_empty() {
        service.insert("authorizationResponse".to_owned(), Value::Object(response));
    }
    Value::Object(service)
}

fn with_body(body: &wire::CheckBody) -> Value {
    let mut settings = Map::new();
    settings.insert("maxRequestBytes".to_owned(), json!(body.max_request_bytes));
    for (field, is_set) in
        [("allowPartialMessage", body.allow_partial_message), ("packAsBytes", body.pack_as_bytes)]
    {
        if is_set {
            settings.insert(field.to_owned(), json!(true));
        }
    }
    Value::Object(settings)
}

/// `a`, `a*` or `*a`, each without case.
fn header_list(headers: &[String]) -> Option<Value> {
    let pattern = |header: &String| match (header.strip_prefix('*'), header.strip_suffix('*')) {
        (Some(suffix), _) => json!({"suffix": suffix, "ignoreCase": true}),
        (None, Some(prefix)) => json!({"prefix": prefix, "ignoreCase": true}),
        (None, None) => json!({"exact": header, "ignoreCase": true}),
    };
    let patterns: Vec<Value> = headers.iter().map(pattern).collect();
    (!patterns.is_empty()).then(|| json!({"patterns": patterns}))
}

/// The provider is asked only if the filter before found a rule of its own to match.
fn if_matched(provider: &str, layer: Layer) -> Value {
    json!({
        "filter": layer.rbac(),
        "path": [{"key": format!("{CUSTOM_PREFIX}shadow_effective_policy_id")}],
        "value": {"stringMatch": {"prefix": format!("{CUSTOM_NAME}{provider}")}}
    })
}

/// A duration in protobuf's JSON.
fn duration(milliseconds: u32) -> String {
    match (milliseconds / 1000, milliseconds % 1000) {
        (seconds, 0) => format!("{seconds}s"),
        (seconds, rest) => format!("{seconds}.{rest:03}s"),
    }
}

/// The name of a status in Envoy's `envoy.type.v3.StatusCode`; a number is as good in protobuf's JSON.
fn status_name(code: u32) -> Value {
    let phrase = u16::try_from(code).ok().and_then(|code| http::StatusCode::from_u16(code).ok());
    match (code, phrase.and_then(|status| status.canonical_reason())) {
        (200, _) => json!("OK"),
        (226, _) => json!("IMUsed"),
        (203, _) => json!("NonAuthoritativeInformation"),
        (207, _) => json!("MultiStatus"),
        (414, _) => json!("URITooLong"),
        (505, _) => json!("HTTPVersionNotSupported"),
        // Not among Envoy's.
        (418, _) | (_, None) => json!(code),
        (_, Some(phrase)) => json!(phrase.split([' ', '-']).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_envoys_names() {
        for (code, name) in
            [(403, "Forbidden"), (503, "ServiceUnavailable"), (429, "TooManyRequests"), (200, "OK")]
        {
            assert_eq!(status_name(code), name);
        }
        assert_eq!(status_name(799), 799);
    }

    #[test]
    fn durations_are_protobufs() {
        assert_eq!((duration(600_000).as_str(), duration(1_500).as_str()), ("600s", "1.500s"));
    }
}
