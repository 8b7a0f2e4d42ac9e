//! The control plane: world of objects, facts, subscribers; CA service; flow store.

#![forbid(unsafe_code)]
