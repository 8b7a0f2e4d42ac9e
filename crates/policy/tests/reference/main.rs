//! Every example of the authorization reference, section by section, as tables: sections 2 to 16 and 20 to 22. (17 is
//! about another data plane, 18 is validation, 19 the verification of tokens.)

mod actions;
mod addresses;
mod checklist;
mod explanations;
mod fields;
mod identity;
mod paths;
mod scope;
mod structure;
mod support;
mod tcp;
mod tokens;
