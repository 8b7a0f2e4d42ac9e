//! Kubernetes and Istio objects as typed specs with file positions, turned into a
//! checked model or diagnostics.
//!
//! The one owner of these types: Kubernetes' own come from `k8s-openapi` and are re-exported here as
//! [`k8s`]; Istio's are in [`istio`]. What a user wrote becomes a `…Spec`; what
//! [`check()`] lets through is a [`model`] value, of which every part is valid.

#![forbid(unsafe_code)]

pub mod istio;

/// Kubernetes' own types.
pub mod k8s {
    pub use k8s_openapi::api;
    pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    pub use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
    pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    pub use k8s_openapi::jiff;
}
