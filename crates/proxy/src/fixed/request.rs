//! What a file says about tokens and external authorizers.

use std::collections::BTreeMap;

use maille_proto::facts as wire;
use serde::Deserialize;

/// A `RequestAuthentication` of facts.proto.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RequestAuthenticationFacts {
    namespace: String,
    name: String,
    jwt_rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    issuer: String,
    audiences: Vec<String>,
    jwks: String,
    jwks_problem: String,
    from_headers: Vec<Header>,
    from_params: Vec<String>,
    from_cookies: Vec<String>,
    forward_original_token: bool,
    output_payload_to_header: String,
    output_claim_to_headers: Vec<Output>,
    space_delimited_claims: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    #[serde(default)]
    prefix: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    header: String,
    claim: String,
}

impl RequestAuthenticationFacts {
    pub(super) fn message(&self) -> wire::RequestAuthentication {
        wire::RequestAuthentication {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            jwt_rules: self.jwt_rules.iter().map(Rule::message).collect(),
        }
    }
}

impl Rule {
    fn message(&self) -> wire::JwtRule {
        let headers = self.from_headers.iter();
        let outputs = self.output_claim_to_headers.iter();
        wire::JwtRule {
            issuer: self.issuer.clone(),
            audiences: self.audiences.clone(),
            jwks: self.jwks.clone(),
            jwks_problem: self.jwks_problem.clone(),
            from_headers: headers
                .map(|h| wire::JwtHeader { name: h.name.clone(), prefix: h.prefix.clone() })
                .collect(),
            from_params: self.from_params.clone(),
            from_cookies: self.from_cookies.clone(),
            forward_original_token: self.forward_original_token,
            output_payload_to_header: self.output_payload_to_header.clone(),
            output_claim_to_headers: outputs
                .map(|o| wire::ClaimToHeader { header: o.header.clone(), claim: o.claim.clone() })
                .collect(),
            space_delimited_claims: self.space_delimited_claims.clone(),
        }
    }
}

/// An `ExtensionProvider` of facts.proto.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Provider {
    name: String,
    host: String,
    port: u16,
    #[serde(default = "ten_minutes")]
    timeout_ms: u32,
    #[serde(default)]
    fail_open: bool,
    #[serde(default = "forbidden")]
    status_on_error: u16,
    #[serde(default)]
    body: Option<Body>,
    #[serde(default)]
    grpc: Option<Grpc>,
    #[serde(default)]
    http: Option<Http>,
    #[serde(default)]
    problem: String,
}

/// Istio's default.
fn ten_minutes() -> u32 {
    600_000
}

fn forbidden() -> u16 {
    403
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    max_request_bytes: u32,
    #[serde(default)]
    allow_partial_message: bool,
    #[serde(default)]
    pack_as_bytes: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grpc {}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Http {
    path_prefix: String,
    include_request_headers: Vec<String>,
    include_additional_headers: BTreeMap<String, String>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
    headers_to_downstream_on_allow: Vec<String>,
}

impl Provider {
    pub(super) fn message(&self) -> wire::ExtensionProvider {
        use wire::extension_provider::Kind;
        let kind = match (&self.grpc, &self.http) {
            (Some(Grpc {}), _) => Some(Kind::Grpc(wire::ExtAuthzGrpc {})),
            (None, Some(http)) => Some(Kind::Http(wire::ExtAuthzHttp {
                path_prefix: http.path_prefix.clone(),
                include_request_headers: http.include_request_headers.clone(),
                include_additional_headers: http.include_additional_headers.clone(),
                headers_to_upstream_on_allow: http.headers_to_upstream_on_allow.clone(),
                headers_to_downstream_on_deny: http.headers_to_downstream_on_deny.clone(),
                headers_to_downstream_on_allow: http.headers_to_downstream_on_allow.clone(),
            })),
            (None, None) => None,
        };
        wire::ExtensionProvider {
            name: self.name.clone(),
            host: self.host.clone(),
            port: self.port.into(),
            timeout_ms: self.timeout_ms,
            fail_open: self.fail_open,
            status_on_error: self.status_on_error.into(),
            body: self.body.as_ref().map(|body| wire::CheckBody {
                max_request_bytes: body.max_request_bytes,
                allow_partial_message: body.allow_partial_message,
                pack_as_bytes: body.pack_as_bytes,
            }),
            kind,
            problem: self.problem.clone(),
        }
    }
}
