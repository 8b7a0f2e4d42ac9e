//! The cases of `cases.json`, and requests as they ask about them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maille_config::istio;
use maille_policy::authentication::{
    Authentication, JwtRule, RequestAuthentication, TokenCache, TokenRefused, TokenRequest, Verified,
};
use serde::Deserialize;
use serde_json::Value;

/// 2027: after the tokens that have expired, before the end of the others.
pub(crate) const NOW: u64 = 1_800_000_000;

#[derive(Deserialize)]
pub(crate) struct Cases {
    sets: BTreeMap<String, Value>,
    configs: BTreeMap<String, Vec<istio::JwtRule>>,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) config: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) status: u16,
    pub(crate) body: Option<String>,
    /// The path that the application sees; the one asked for if it is not named.
    pub(crate) upstream: Option<String>,
    #[serde(default)]
    pub(crate) forwarded: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) absent: Vec<String>,
    /// Why it is refused although Envoy accepts it.
    pub(crate) stricter: Option<String>,
    /// Envoy takes no such configuration.
    #[serde(default)]
    pub(crate) unknown_to_envoy: bool,
}

impl Cases {
    pub(crate) fn load() -> Self {
        serde_json::from_str(include_str!("cases.json")).expect("the file is as make.py writes it")
    }

    /// Every configuration, with its key sets written out.
    pub(crate) fn configs(&self) -> BTreeMap<&str, Vec<istio::JwtRule>> {
        let whole = |rule: &istio::JwtRule| istio::JwtRule { jwks: self.set(&rule.jwks), ..rule.clone() };
        self.configs.iter().map(|(name, rules)| (name.as_str(), rules.iter().map(whole).collect())).collect()
    }

    pub(crate) fn set(&self, name: &str) -> String {
        self.sets.get(name).unwrap_or_else(|| panic!("no key set {name}")).to_string()
    }

    /// The first token of a case.
    pub(crate) fn token(&self, name: &str) -> String {
        let case =
            self.cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"));
        case.headers.first().expect("it has a token").1.replace("Bearer ", "")
    }
}

/// Rules that have their key sets, as one policy.
pub(crate) fn compile(rules: &[istio::JwtRule]) -> Authentication {
    let rules = rules.iter().map(|rule| JwtRule::of_spec(rule, Ok(rule.jwks.clone()))).collect();
    let policy = RequestAuthentication { namespace: "ns".to_owned(), name: "tokens".to_owned(), rules };
    Authentication::compile(&[policy]).0
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// One request with headers, at [`NOW`].
pub(crate) fn ask(
    authentication: &Authentication,
    method: &str,
    path: &str,
    headers: &Vec<(String, String)>,
    cache: &mut TokenCache,
) -> Result<Verified, TokenRefused> {
    authentication.verify(&TokenRequest { method, path, headers }, at(NOW), cache)
}

/// A request with a token in the usual place.
pub(crate) fn bearer(authentication: &Authentication, token: &str) -> Result<Verified, TokenRefused> {
    let headers = vec![("authorization".to_owned(), format!("Bearer {token}"))];
    ask(authentication, "GET", "/", &headers, &mut TokenCache::new())
}

/// A rule for the issuer of the cases.
pub(crate) fn rule(jwks: String) -> istio::JwtRule {
    istio::JwtRule { issuer: "https://idp.example".to_owned(), jwks, ..istio::JwtRule::default() }
}
