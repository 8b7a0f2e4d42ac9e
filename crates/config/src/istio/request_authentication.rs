//! Spec of RequestAuthentication (reference authorization 19).

use serde::{Deserialize, Serialize};

use super::{TargetRef, WorkloadSelector, or_default};

/// `RequestAuthentication.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// Absent or empty: all workloads in scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Gateways and services it attaches to, instead of `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "target_refs")]
    pub target_refs: Option<Vec<TargetRef>>,
    /// The older, single form of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "target_ref")]
    pub target_ref: Option<TargetRef>,
    /// Any one that accepts a token suffices; those of all policies that apply are one list.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "jwt_rules"
    )]
    pub jwt_rules: Vec<JwtRule>,
}

/// One of `jwtRules`: tokens of one issuer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// Must equal claim `iss`; may be empty only beside `jwksUri`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Of which claim `aud` must hold one; none is no demand.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// URL of the key set, `http` or `https`; excludes `jwks`. Neither: OpenID discovery at the issuer.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty", alias = "jwks_uri")]
    pub jwks_uri: String,
    /// The key set itself (RFC 7517).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    /// Headers that may hold the token.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "from_headers")]
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that may hold the token.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "from_params")]
    pub from_params: Vec<String>,
    /// Cookies that may hold the token.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "from_cookies")]
    pub from_cookies: Vec<String>,
    /// Header that gets the payload, base64url.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty",
        alias = "output_payload_to_header"
    )]
    pub output_payload_to_header: String,
    /// Whether the application sees the token.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "std::ops::Not::not",
        alias = "forward_original_token"
    )]
    pub forward_original_token: bool,
    /// Headers that get one claim each.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "output_claim_to_headers"
    )]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// For fetching the key set, such as `5s`; absent: 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Claims that are lists of words, beyond `scope` and `permission`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "space_delimited_claims"
    )]
    pub space_delimited_claims: Vec<String>,
}

/// One of `fromHeaders`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct JwtHeader {
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// A value without it counts as no token; with case.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// One of `outputClaimToHeaders`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct ClaimToHeader {
    #[serde(default, deserialize_with = "or_default")]
    pub header: String,
    /// Dots walk into nested objects.
    #[serde(default, deserialize_with = "or_default")]
    pub claim: String,
}
