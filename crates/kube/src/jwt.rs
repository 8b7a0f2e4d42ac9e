//! The keys of JWT-SVIDs, kept in a Secret of the root namespace and turned over with time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use maille_control::ControlPlane;
use maille_core::Clock;
use maille_pki::JwtKeys;
use zeroize::{Zeroize as _, Zeroizing};

/// The Secret.
pub(crate) const SECRET: &str = "istio-jwt-svid";
/// Its type.
const SECRET_TYPE: &str = "maille.dev/jwt-svid-keys";

/// How often it is looked at: another control plane, or a person who deletes it, may have changed the keys. Well within
/// the notice that a new key gives before it signs.
const PERIOD: Duration = Duration::from_secs(30);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Why there are no keys, or no newer ones.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error("cannot read or write it: {}", crate::brief(.0))]
    Api(#[from] kube::Error),
    #[error("it holds no usable keys: {0}; delete it to have new ones made, and tokens in use refused")]
    Unusable(maille_pki::Error),
    #[error("cannot make a key: {0}")]
    Make(maille_pki::Error),
}

/// Keeps the control plane's keys as the Secret says, and the Secret's as time wants them, for ever.
pub(crate) async fn keep(client: Client, control: ControlPlane, namespace: String, clock: Arc<dyn Clock>) {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let mut failing = false;
    loop {
        let wait = match turn(&api, clock.as_ref()).await {
            Ok(keys) => {
                control.set_jwt_keys(keys);
                if std::mem::take(&mut failing) {
                    tracing::info!("the keys of JWT-SVIDs are known");
                }
                PERIOD
            }
            Err(error) => {
                // What is known stays in use. Said once, not every other second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("keys of JWT-SVIDs (Secret {namespace}/{SECRET}): {error}; trying again");
                }
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The keys of now. New ones are used only once they are stored, so that every control plane and every restart has them.
async fn turn(api: &Api<Secret>, clock: &dyn Clock) -> Result<JwtKeys, KeysError> {
    let now = clock.now();
    let mut conflicts = 0;
    loop {
        let written = match api.get_opt(SECRET).await? {
            None => {
                let keys = JwtKeys::generate(now).map_err(KeysError::Make)?;
                let mut secret = Secret {
                    metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
                    type_: Some(SECRET_TYPE.to_owned()),
                    data: Some(data_of(&keys)),
                    ..Secret::default()
                };
                let created = api.create(&PostParams::default(), &secret).await;
                wipe(&mut secret);
                created.map(|mut stored| {
                    wipe(&mut stored);
                    keys
                })
            }
            Some(mut secret) => {
                let entries: BTreeMap<String, Zeroizing<Vec<u8>>> = secret
                    .data
                    .take()
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, value)| (name, value.0.into()))
                    .collect();
                let entries = entries.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
                let keys = JwtKeys::from_secret(entries).map_err(KeysError::Unusable)?;
                let turned = keys.turned(now).map_err(KeysError::Make)?;
                if !turned.changed {
                    return Ok(turned.keys);
                }
                secret.data = Some(data_of(&turned.keys));
                secret.metadata.managed_fields = None;
                // With the version in it, the API server takes it only in place of what was read.
                let replaced = api.replace(SECRET, &PostParams::default(), &secret).await;
                wipe(&mut secret);
                replaced.map(|mut stored| {
                    wipe(&mut stored);
                    turned.keys
                })
            }
        };
        match written {
            Ok(keys) => return Ok(keys),
            // Another control plane was faster: its keys count.
            Err(kube::Error::Api(status)) if status.code == 409 && conflicts < 3 => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn data_of(keys: &JwtKeys) -> BTreeMap<String, ByteString> {
    let entries = keys.to_secret().into_iter();
    entries.map(|(name, text)| (name, ByteString(text.as_bytes().to_vec()))).collect()
}

/// Overwrites private keys before their memory is given back.
fn wipe(secret: &mut Secret) {
    for value in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        value.0.zeroize();
    }
}
