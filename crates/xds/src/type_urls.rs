//! Type URLs of Maille's facts.

/// `Inbound`; named `<namespace>/<pod>`, and answered only to that pod's own proxy.
pub const INBOUND: &str = "type.googleapis.com/maille.facts.v1.Inbound";
/// `Destination`; named by the IP address or host name asked for.
pub const DESTINATION: &str = "type.googleapis.com/maille.facts.v1.Destination";
/// `Authorization`; a wildcard holds exactly the policies that apply to the subscriber.
pub const AUTHORIZATION: &str = "type.googleapis.com/maille.facts.v1.Authorization";
/// `RequestAuthentication`; a wildcard holds exactly the ones that apply to the subscriber.
pub const REQUEST_AUTHENTICATION: &str = "type.googleapis.com/maille.facts.v1.RequestAuthentication";
/// `TrustBundle`; a wildcard, named by trust domain.
pub const TRUST_BUNDLE: &str = "type.googleapis.com/maille.facts.v1.TrustBundle";
/// `MeshSettings`; a wildcard with the one name `mesh`.
pub const MESH_SETTINGS: &str = "type.googleapis.com/maille.facts.v1.MeshSettings";
/// `Credential`; named by Secret, and answered only to proxies that a DestinationRule lets use it.
pub const CREDENTIAL: &str = "type.googleapis.com/maille.facts.v1.Credential";
/// `Revocations`; a wildcard with the one name `mesh`.
pub const REVOCATIONS: &str = "type.googleapis.com/maille.facts.v1.Revocations";

/// The resource name that subscribes to everything of a type (xDS protocol, "Wildcard subscriptions").
pub const WILDCARD: &str = "*";
