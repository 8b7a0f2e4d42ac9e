//! Facts shown in Envoy's shapes, as `istioctl proxy-config` prints them.
//!
//! Pure: what a proxy showed on its admin port goes in ([`Dump::of_proxy`]), JSON in Envoy's shapes and rows for people
//! come out. Names are Istio's (`outbound|80||cart.production.svc.cluster.local`, `virtualInbound`, `ROOTCA`), since
//! people and scripts look for them. What a proxy asks for on demand is shown once it holds it.
//!
//! Layout and names: reference cli-and-telemetry 1.2, mtls-and-identity 1.3 and 8.

#![forbid(unsafe_code)]

mod address;
mod bootstrap;
mod case;
mod clusters;
mod dump;
mod endpoints;
mod ext_authz;
mod jwt_authn;
mod known;
mod listeners;
mod matchers;
mod policy;
mod rbac;
mod routes;
mod secrets;
pub mod tables;
mod transport;

pub use dump::{Dump, ReadError};
pub use rbac::{ANONYMOUS, LoadedRules, PolicyRule, loaded_policies, loaded_rules};
