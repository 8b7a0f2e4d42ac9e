//! JWT-SVIDs of the own identity, minted by the authority.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maille_core::Identity;
use maille_proto::identity::identity_client::IdentityClient;
use maille_proto::identity::{MintJwtSvidRequest, MintJwtSvidResponse};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::believed::BelievedWatch;
use crate::agent::discovery::{ChannelWatch, REVOKED};
use crate::agent::identity::CredentialWatch;

/// Audiences of one token, and the longest.
const MAX_AUDIENCES: usize = 32;
const MAX_AUDIENCE: usize = 1024;
/// Sets of audiences whose tokens are kept; those that end first make room.
const MAX_KEPT: usize = 256;
/// Tokens that are minted at once.
const MAX_MINTING: usize = 4;
const MINT_TIMEOUT: Duration = Duration::from_secs(10);

/// Mints tokens, and keeps each for half of its life; longer only while the authority cannot say whether the workload may
/// still have them.
pub(super) struct Tokens {
    credential: CredentialWatch,
    channel: ChannelWatch,
    believed: BelievedWatch,
    kept: Mutex<HashMap<Vec<String>, Kept>>,
    minting: Semaphore,
}

#[derive(Clone)]
struct Kept {
    identity: Identity,
    token: Zeroizing<String>,
    /// No later than the authority made it.
    asked: SystemTime,
    fresh_until: SystemTime,
    expires: SystemTime,
}

/// A token, and whose it is.
pub(super) struct Token {
    pub(super) identity: Identity,
    pub(super) text: Zeroizing<String>,
}

impl Tokens {
    pub(super) fn new(credential: CredentialWatch, channel: ChannelWatch, believed: BelievedWatch) -> Self {
        Self { credential, channel, believed, kept: Mutex::default(), minting: Semaphore::new(MAX_MINTING) }
    }

    /// A token for these audiences. `wanted` is the SPIFFE ID that the caller asks for; empty: its own.
    pub(super) async fn fetch(&self, audiences: Vec<String>, wanted: &str) -> Result<Token, Status> {
        let audiences = checked(audiences)?;
        let identity = self.credential.borrow().as_ref().map(|c| c.svid.identity().clone());
        let identity = identity.ok_or_else(|| Status::unavailable("the proxy has no certificate yet"))?;
        if !wanted.is_empty() && Identity::parse_uri(wanted).ok().as_ref() != Some(&identity) {
            return Err(Status::permission_denied(format!("this workload is {} only", identity.uri())));
        }
        let is_fresh = |kept: &Kept| SystemTime::now() < kept.fresh_until;
        if let Some(kept) = self.kept(&audiences, &identity).filter(is_fresh) {
            return Ok(kept.into());
        }
        // Never closed.
        let _place = self.minting.acquire().await.map_err(|e| Status::internal(e.to_string()))?;
        // Somebody else may have asked for the same meanwhile.
        if let Some(kept) = self.kept(&audiences, &identity).filter(is_fresh) {
            return Ok(kept.into());
        }
        let asked = SystemTime::now();
        match self.mint(&audiences).await {
            Ok(minted) => {
                let kept = self.keep(audiences, identity, minted, asked);
                Ok(kept.into())
            }
            Err(status) => {
                let is_good = |kept: &Kept| SystemTime::now() < kept.expires;
                self.kept(&audiences, &identity).filter(is_good).map(Token::from).ok_or(status)
            }
        }
    }

    /// What is kept and still good: of the own identity, and not revoked.
    fn kept(&self, audiences: &[String], identity: &Identity) -> Option<Kept> {
        let revoked = self.believed.borrow().revoked.clone();
        let is_good = |kept: &&Kept| {
            kept.identity == *identity && revoked.refuses_token(identity, Some(kept.asked)).is_none()
        };
        self.kept.lock().get(audiences).filter(is_good).cloned()
    }

    async fn mint(&self, audiences: &[String]) -> Result<MintJwtSvidResponse, Status> {
        let channel = self.channel.borrow().clone();
        let channel = channel.ok_or_else(|| Status::unavailable("the control plane cannot be reached"))?;
        let request = MintJwtSvidRequest { audience: audiences.to_vec() };
        let minted = timeout(MINT_TIMEOUT, IdentityClient::new(channel).mint_jwt_svid(request)).await;
        let minted = minted.map_err(|_| Status::unavailable("the authority did not answer in time"))?;
        minted.map(tonic::Response::into_inner).map_err(|status| {
            if status.code() == Code::PermissionDenied || status.message().starts_with(REVOKED) {
                // Nor are those that were minted before the workload's any more.
                self.kept.lock().clear();
            }
            let text = format!("the authority gave no token: {}", status.message());
            match status.code() {
                // Standard answers of the Workload API (reference mtls 6.3).
                Code::PermissionDenied | Code::Unauthenticated => Status::permission_denied(text),
                code @ (Code::InvalidArgument | Code::Unimplemented) => Status::new(code, text),
                _ => Status::unavailable(text),
            }
        })
    }

    fn keep(
        &self,
        audiences: Vec<String>,
        identity: Identity,
        minted: MintJwtSvidResponse,
        asked: SystemTime,
    ) -> Kept {
        let now = SystemTime::now();
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(minted.expires_s)).unwrap_or(now);
        let life = expires.duration_since(now).unwrap_or_default();
        let kept = Kept {
            identity,
            token: Zeroizing::new(minted.token),
            asked,
            fresh_until: now + life / 2,
            expires,
        };
        let mut all = self.kept.lock();
        if all.len() >= MAX_KEPT && !all.contains_key(&audiences) {
            all.retain(|_, kept| now < kept.expires);
            while all.len() >= MAX_KEPT {
                let first = all.iter().min_by_key(|(_, kept)| kept.expires).map(|(key, _)| key.clone());
                let Some(first) = first else { break };
                all.remove(&first);
            }
        }
        all.insert(audiences, kept.clone());
        kept
    }
}

impl From<Kept> for Token {
    fn from(kept: Kept) -> Self {
        Self { identity: kept.identity, text: kept.token }
    }
}

/// In order and without doubles: the same set has the same token.
fn checked(mut audiences: Vec<String>) -> Result<Vec<String>, Status> {
    audiences.sort();
    audiences.dedup();
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return Err(Status::invalid_argument("a JWT-SVID needs an audience, and none may be empty"));
    }
    if audiences.len() > MAX_AUDIENCES || audiences.iter().any(|audience| audience.len() > MAX_AUDIENCE) {
        return Err(Status::invalid_argument(format!(
            "a JWT-SVID has at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE} bytes"
        )));
    }
    Ok(audiences)
}
