//! One file for each analyzer.

pub(crate) mod annotations;
pub(crate) mod application_uid;
pub(crate) mod authorization_namespaces;
pub(crate) mod authorization_workloads;
pub(crate) mod ca_certificates;
pub(crate) mod destination_hosts;
pub(crate) mod destination_subsets;
pub(crate) mod destination_tls;
pub(crate) mod http_rules;
pub(crate) mod identity_rules;
pub(crate) mod injection;
mod known_annotations;
pub(crate) mod multiple_services;
mod names;
pub(crate) mod no_policy;
pub(crate) mod originated_tls;
pub(crate) mod peer_authentications;
pub(crate) mod plaintext;
pub(crate) mod port_level_mtls;
pub(crate) mod port_names;
pub(crate) mod principals;
pub(crate) mod schema;
pub(crate) mod service_entries;
pub(crate) mod shadowed;
