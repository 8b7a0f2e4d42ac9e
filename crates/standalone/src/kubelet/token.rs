//! ServiceAccount tokens of a Pod, bound to it and renewed in time.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::Client;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};

/// Kubernetes' default life of a projected token.
const DEFAULT_SECONDS: i64 = 3600;
/// A kubelet renews when 80 % of the life is over.
const RENEW_AT: f64 = 0.8;

/// The tokens of one Pod.
pub(crate) struct Tokens {
    client: Client,
    namespace: String,
    account: String,
    bound: BoundObjectReference,
    held: HashMap<(String, i64), Held>,
}

struct Held {
    token: String,
    obtained: SystemTime,
    renew_at: SystemTime,
}

impl Held {
    /// Whether it is good for a while. One that is from the future shows that the clock has been set back.
    fn is_good(&self, now: SystemTime) -> bool {
        (self.obtained..self.renew_at).contains(&now)
    }
}

impl Tokens {
    pub(crate) fn new(client: Client, pod: &Pod) -> Self {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        Self {
            client,
            namespace: pod.namespace().unwrap_or_default(),
            account: account.unwrap_or_else(|| "default".to_owned()),
            bound: BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            },
            held: HashMap::new(),
        }
    }

    /// A token that is good for a while; asks for a new one when it is time.
    pub(crate) async fn current(&mut self, wanted: &ServiceAccountTokenProjection) -> Result<String, String> {
        let seconds = wanted.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (wanted.audience.clone().unwrap_or_default(), seconds);
        if let Some(held) = self.held.get(&key)
            && held.is_good(SystemTime::now())
        {
            return Ok(held.token.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: wanted.audience.clone().map(|audience| vec![audience]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(self.bound.clone()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let answer = api.create_token_request(&self.account, &PostParams::default(), &request).await;
        let status = answer
            .map_err(|e| format!("token for service account {:?}: {e}", self.account))?
            .status
            .unwrap_or_default();
        let token = status.token.ok_or_else(|| "the API answered without a token".to_owned())?;
        let now = SystemTime::now();
        let expires = status.expiration_timestamp.map_or(now, |time| SystemTime::from(time.0));
        let life = expires.duration_since(now).unwrap_or(Duration::from_secs(10));
        let renew_at = now + life.mul_f64(RENEW_AT);
        self.held.insert(key, Held { token: token.clone(), obtained: now, renew_at });
        Ok(token)
    }

    /// Whether one of them is to be replaced.
    pub(crate) fn are_due(&self) -> bool {
        let now = SystemTime::now();
        self.held.values().any(|held| !held.is_good(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_it_is_due_and_not_before_it_was_obtained() {
        let (second, obtained) = (Duration::from_secs(1), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let held = Held { token: String::new(), obtained, renew_at: obtained + 10 * second };
        assert!(held.is_good(obtained) && held.is_good(obtained + 9 * second));
        assert!(!held.is_good(obtained + 10 * second) && !held.is_good(obtained - second));
    }
}
