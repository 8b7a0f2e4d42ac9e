//! The authority over time: how what signs and what is trusted are replaced without an outage.
//!
//! A rotation walks `idle → distributing → signing → withdrawing → idle`. Each step is stored before it takes effect, and
//! none is taken before every live proxy has confirmed the one before it; a rollback walks the same way with old and new
//! exchanged. `GET /ca` of the monitoring port shows it as [`Status`]; people ask for something with a [`Request`].

mod driver;
mod gate;
mod holders;
mod machine;
mod show;
mod sightings;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod wire;

pub use driver::{Keeper, StartError};
pub(crate) use holders::Holders;
pub(crate) use show::Shown;
pub(crate) use sightings::Sheet;
pub use state::Source;
pub(crate) use state::{Home, LiveProxy, Seen};
pub(crate) use store::home;
pub use store::{Entries, Object, Store, StoreError, Stored};
pub use wire::{
    Action, Answer, CaStatus, CertificateStatus, Ended, Kind, Offer, Outcome, Phase, Plan, Request,
    RotationStatus, Status, Waiting,
};

/// The Secret of the root namespace in which a rotation is stored, and asked for.
pub const SECRET: &str = "istio-ca-rotation";
/// Its type.
pub const SECRET_TYPE: &str = "maille.dev/ca-rotation";
/// Its annotation that asks for something: a [`Request`] as JSON. It is gone once it has been answered.
pub const REQUEST_ANNOTATION: &str = "maille.dev/ca-request";
/// Its annotation that says what is wrong with the files that the Secret `cacerts` is written from; absent if nothing is.
pub const FILES_ANNOTATION: &str = "maille.dev/ca-files-problem";
/// Before the names of the entries that come with a request for [`Offer::Stored`]: `next-ca-cert.pem`, `next-ca-key.pem`,
/// `next-root-cert.pem`, `next-cert-chain.pem`, or `next-tls.crt`, `next-tls.key`, `next-ca.crt`. Gone once it has been
/// answered.
pub const OFFER_PREFIX: &str = "next-";
