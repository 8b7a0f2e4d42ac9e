//! Kubernetes and Istio objects as typed specs with file positions, turned into a
//! checked model or diagnostics.
//!
//! The one owner of these types: Kubernetes' own come from `k8s-openapi` and are re-exported here as
//! [`k8s`]; Istio's are in [`istio`]. [`check()`] is the one gate: what it lets through has no unknown
//! field, no wrong type and nothing that would be accepted and then ignored.

#![forbid(unsafe_code)]

mod age;
mod check;
pub mod cron;
mod decode;
pub mod destination_rule;
mod diagnostic;
pub mod duration;
mod export;
mod field_error;
mod hosts;
pub mod istio;
pub mod kinds;
pub mod mesh;
pub mod mtls;
mod path;
pub mod proxy_config;
pub mod scope;
pub mod service_entry;
pub mod sidecar;
mod suggest;
pub mod yaml;

pub use check::{MAX_INDEXED_COMPLETIONS, Object, check, parse_indexes, prune_nulls, warnings};
pub use diagnostic::{Diagnostic, Severity};
pub use export::exported_to;
pub use field_error::{FieldError, FieldErrorKind};
pub use hosts::HostPattern;
pub use yaml::load;

/// Kubernetes' own types.
pub mod k8s {
    pub use k8s_openapi::api;
    pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    pub use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
    pub use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
    pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    pub use k8s_openapi::jiff;
}
