//! What can be done with objects.

pub(crate) mod delete;

pub(crate) mod read;
pub(crate) mod watch;
pub(crate) mod write;

#[cfg(test)]
pub(crate) mod tests;
