//! `MeshConfig` as it is written (istio api mesh/v1alpha1): what is used has its type; of what only Istio uses, the
//! names, which [`super::fields`] looks at.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::PathNormalization;
use crate::istio::or_default;

/// All fields of Istio's `MeshConfig`, and `maille`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "decoding tells known fields from unknown ones; most are looked at as JSON")]
pub(super) struct MeshConfigSpec {
    #[serde(alias = "root_namespace")]
    pub(super) root_namespace: Option<String>,
    #[serde(alias = "trust_domain")]
    trust_domain: Option<String>,
    #[serde(deserialize_with = "or_default", alias = "trust_domain_aliases")]
    trust_domain_aliases: Vec<String>,
    #[serde(deserialize_with = "or_default", alias = "path_normalization")]
    pub(super) path_normalization: PathNormalizationSpec,
    #[serde(deserialize_with = "or_default", alias = "outbound_traffic_policy")]
    pub(super) outbound_traffic_policy: OutboundTrafficPolicySpec,
    #[serde(deserialize_with = "or_default", alias = "access_log_file")]
    pub(super) access_log_file: String,
    #[serde(deserialize_with = "or_default", alias = "access_log_encoding")]
    pub(super) access_log_encoding: AccessLogEncoding,
    #[serde(deserialize_with = "or_default", alias = "access_log_format")]
    access_log_format: String,
    #[serde(alias = "protocol_detection_timeout")]
    protocol_detection_timeout: Option<String>,
    #[serde(deserialize_with = "or_default", alias = "extension_providers")]
    extension_providers: Vec<ExtensionProviderSpec>,
    #[serde(deserialize_with = "or_default")]
    pub(super) maille: MailleSpec,

    ca: Option<Value>,
    #[serde(alias = "ca_certificates")]
    ca_certificates: Option<Value>,
    certificates: Option<Value>,
    #[serde(alias = "config_sources")]
    config_sources: Option<Value>,
    #[serde(alias = "connect_timeout")]
    connect_timeout: Option<Value>,
    #[serde(alias = "default_config")]
    default_config: Option<Value>,
    #[serde(alias = "default_destination_rule_export_to")]
    default_destination_rule_export_to: Option<Value>,
    #[serde(alias = "default_http_retry_policy")]
    default_http_retry_policy: Option<Value>,
    #[serde(alias = "default_inbound_http_retry_policy")]
    default_inbound_http_retry_policy: Option<Value>,
    #[serde(alias = "default_providers")]
    default_providers: Option<Value>,
    #[serde(alias = "default_service_export_to")]
    default_service_export_to: Option<Value>,
    #[serde(alias = "default_traffic_policy")]
    default_traffic_policy: Option<Value>,
    #[serde(alias = "default_virtual_service_export_to")]
    default_virtual_service_export_to: Option<Value>,
    #[serde(alias = "disable_envoy_listener_log")]
    disable_envoy_listener_log: Option<Value>,
    #[serde(alias = "discovery_selectors")]
    discovery_selectors: Option<Value>,
    #[serde(alias = "dns_refresh_rate")]
    dns_refresh_rate: Option<Value>,
    #[serde(alias = "enable_auto_mtls")]
    enable_auto_mtls: Option<Value>,
    #[serde(alias = "enable_envoy_access_log_service")]
    enable_envoy_access_log_service: Option<Value>,
    #[serde(alias = "enable_prometheus_merge")]
    enable_prometheus_merge: Option<Value>,
    #[serde(alias = "enable_tracing")]
    enable_tracing: Option<Value>,
    #[serde(alias = "h2_upgrade_policy")]
    h2_upgrade_policy: Option<Value>,
    #[serde(alias = "hbone_idle_timeout")]
    hbone_idle_timeout: Option<Value>,
    #[serde(alias = "inbound_cluster_stat_name")]
    inbound_cluster_stat_name: Option<Value>,
    #[serde(deserialize_with = "or_default", alias = "inbound_traffic_policy")]
    pub(super) inbound_traffic_policy: InboundTrafficPolicySpec,
    #[serde(alias = "ingress_class")]
    ingress_class: Option<Value>,
    #[serde(alias = "ingress_controller_mode")]
    ingress_controller_mode: Option<Value>,
    #[serde(alias = "ingress_selector")]
    ingress_selector: Option<Value>,
    #[serde(alias = "ingress_service")]
    ingress_service: Option<Value>,
    #[serde(alias = "locality_lb_setting")]
    locality_lb_setting: Option<Value>,
    #[serde(deserialize_with = "or_default", rename = "meshMTLS")]
    pub(super) mesh_mtls: MeshTlsSpec,
    #[serde(alias = "outbound_cluster_stat_name")]
    outbound_cluster_stat_name: Option<Value>,
    #[serde(alias = "proxy_http_port")]
    proxy_http_port: Option<Value>,
    #[serde(alias = "proxy_inbound_listen_port")]
    proxy_inbound_listen_port: Option<Value>,
    #[serde(alias = "proxy_listen_port")]
    proxy_listen_port: Option<Value>,
    #[serde(alias = "service_entry_visibility")]
    service_entry_visibility: Option<Value>,
    #[serde(alias = "service_scope_configs")]
    service_scope_configs: Option<Value>,
    #[serde(alias = "service_settings")]
    service_settings: Option<Value>,
    #[serde(alias = "tcp_keepalive")]
    tcp_keepalive: Option<Value>,
    #[serde(alias = "tls_defaults")]
    tls_defaults: Option<Value>,
    #[serde(alias = "verify_certificate_at_client")]
    verify_certificate_at_client: Option<Value>,
    #[serde(alias = "zone_aware_lb_setting")]
    zone_aware_lb_setting: Option<Value>,
}

/// `pathNormalization`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PathNormalizationSpec {
    #[serde(deserialize_with = "or_default")]
    pub(super) normalization: NormalizationType,
}

/// `pathNormalization.normalization`, in Istio's order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum NormalizationType {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

impl From<NormalizationType> for PathNormalization {
    fn from(written: NormalizationType) -> Self {
        match written {
            NormalizationType::Default | NormalizationType::Base => Self::Base,
            NormalizationType::None => Self::None,
            NormalizationType::MergeSlashes => Self::MergeSlashes,
            NormalizationType::DecodeAndMergeSlashes => Self::DecodeAndMergeSlashes,
        }
    }
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(dead_code, reason = "looked at as JSON")]
pub(super) struct OutboundTrafficPolicySpec {
    #[serde(deserialize_with = "or_default")]
    pub(super) mode: OutboundMode,
    tls: Option<Value>,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum OutboundMode {
    RegistryOnly,
    #[default]
    AllowAny,
    AllowAnyDynamicDns,
}

/// `inboundTrafficPolicy`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct InboundTrafficPolicySpec {
    #[serde(deserialize_with = "or_default")]
    pub(super) mode: InboundMode,
}

/// `inboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum InboundMode {
    #[default]
    Passthrough,
    Localhost,
}

/// `meshMTLS`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "looked at as JSON")]
pub(super) struct MeshTlsSpec {
    #[serde(deserialize_with = "or_default", alias = "min_protocol_version")]
    min_protocol_version: TlsVersion,
    #[serde(alias = "max_protocol_version")]
    max_protocol_version: Option<Value>,
    #[serde(alias = "ecdh_curves")]
    ecdh_curves: Option<Value>,
    #[serde(alias = "cipher_suites")]
    cipher_suites: Option<Value>,
}

/// `meshMTLS.minProtocolVersion`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum TlsVersion {
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

/// `accessLogEncoding`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

/// `maille`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MailleSpec {
    #[serde(deserialize_with = "or_default")]
    pub(super) explain_in_response: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) keep_expired_tcp: bool,
}

/// One of `extensionProviders`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "decoding tells known fields from unknown ones; most are looked at as JSON")]
pub(super) struct ExtensionProviderSpec {
    name: Option<String>,
    #[serde(alias = "envoy_ext_authz_http")]
    envoy_ext_authz_http: Option<ExtAuthzSpec>,
    #[serde(alias = "envoy_ext_authz_grpc")]
    envoy_ext_authz_grpc: Option<GrpcExtAuthzSpec>,
    zipkin: Option<Value>,
    lightstep: Option<Value>,
    datadog: Option<Value>,
    stackdriver: Option<Value>,
    opencensus: Option<Value>,
    skywalking: Option<Value>,
    opentelemetry: Option<Value>,
    prometheus: Option<Value>,
    #[serde(alias = "envoy_file_access_log")]
    envoy_file_access_log: Option<Value>,
    #[serde(alias = "envoy_http_als")]
    envoy_http_als: Option<Value>,
    #[serde(alias = "envoy_tcp_als")]
    envoy_tcp_als: Option<Value>,
    #[serde(alias = "envoy_otel_als")]
    envoy_otel_als: Option<Value>,
    sds: Option<Value>,
}

/// `envoyExtAuthzHttp`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "decoding tells known fields from unknown ones; they are looked at as JSON")]
struct ExtAuthzSpec {
    service: Option<String>,
    port: Option<i64>,
    timeout: Option<String>,
    #[serde(alias = "path_prefix")]
    path_prefix: Option<String>,
    #[serde(alias = "fail_open")]
    fail_open: Option<bool>,
    #[serde(alias = "clear_route_cache")]
    clear_route_cache: Option<bool>,
    #[serde(alias = "status_on_error")]
    status_on_error: Option<String>,
    #[serde(alias = "include_headers_in_check")]
    include_headers_in_check: Option<Vec<String>>,
    #[serde(alias = "include_request_headers_in_check")]
    include_request_headers_in_check: Option<Vec<String>>,
    #[serde(alias = "include_additional_headers_in_check")]
    include_additional_headers_in_check: Option<BTreeMap<String, String>>,
    #[serde(alias = "include_request_body_in_check")]
    include_request_body_in_check: Option<CheckBodySpec>,
    #[serde(alias = "headers_to_upstream_on_allow")]
    headers_to_upstream_on_allow: Option<Vec<String>>,
    #[serde(alias = "headers_to_downstream_on_deny")]
    headers_to_downstream_on_deny: Option<Vec<String>>,
    #[serde(alias = "headers_to_downstream_on_allow")]
    headers_to_downstream_on_allow: Option<Vec<String>>,
}

/// `envoyExtAuthzGrpc`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "decoding tells known fields from unknown ones; they are looked at as JSON")]
struct GrpcExtAuthzSpec {
    service: Option<String>,
    port: Option<i64>,
    timeout: Option<String>,
    #[serde(alias = "fail_open")]
    fail_open: Option<bool>,
    #[serde(alias = "clear_route_cache")]
    clear_route_cache: Option<bool>,
    #[serde(alias = "status_on_error")]
    status_on_error: Option<String>,
    #[serde(alias = "include_request_body_in_check")]
    include_request_body_in_check: Option<CheckBodySpec>,
}

/// `includeRequestBodyInCheck`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "decoding tells known fields from unknown ones; they are looked at as JSON")]
struct CheckBodySpec {
    #[serde(alias = "max_request_bytes")]
    max_request_bytes: Option<u32>,
    #[serde(alias = "allow_partial_message")]
    allow_partial_message: Option<bool>,
    #[serde(alias = "pack_as_bytes")]
    pack_as_bytes: Option<bool>,
}
