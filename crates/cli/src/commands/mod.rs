//! The commands of people; the roles of processes are in [`crate::roles`].

pub(crate) mod admin;
pub(crate) mod analyze;
pub(crate) mod apply;
pub(crate) mod authz;
pub(crate) mod ca;
pub(crate) mod check;
pub(crate) mod dashboard;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod down;
pub(crate) mod exec;
pub(crate) mod experimental;
pub(crate) mod flows;
pub(crate) mod get;
pub(crate) mod logs;
pub(crate) mod objects;
pub(crate) mod proxy_config;
pub(crate) mod proxy_status;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod validate;
pub(crate) mod version;
