//! RequestAuthentication: are a request's tokens good, and what do they say (reference authorization 19).
//!
//! Decides as Envoy's filter `jwt_authn` does when Istio configures it (istio `pilot/pkg/security/authn`, envoy
//! `source/extensions/filters/http/jwt_authn`): a request without tokens passes, without an identity; one whose tokens
//! satisfy one rule passes with that rule's; any other is refused with Envoy's words. Where Envoy believes a token that
//! the RFCs do not (`crit`, members that occur twice, algorithms that do not fit the key, `exp: 0`), it is refused here.
//!
//! What a header of a token says about keys (`jwk`, `jku`, `x5u`, `x5c`) is never looked at: keys come from the policy.
//! Pure but for the cache: no I/O, no clock. Cryptography is jsonwebtoken's and aws-lc's.

mod algorithm;
mod audience;
mod cache;
mod input;
mod json;
mod keys;
mod locations;
mod outputs;
mod request;
mod rule;
mod status;
mod svid;
mod token;
#[cfg(test)]
mod vectors;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use cache::TokenCache;
pub use input::{AuthenticationProblem, ClaimToHeader, JwtHeader, JwtRule, RequestAuthentication};
pub use request::{Changes, TokenRefused, TokenRequest, Verified};
pub use svid::{JwtSvid, SvidRefused, verify_jwt_svid};

use crate::HeaderLookup;
use rule::{CLOCK_SKEW, Opinion, Rule};
use status::Status;

/// The compiled RequestAuthentications of one workload; immutable, shared.
#[derive(Default)]
pub struct Authentication {
    /// By issuer.
    rules: Vec<Rule>,
    /// Headers that rules write, which no caller may send.
    outputs: Vec<Arc<str>>,
}

impl Authentication {
    /// Compiles all policies that apply to a workload: their rules are one list, by issuer.
    pub fn compile(policies: &[RequestAuthentication]) -> (Self, Vec<AuthenticationProblem>) {
        let (mut rules, mut problems) = (Vec::new(), Vec::new());
        for policy in policies {
            let name: Arc<str> = format!("{}/{}", policy.namespace, policy.name).into();
            for (index, rule) in policy.rules.iter().enumerate() {
                let (rule, of_rule) = Rule::new(&name, rule);
                rules.push(rule);
                problems.extend(of_rule.into_iter().map(|(field, message)| AuthenticationProblem {
                    namespace: policy.namespace.clone(),
                    name: policy.name.clone(),
                    effect: effect(&field),
                    field: format!("spec.jwtRules[{index}].{field}"),
                    message,
                }));
            }
        }
        // Stable: rules of one issuer stay in the order of their policies.
        rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        let mut outputs: Vec<Arc<str>> = rules.iter().flat_map(Rule::output_names).cloned().collect();
        outputs.sort();
        outputs.dedup();
        for rule in &mut rules {
            rule.forget_locations(&outputs);
        }
        (Self { rules, outputs }, problems)
    }

    /// Whether there are no rules: no request need be asked about.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the request's tokens are good, and what follows for the request.
    ///
    /// With one rule: it accepts, or there is no token at its locations. With several: one accepts, or there is no token
    /// at the locations of any. A CORS preflight carries no credentials and is not checked. Headers that rules write are
    /// always removed as they came.
    pub fn verify(
        &self,
        request: &TokenRequest<'_>,
        now: SystemTime,
        cache: &mut TokenCache,
    ) -> Result<Verified, TokenRefused> {
        let mut changes = Changes { remove: self.outputs.clone(), ..Changes::default() };
        let nobody = |changes| Verified { claims: None, changes, expires: None };
        if self.rules.is_empty() || is_preflight(request) {
            return Ok(nobody(changes));
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut refused: Vec<(&Rule, Status)> = Vec::new();
        for rule in &self.rules {
            match rule.look_at(request, now, cache, &mut changes) {
                Opinion::Accepted(accepted) => {
                    let until = |expires: u64| {
                        UNIX_EPOCH.checked_add(Duration::from_secs(expires.saturating_add(CLOCK_SKEW)))
                    };
                    let expires = accepted.expires.and_then(until);
                    return Ok(Verified { claims: Some(accepted.claims), changes, expires });
                }
                Opinion::Missing => {}
                Opinion::Refused(status) => refused.push((rule, status)),
            }
        }
        match told(&refused) {
            None => Ok(nobody(changes)),
            Some((rule, status)) => Err(TokenRefused::new(*status, &rule.policy, &rule.issuer)),
        }
    }
}

impl std::fmt::Debug for Authentication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let issuers: Vec<&str> = self.rules.iter().map(|rule| rule.issuer.as_ref()).collect();
        f.debug_struct("Authentication").field("issuers", &issuers).finish_non_exhaustive()
    }
}

/// The refusal that the caller is told of: the first, unless that is about the issuer; then the last that is not, since
/// it concerns the rule the token is meant for (the outcome of Envoy's nested requirements).
fn told<'a, 'r>(refused: &'a [(&'r Rule, Status)]) -> Option<&'a (&'r Rule, Status)> {
    let first = refused.first()?;
    if first.1 != Status::UnknownIssuer {
        return Some(first);
    }
    Some(refused.iter().rfind(|(_, status)| *status != Status::UnknownIssuer).unwrap_or(first))
}

/// The effect of a problem in one field of a rule.
fn effect(field: &str) -> &'static str {
    match field {
        "jwks" => "tokens are refused unless another key of the rule fits; requests without a token pass",
        _ => "the header is not written, and not removed from requests that bring it",
    }
}

/// A CORS preflight.
fn is_preflight(request: &TokenRequest<'_>) -> bool {
    request.method == "OPTIONS"
        && has_value(request.headers, "origin")
        && has_value(request.headers, "access-control-request-method")
}

fn has_value(headers: &dyn HeaderLookup, name: &str) -> bool {
    let mut found = false;
    headers.values(name, &mut |value| found |= !value.is_empty());
    found
}
