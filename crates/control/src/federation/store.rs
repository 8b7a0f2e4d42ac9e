//! Where the last good bundles outlive the control plane.

use std::collections::BTreeMap;
use std::pin::Pin;

/// Bundle documents as they came, by a name that means nothing elsewhere. Nothing in them is secret.
pub type Stored = BTreeMap<String, String>;

type Outcome<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// Keeps bundles; whoever may write to it is believed like the mesh configuration.
pub trait BundleStore: Send + Sync {
    /// Everything kept; an error may pass.
    fn load(&self) -> Outcome<'_, Stored>;

    /// Replaces everything.
    fn save(&self, bundles: Stored) -> Outcome<'_, ()>;
}

/// Forgets everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStore;

impl BundleStore for NoStore {
    fn load(&self) -> Outcome<'_, Stored> {
        Box::pin(async { Ok(Stored::new()) })
    }

    fn save(&self, _: Stored) -> Outcome<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
