//! Generated messages and services; no logic.
//!
//! The sources are under `proto/`; they are compiled at build time by `protox`, so no
//! system `protoc` is needed. Facts and flows are Maille's own; discovery, external authorization
//! and the certificate service are wire-compatible with Envoy's and Istio's.

#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated code carries the protos' comments only"
)]

/// The facts a proxy lives by (`maille.facts.v1`), with protobuf's JSON for serde.
pub mod facts {
    tonic::include_proto!("maille.facts.v1");
    include!(concat!(env!("OUT_DIR"), "/maille.facts.v1.serde.rs"));
}

/// What proxies report they saw (`maille.flows.v1`).
pub mod flows {
    tonic::include_proto!("maille.flows.v1");
}

/// The delta discovery transport (`envoy.service.discovery.v3`).
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Secret discovery (`envoy.service.secret.v3`).
pub mod secret {
    tonic::include_proto!("envoy.service.secret.v3");
}

/// External authorization (`envoy.service.auth.v3`).
pub mod authorization {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// Istio's certificate service (`istio.v1.auth`).
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// What proxies ask the authority for beside certificates (`maille.identity.v1`).
pub mod identity {
    tonic::include_proto!("maille.identity.v1");
}

/// The SPIFFE Workload API, which has no package.
pub mod spiffe {
    tonic::include_proto!("_");
}
