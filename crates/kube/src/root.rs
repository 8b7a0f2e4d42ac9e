//! The authority's key material, kept in a Secret of the root namespace (reference mtls 5.5).

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use maille_core::{Clock, TrustDomain};
use maille_pki::{Authority, ROOT_TTL};

/// The Secret that the control plane makes for itself.
pub(crate) const SELF_SIGNED: &str = "istio-ca-secret";
/// The Secret with which an operator plugs in a CA; it comes first.
pub(crate) const PLUGGED_IN: &str = "cacerts";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// The API server cannot be asked; trying again may help.
    #[error("cannot read or write Secret {namespace}/{name}: {}", crate::brief(.source))]
    Api {
        namespace: String,
        name: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    /// What is stored cannot be used; a person must look.
    #[error("Secret {namespace}/{name} holds no usable authority: {source}")]
    Unusable {
        namespace: String,
        name: &'static str,
        #[source]
        source: maille_pki::Error,
    },
    /// A new root cannot be made.
    #[error("cannot make a root: {0}")]
    Make(#[source] maille_pki::Error),
}

impl RootError {
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::Api { .. })
    }
}

/// Loads the authority: the plugged-in one if there is one, else the self-signed one, which is made if
/// missing. Replicas that start together agree: whoever comes second loads what the first has stored.
pub(crate) async fn load_or_create(
    client: &Client,
    namespace: &str,
    trust_domain: &TrustDomain,
    clock: &dyn Clock,
) -> Result<Authority, RootError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let api_error =
        |name, source| RootError::Api { namespace: namespace.to_owned(), name, source: Box::new(source) };
    for name in [PLUGGED_IN, SELF_SIGNED] {
        match secrets.get(name).await {
            Ok(secret) => return read(&secret, namespace, name),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(api_error(name, error)),
        }
    }
    let authority = Authority::self_signed(trust_domain, clock.now(), ROOT_TTL).map_err(RootError::Make)?;
    let data = authority.to_secret().into_iter();
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SELF_SIGNED.to_owned()), ..ObjectMeta::default() },
        type_: Some("istio.io/ca-root".to_owned()),
        data: Some(data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))).collect()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(namespace, name = SELF_SIGNED, "made a new root");
            Ok(authority)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let stored = secrets.get(SELF_SIGNED).await.map_err(|e| api_error(SELF_SIGNED, e))?;
            read(&stored, namespace, SELF_SIGNED)
        }
        Err(error) => Err(api_error(SELF_SIGNED, error)),
    }
}

fn read(secret: &Secret, namespace: &str, name: &'static str) -> Result<Authority, RootError> {
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    Authority::from_secret(|key| data.get(key).map(|bytes| bytes.0.as_slice()))
        .map_err(|source| RootError::Unusable { namespace: namespace.to_owned(), name, source })
}
