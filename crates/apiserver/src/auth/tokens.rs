//! ServiceAccount tokens: ES256 JWTs, bound to a Pod or Secret and short-lived.
//!
//! Source: KEP-1205 (bound tokens), kubernetes `pkg/serviceaccount/claims.go`.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use maille_pki::{KeyPair, generate_key};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ServeError;
use crate::api::Caller;
use crate::json;
use crate::store::{State, Store};
use crate::time;

/// `iss`, and the audience of tokens for this API.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Least life of a token, as in Kubernetes.
pub(crate) const MIN_SECONDS: i64 = 600;
/// Most: one day; the mesh has no use for longer ones.
pub(crate) const MAX_SECONDS: i64 = 86_400;

/// Signs and verifies.
pub(crate) struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
}

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    pub(crate) sub: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: Bound,
}

/// The private claims.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Reference>,
}

/// An object by name and uid, so that one made anew under the name is another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Reference {
    pub(crate) fn to(object: &Value) -> Self {
        Self { name: json::name(object).to_owned(), uid: json::uid(object).to_owned() }
    }
}

impl Tokens {
    /// Loads the signing key of this store, or makes it.
    pub(crate) fn load(store: &Store) -> Result<Self, ServeError> {
        let pem = store.setting("token-key", || -> Result<Vec<u8>, ServeError> {
            Ok(generate_key()?.to_pem().as_bytes().to_vec())
        })?;
        let pem = String::from_utf8(pem)
            .map_err(|_| ServeError::Setup("the token key in the store is no PEM".into()))?;
        let key = KeyPair::from_pem(&pem)?;
        let public = key.public_key()?;
        // The uncompressed point ends a P-256 SubjectPublicKeyInfo (RFC 5480 section 2.2).
        let spki = public.spki();
        let point = spki
            .len()
            .checked_sub(65)
            .and_then(|at| spki.get(at..))
            .ok_or_else(|| ServeError::Setup("the token key in the store is no P-256 key".into()))?;
        let mut id = uuid_of(point);
        id.truncate(16);
        Ok(Self {
            signing: EncodingKey::from_ec_der(key.to_der().secret_der()),
            verifying: DecodingKey::from_ec_der(point),
            key_id: id,
        })
    }

    /// Signs a token.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// Reads a token for one of `audiences`: signature, times and audience hold. Answers the claims and the
    /// audiences that both sides named.
    pub(crate) fn verify(&self, token: &str, audiences: &[String]) -> Result<(Claims, Vec<String>), String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(audiences);
        // A token of ours is from the future only if the clock was set back since, and whoever holds it would be locked out
        // until that time comes round again.
        validation.validate_nbf = false;
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|e| format!("the token is not valid: {e}"))?
            .claims;
        let common: Vec<String> = claims.aud.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(format!("the token is for {:?}, not for {audiences:?}", claims.aud));
        }
        Ok((claims, common))
    }
}

/// A short name of a key, for `kid`.
fn uuid_of(point: &[u8]) -> String {
    point.iter().skip(1).take(16).map(|b| format!("{b:02x}")).collect()
}

/// The caller that verified claims name, if what they are bound to is still there.
pub(crate) fn caller(state: &State, claims: &Claims) -> Result<Caller, String> {
    let bound = &claims.kubernetes;
    let same = |store: &str, reference: &Reference| match state.get(store, &bound.namespace, &reference.name)
    {
        Some(object) if json::uid(object) == reference.uid => Ok(object.clone()),
        Some(_) => Err(format!("{store} {}/{} is another one now", bound.namespace, reference.name)),
        None => Err(format!("{store} {}/{} is gone", bound.namespace, reference.name)),
    };
    let account = same("serviceaccounts", &bound.serviceaccount)?;
    let subject = format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name);
    if claims.sub != subject {
        return Err("the token's subject is not its account".to_owned());
    }
    let mut extra =
        vec![("authentication.kubernetes.io/credential-id".to_owned(), format!("JTI={}", claims.jti))];
    if let Some(pod) = &bound.pod {
        let found = same("pods", pod)?;
        // A token outlives its Pod's deletion by no more than the time the Pod takes to end.
        let deadline = json::text(&found, &["metadata", "deletionTimestamp"]);
        if let Ok(at) = deadline.parse::<jiff::Timestamp>()
            && jiff::Timestamp::now().duration_since(at).as_secs() > 60
        {
            return Err(format!("pod {}/{} has been deleted", bound.namespace, pod.name));
        }
        extra.push(("authentication.kubernetes.io/pod-name".into(), pod.name.clone()));
        extra.push(("authentication.kubernetes.io/pod-uid".into(), pod.uid.clone()));
    }
    if let Some(node) = &bound.node {
        extra.push(("authentication.kubernetes.io/node-name".into(), node.name.clone()));
    }
    if let Some(secret) = &bound.secret {
        same("secrets", secret)?;
    }
    Ok(Caller {
        name: subject,
        uid: json::uid(&account).to_owned(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{}", bound.namespace),
            "system:authenticated".into(),
        ],
        extra,
    })
}

/// `userInfo` as reviews show it.
pub(crate) fn user_info(caller: &Caller) -> Value {
    let mut extra = Map::new();
    for (key, value) in &caller.extra {
        extra.insert(key.clone(), json!([value]));
    }
    let mut user = json!({ "username": caller.name, "groups": caller.groups });
    if let Some(map) = user.as_object_mut() {
        if !caller.uid.is_empty() {
            map.insert("uid".into(), caller.uid.clone().into());
        }
        if !extra.is_empty() {
            map.insert("extra".into(), Value::Object(extra));
        }
    }
    user
}

/// A new token's `jti`.
pub(crate) fn token_id() -> String {
    time::uuid()
}
