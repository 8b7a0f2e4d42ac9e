//! ServiceAccount tokens, reviewed by the API server (reference mtls 5.3, authenticator 3).

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use maille_control::{ReviewError, Reviewed, TokenReviewer};
use tokio::time::timeout;

/// How long a review may take; the caller waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tokens are JWTs of a kilobyte or two; nothing longer is passed on.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Asks the API server.
pub(crate) struct ApiTokenReviewer(pub(crate) Client);

impl TokenReviewer for ApiTokenReviewer {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        Box::pin(async move {
            if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
                return Err(ReviewError::Rejected(format!("{} bytes are no token", token.len())));
            }
            let review = TokenReview {
                spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) },
                ..TokenReview::default()
            };
            let api = Api::<TokenReview>::all(self.0.clone());
            let parameters = PostParams::default();
            let answer = timeout(PATIENCE, api.create(&parameters, &review)).await;
            let unavailable = |reason: String| ReviewError::Unavailable(reason);
            let answer = answer.map_err(|_| unavailable(format!("no answer within {PATIENCE:?}")))?;
            let answer = answer.map_err(|e| unavailable(crate::brief(&e)))?;
            read(&answer.status.unwrap_or_default(), audience)
        })
    }
}

fn read(status: &TokenReviewStatus, audience: &str) -> Result<Reviewed, ReviewError> {
    let rejected = |reason: String| Err(ReviewError::Rejected(reason));
    if status.authenticated != Some(true) {
        return rejected(status.error.clone().unwrap_or_else(|| "not authenticated".to_owned()));
    }
    // An API server that does not know audiences leaves them out, and would accept any token.
    if !status.audiences.iter().flatten().any(|a| a == audience) {
        return rejected(format!("it is not for audience {audience}"));
    }
    let user = status.user.clone().unwrap_or_default();
    if !user.groups.iter().flatten().any(|group| group == "system:serviceaccounts") {
        return rejected("its user is no service account".to_owned());
    }
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return rejected(format!("user {name:?} is no service account"));
    };
    let extra = user.extra.unwrap_or_default();
    let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    let pod =
        first("authentication.kubernetes.io/pod-name").zip(first("authentication.kubernetes.io/pod-uid"));
    Ok(Reviewed { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;
    use std::collections::BTreeMap;

    fn good() -> TokenReviewStatus {
        let key = |name: &str| format!("authentication.kubernetes.io/{name}");
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["istio-ca".into()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:cart".into()),
                groups: Some(vec!["system:serviceaccounts".into(), "system:serviceaccounts:shop".into()]),
                extra: Some(BTreeMap::from([
                    (key("pod-name"), vec!["cart-1".into()]),
                    (key("pod-uid"), vec!["u1".into()]),
                ])),
                uid: None,
            }),
            error: None,
        }
    }

    #[test]
    fn a_reviewed_token_names_its_account_and_pod() {
        let reviewed = read(&good(), "istio-ca").expect("good");
        assert_eq!((reviewed.namespace.as_str(), reviewed.service_account.as_str()), ("shop", "cart"));
        assert_eq!(reviewed.pod, Some(("cart-1".into(), "u1".into())));
    }

    /// CA-11, and whatever else is no token of a service account for this audience.
    #[test]
    fn ca_11_a_token_that_is_anything_else_is_rejected() {
        let mut unauthenticated = good();
        unauthenticated.authenticated = None;
        let mut other_audience = good();
        other_audience.audiences = Some(vec!["api".into()]);
        let mut no_audience = good();
        no_audience.audiences = None;
        let mut no_group = good();
        no_group.user.as_mut().expect("user").groups = None;
        let mut person = good();
        person.user.as_mut().expect("user").username = Some("alice".into());
        for status in [unauthenticated, other_audience, no_audience, no_group, person] {
            assert!(matches!(read(&status, "istio-ca"), Err(ReviewError::Rejected(_))), "{status:?}");
        }
    }
}
