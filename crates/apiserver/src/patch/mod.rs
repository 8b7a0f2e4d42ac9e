//! The ways to change a part of an object.

pub(crate) mod apply;
pub(crate) mod fields;
pub(crate) mod json_patch;
pub(crate) mod merge;
pub(crate) mod strategic;
