//! One rule, compiled (a provider of Envoy's filter).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::audience::Audiences;
use super::cache::{Key, TokenCache};
use super::input::JwtRule;
use super::keys::Keys;
use super::locations::Locations;
use super::outputs::Outputs;
use super::request::{Changes, TokenRequest};
use super::status::Status;
use super::token::{Payload, Times, Token};
use crate::Claims;

/// How far the clocks of issuer and proxy may be apart, in seconds (reference authorization 19).
pub(super) const CLOCK_SKEW: u64 = 60;

/// Numbers rules as they are compiled, so that what is remembered of one is never taken for another's.
static NEXT: AtomicU64 = AtomicU64::new(0);

pub(super) struct Rule {
    number: u64,
    pub(super) policy: Arc<str>,
    pub(super) issuer: Arc<str>,
    audiences: Audiences,
    /// `None`: the set could not be fetched.
    keys: Option<Keys>,
    locations: Locations,
    forwards: bool,
    outputs: Outputs,
    space_delimited: Vec<String>,
}

/// A token whose signature is good, for one rule.
pub(super) struct Good {
    times: Times,
    claims: Arc<Claims>,
    /// The rule's headers for it.
    outputs: Vec<(Arc<str>, Box<str>)>,
}

impl Good {
    /// One that says this, whoever signed it.
    #[cfg(test)]
    pub(super) fn saying(claims: serde_json::Map<String, Value>) -> Self {
        let times = Times { not_before: 0, expires: None };
        Self { times, claims: Arc::new(Claims::new(claims, &[])), outputs: Vec::new() }
    }

    /// About how much memory it takes.
    pub(super) fn size(&self) -> usize {
        let outputs = self.outputs.iter().map(|(_, value)| 64 + value.len()).sum::<usize>();
        let members = |(name, value): (&String, &Value)| 32 + name.len() + size(value);
        256 + outputs + self.claims.as_map().iter().map(members).sum::<usize>()
    }
}

/// About how much memory a claim takes. No deeper than tokens may be.
fn size(claim: &Value) -> usize {
    const { assert!(size_of::<Value>() <= 80, "what follows is too small") }
    80 + match claim {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| 32 + name.len() + size(value)).sum(),
    }
}

/// What a rule says about a request.
pub(super) enum Opinion {
    /// It has no token at the rule's locations.
    Missing,
    /// One of its tokens is no good.
    Refused(Status),
    Accepted(Accepted),
}

/// All tokens at the rule's locations are good.
pub(super) struct Accepted {
    pub(super) claims: Arc<Claims>,
    pub(super) expires: Option<u64>,
}

impl Rule {
    /// The rule, and field and problem of what of it cannot work.
    pub(super) fn new(policy: &Arc<str>, rule: &JwtRule) -> (Self, Vec<(String, String)>) {
        let (outputs, mut problems) = Outputs::new(rule);
        let keys = match &rule.jwks {
            Ok(set) => {
                let (keys, of_keys) = Keys::parse(set);
                problems.extend(of_keys.into_iter().map(|problem| ("jwks".to_owned(), problem)));
                Some(keys)
            }
            Err(problem) => {
                problems.push(("jwks".to_owned(), format!("there are no keys: {problem}")));
                None
            }
        };
        let rule = Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            policy: policy.clone(),
            issuer: rule.issuer.as_str().into(),
            audiences: Audiences::new(&rule.audiences),
            keys,
            locations: Locations::new(rule),
            forwards: rule.forward_original_token,
            outputs,
            space_delimited: rule.space_delimited_claims.clone(),
        };
        (rule, problems)
    }

    pub(super) fn output_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.outputs.names()
    }

    /// See [`Locations::forget`].
    pub(super) fn forget_locations(&mut self, names: &[Arc<str>]) {
        self.locations.forget(names);
    }

    /// Looks at every token at the rule's locations, the last one first; the first one's claims count (Envoy's order,
    /// where a request with two good tokens is concerned). Changes are made only if the request is accepted.
    pub(super) fn look_at(
        &self,
        request: &TokenRequest<'_>,
        now: u64,
        cache: &mut TokenCache,
        changes: &mut Changes,
    ) -> Opinion {
        let found = self.locations.find(request);
        let mut accepted: Option<Accepted> = None;
        let mut all = Vec::with_capacity(found.len());
        for token in found.iter().rev() {
            let good = match self.verify(&token.text, now, cache) {
                Ok(good) => good,
                Err(status) => return Opinion::Refused(status),
            };
            let earlier = accepted.and_then(|accepted| accepted.expires);
            let expires = earlier.into_iter().chain(good.times.expires).min();
            accepted = Some(Accepted { claims: good.claims.clone(), expires });
            all.push((token, good));
        }
        let Some(accepted) = accepted else { return Opinion::Missing };
        for (token, good) in all {
            changes.append.extend(good.outputs.iter().cloned());
            if !self.forwards {
                token.remove(request.path, changes);
            }
        }
        Opinion::Accepted(accepted)
    }

    fn verify(&self, text: &[u8], now: u64, cache: &mut TokenCache) -> Result<Arc<Good>, Status> {
        let key = Key::new(self.number, text);
        if let Some(key) = &key
            && let Some(good) = cache.get(key)
        {
            // Issuer and audience do not change; the time does.
            return match good.times.check(now, CLOCK_SKEW) {
                Ok(()) => Ok(good),
                Err(status) => {
                    cache.forget(key);
                    Err(status)
                }
            };
        }
        let token = Token::parse(text)?;
        if !self.issuer.is_empty() && token.payload.issuer != *self.issuer {
            return Err(Status::UnknownIssuer);
        }
        token.payload.times.check(now, CLOCK_SKEW)?;
        if !self.audiences.allow(&token.payload.audiences) {
            return Err(Status::AudienceNotAllowed);
        }
        // Istio installs a key that nobody has the private half of, for the same effect.
        self.keys.as_ref().ok_or(Status::VerificationFails)?.verify(&token)?;
        let outputs = self.outputs.of(&token.payload);
        let Payload { claims, times, .. } = token.payload;
        let claims = Arc::new(Claims::new(claims, &self.space_delimited));
        let good = Arc::new(Good { times, claims, outputs });
        if let Some(key) = key {
            cache.put(key, good.clone());
        }
        Ok(good)
    }
}
