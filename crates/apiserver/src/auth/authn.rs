//! Authentication: a client certificate of the API's authority, or a ServiceAccount token.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::pki_types::CertificateDer;

use super::tokens;
use crate::api::{Api, Caller};
use crate::status::{ApiError, ApiResult};

/// Who a verified client certificate names (CN is the user, each O a group).
pub(crate) fn certificate_user(leaf: &CertificateDer<'_>) -> Option<Caller> {
    match maille_pki::client_subject(leaf) {
        Ok(subject) => {
            let mut groups = subject.organizations;
            groups.push("system:authenticated".into());
            Some(Caller { name: subject.common_name, uid: String::new(), groups, extra: Vec::new() })
        }
        Err(error) => {
            tracing::info!(%error, "a client certificate names no user");
            None
        }
    }
}

/// As whom a request is to be judged; `None` when it says nothing about that.
pub(crate) fn caller(
    api: &Api,
    certificate: Option<&Caller>,
    headers: &HeaderMap,
) -> ApiResult<Option<Caller>> {
    sender(api, certificate, headers)?.map(|sender| impersonated(sender, headers)).transpose()
}

/// Who sent it.
fn sender(api: &Api, certificate: Option<&Caller>, headers: &HeaderMap) -> ApiResult<Option<Caller>> {
    // Whoever shows a token means it, even if the connection has a certificate.
    if let Some(value) = headers.get(AUTHORIZATION) {
        let text = value.to_str().unwrap_or_default();
        let token = text
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(ApiError::unauthorized)?;
        let audiences = [tokens::ISSUER.to_owned()];
        let found = api
            .tokens
            .verify(token, &audiences)
            .and_then(|(claims, _)| api.store.read(|state| tokens::caller(state, &claims)));
        return match found {
            Ok(caller) => Ok(Some(caller)),
            Err(why) => {
                tracing::info!(why, "a token was refused");
                Err(ApiError::unauthorized())
            }
        };
    }
    Ok(certificate.cloned())
}
