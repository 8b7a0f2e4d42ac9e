//! The commands of people; the roles of processes are in [`crate::roles`].

pub(crate) mod apply;
pub(crate) mod delete;
pub(crate) mod down;
pub(crate) mod exec;
pub(crate) mod flows;
pub(crate) mod get;
pub(crate) mod logs;
pub(crate) mod objects;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod version;
