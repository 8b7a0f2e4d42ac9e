//! The authority's JWT-SVIDs, in the scripted control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use maille_core::Identity;
use maille_pki::KeyPair;
use maille_proto::identity::identity_server::Identity as IdentityService;
use maille_proto::identity::{MintJwtSvidRequest, MintJwtSvidResponse};
use parking_lot::Mutex;
use serde_json::json;
use tonic::{Request, Response, Status};

/// A key for JWT-SVIDs, and what was made with it.
pub(super) struct JwtKey {
    key: KeyPair,
    /// Audiences, by token.
    pub(super) minted: Mutex<Vec<Vec<String>>>,
    pub(super) life: Mutex<Duration>,
}

impl JwtKey {
    pub(super) fn new() -> Arc<Self> {
        let key = maille_pki::generate_key().expect("key");
        Arc::new(Self { key, minted: Mutex::default(), life: Mutex::new(Duration::from_secs(300)) })
    }

    pub(super) fn set(&self) -> Vec<u8> {
        let public = self.key.public_key().expect("public key");
        // The end of the SubjectPublicKeyInfo is the point.
        let point = &public.spki()[public.spki().len() - 64..];
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[..32]), URL_SAFE_NO_PAD.encode(&point[32..]));
        let key = json!({"kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": "one", "x": x, "y": y});
        json!({"keys": [key]}).to_string().into_bytes()
    }

    pub(super) fn sign(&self, identity: &Identity, audience: &[String], expires: u64, now: u64) -> String {
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        let claims = json!({"sub": identity.uri(), "aud": audience, "exp": expires, "iat": now});
        let key = EncodingKey::from_ec_der(self.key.to_der().secret_der());
        jsonwebtoken::encode(&header, &claims, &key).expect("signed")
    }
}

pub(super) struct Minter {
    pub(super) key: Arc<JwtKey>,
    pub(super) peer: Option<Identity>,
    pub(super) refuses: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl IdentityService for Minter {
    async fn mint_jwt_svid(
        &self,
        request: Request<MintJwtSvidRequest>,
    ) -> Result<Response<MintJwtSvidResponse>, Status> {
        let peer = self.peer.as_ref().ok_or_else(|| Status::unauthenticated("show your certificate"))?;
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Status::permission_denied("this identity is revoked; nothing is issued to it"));
        }
        let audience = request.into_inner().audience;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let expires_s = now + self.key.life.lock().as_secs();
        let token = self.key.sign(peer, &audience, expires_s, now);
        self.key.minted.lock().push(audience);
        Ok(Response::new(MintJwtSvidResponse { token, expires_s }))
    }
}
