//! Authentication: a client certificate of the API's authority, or a ServiceAccount token.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::pki_types::CertificateDer;

use super::{certificates, tokens};
use crate::api::{Api, Caller};
use crate::request;
use crate::status::{ApiError, ApiResult};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

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

/// Whoever the administrator wants to be taken for (`kubectl --as`), so that a question what an account may is not
/// answered with what the administrator may. Nobody else may ask.
///
/// Source: apiserver `endpoints/filters/impersonation`.
fn impersonated(sender: Caller, headers: &HeaderMap) -> ApiResult<Caller> {
    let asked = |name: &str| [USER, UID, GROUP].contains(&name) || name.starts_with(EXTRA);
    if !headers.keys().any(|name| asked(name.as_str())) {
        return Ok(sender);
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let user = text(USER).to_owned();
    if user.is_empty() {
        return Err(ApiError::bad_request("groups, uid or extra fields to impersonate, but no user"));
    }
    if !sender.is_in(certificates::MASTERS) {
        let why = format!(
            "users \"{user}\" is forbidden: User \"{}\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            sender.name
        );
        return Err(ApiError::new(403, "Forbidden", why));
    }
    let mut groups = Vec::new();
    for value in headers.get_all(GROUP) {
        // A group that cannot be read must not be left out: with fewer groups another question is answered.
        let group = value.to_str().map_err(|_| ApiError::bad_request("Impersonate-Group is not text"))?;
        groups.push(group.to_owned());
    }
    if groups.is_empty()
        && let Some((namespace, _)) =
            user.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'))
    {
        groups.push("system:serviceaccounts".to_owned());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    let all = if user == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !groups.iter().any(|group| group == all) {
        groups.push(all.to_owned());
    }
    let extra = headers
        .iter()
        .filter_map(|(name, value)| {
            let key = name.as_str().strip_prefix(EXTRA)?;
            Some((request::decode(key, false), value.to_str().ok()?.to_owned()))
        })
        .collect();
    Ok(Caller { name: user, uid: text(UID).to_owned(), groups, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn user(name: &str, group: &str) -> Caller {
        Caller { name: name.into(), uid: String::new(), groups: vec![group.into()], extra: Vec::new() }
    }

    #[test]
    fn only_the_administrator_is_taken_for_another() {
        let account = user("system:serviceaccount:shop:cart", "system:authenticated");
        for name in [USER, GROUP, "impersonate-extra-scopes"] {
            let refused = impersonated(account.clone(), &headers(&[(USER, "kubernetes-admin"), (name, "x")]));
            assert_eq!(refused.unwrap_err().code, 403, "{name}");
        }
        assert_eq!(impersonated(account.clone(), &headers(&[("accept", "x")])).unwrap(), account);
        let admin = || user(certificates::ADMIN, certificates::MASTERS);
        let cart = impersonated(admin(), &headers(&[(USER, "system:serviceaccount:shop:cart")])).unwrap();
        assert_eq!(cart.name, "system:serviceaccount:shop:cart");
        let groups = ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"];
        assert_eq!(cart.groups, groups, "and none of the administrator's");
        assert_eq!(impersonated(admin(), &headers(&[(GROUP, "x")])).unwrap_err().code, 400);
    }
}
