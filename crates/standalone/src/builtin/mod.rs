//! The objects that every mesh begins with.
