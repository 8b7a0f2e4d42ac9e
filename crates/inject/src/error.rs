use maille_core::ports::PROXY_UID;

/// Why a Pod is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// An annotation has a value that it cannot have.
    #[error("metadata.annotations[{annotation}]: '{value}' {reason}")]
    Annotation {
        /// Its name.
        annotation: String,
        /// Its value.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A name that belongs to the sidecar.
    #[error("{path}: the name '{name}' is the sidecar's own; choose another")]
    ReservedName {
        /// The field.
        path: String,
        /// The name.
        name: String,
    },
    /// The sidecar's user or group.
    #[error(
        "{path}: user and group {PROXY_UID} are the sidecar's own, and what runs as them bypasses the mesh; choose \
         another number"
    )]
    ReservedId {
        /// The field.
        path: String,
    },
}
