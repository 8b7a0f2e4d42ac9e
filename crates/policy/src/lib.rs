//! Checked policies in, compiled structure out; decisions that carry their reasons.
//!
//! Pure: no I/O, no clock, no async. [`PolicySet::compile`] turns the AuthorizationPolicies that apply to a
//! workload into one structure; [`PolicySet::on_connection`] evaluates once what is fixed for a connection;
//! [`ConnectionPolicy::decide_http`] and [`ConnectionPolicy::decide_tcp`] evaluate what is left. What does not decide
//! by itself is asked for beside that: whom to ask (CUSTOM), what to mark (AUDIT), what dry-run policies would say.
//! The meaning is Istio's for sidecars.

#![forbid(unsafe_code)]

mod address;
mod attributes;
pub mod authentication;
mod claims;
mod compile;
mod connection;
mod decision;
mod explain;
mod index;
mod input;
pub mod path;
mod peer;
mod plan;
mod rule;
mod set;
mod side;
mod template;
mod test;
mod text;
mod token;

pub use attributes::{ConnectionAttributes, HeaderLookup, NoHeaders, RequestAttributes, forwarded_for};
pub use claims::Claims;
pub use connection::ConnectionPolicy;
pub use decision::{Ask, DecidedBy, Decision, Needs, RuleId, Shadow, ShadowResult, Verdict};
pub use explain::NearMiss;
pub use input::{Authorization, CompileProblem, TrustContext};
pub use set::PolicySet;
