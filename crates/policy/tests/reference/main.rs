//! Every example of the authorization reference that needs neither tokens nor external authorizers, section by
//! section, as tables.

mod addresses;
mod explanations;
mod fields;
mod identity;
mod structure;
mod support;
mod tcp;
