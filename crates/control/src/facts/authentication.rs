use maille_config::istio::{self, RequestAuthentication};
use maille_config::scope::Attachment;
use maille_core::NamespacedName;
use maille_proto::facts as wire;
use maille_xds::type_urls::REQUEST_AUTHENTICATION;
use serde_json::{Map, Value};

use super::{Fact, targets};
use crate::world::{KeySource, Keys, Pod};

/// What the key sets of one RequestAuthentication may take together. Every proxy concerned holds them; the sets of large
/// identity providers have some ten kilobytes.
const MAX_KEY_BYTES: usize = 1 << 20;

/// Members of a JWK that only its owner may know (RFC 7518 sections 6.2.2, 6.3.2 and 6.4).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// One RequestAuthentication: whom it selects, and the fact it is for those.
#[derive(Debug, Clone, PartialEq)]
pub struct Authentication {
    namespace: String,
    name: String,
    attachment: Attachment,
    targets: String,
    rules: Vec<Rule>,
    fact: Fact,
}

/// A rule without its keys, and where they are.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    message: wire::JwtRule,
    keys: KeysOfRule,
}

#[derive(Debug, Clone, PartialEq)]
enum KeysOfRule {
    Inline(Result<String, String>),
    Fetched(KeySource),
    /// Neither keys nor an issuer.
    Nowhere,
}

impl Authentication {
    /// Reads a policy, with the keys that are known now.
    pub fn of(policy: &RequestAuthentication, known: impl Fn(&KeySource) -> Keys) -> Self {
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, own) = (name(&policy.metadata.namespace), name(&policy.metadata.name));
        let rules: Vec<Rule> = policy.spec.jwt_rules.iter().map(rule).collect();
        let fact = fact(&namespace, &own, &rules, known);
        let targets = targets(policy.spec.target_refs.as_ref(), policy.spec.target_ref.as_ref());
        Self { namespace, name: own, attachment: Attachment::from(&policy.spec), targets, rules, fact }
    }

    /// The same policy with the keys that are known now.
    pub fn with_keys(&self, known: impl Fn(&KeySource) -> Keys) -> Self {
        Self { fact: fact(&self.namespace, &self.name, &self.rules, known), ..self.clone() }
    }

    /// Namespace and name.
    pub fn name(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.clone(), self.name.clone())
    }

    /// The resource's name.
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The fact.
    pub fn fact(&self) -> &Fact {
        &self.fact
    }

    /// The gateways and services that it is attached to, for people.
    pub fn targets(&self) -> &str {
        &self.targets
    }

    /// What it is attached to.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Whether it applies to a pod (reference authorization 2).
    pub fn applies_to(&self, pod: &Pod, root_namespace: &str) -> bool {
        self.attachment.applies(&self.namespace, root_namespace, (&pod.name.namespace, &pod.labels))
    }

    /// Where its keys are fetched from.
    pub fn sources(&self) -> impl Iterator<Item = &KeySource> {
        self.rules.iter().filter_map(|rule| match &rule.keys {
            KeysOfRule::Fetched(source) => Some(source),
            _ => None,
        })
    }

    /// What is wrong with keys that it holds itself.
    pub fn inline_problems(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| match &rule.keys {
            KeysOfRule::Inline(Err(problem)) => Some(problem.as_str()),
            KeysOfRule::Nowhere => Some(NOWHERE),
            _ => None,
        })
    }
}

const NOWHERE: &str = "the rule has neither jwks, nor jwksUri, nor an issuer to ask for its keys";

fn fact(namespace: &str, name: &str, rules: &[Rule], known: impl Fn(&KeySource) -> Keys) -> Fact {
    let mut left = MAX_KEY_BYTES;
    let message = wire::RequestAuthentication {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        jwt_rules: rules.iter().map(|rule| with_keys(rule, &mut left, &known)).collect(),
    };
    Fact::of(REQUEST_AUTHENTICATION, &message)
}

/// Either keys or a problem, never neither: a proxy refuses the tokens of a rule that has a problem.
fn with_keys(rule: &Rule, left: &mut usize, known: impl Fn(&KeySource) -> Keys) -> wire::JwtRule {
    let keys = match &rule.keys {
        KeysOfRule::Inline(keys) => keys.clone(),
        KeysOfRule::Nowhere => Err(NOWHERE.to_owned()),
        KeysOfRule::Fetched(source) => match known(source) {
            Keys::Known(keys) => Ok(keys.to_string()),
            Keys::Awaited => Err(format!("the keys of {source} have not been fetched yet")),
            Keys::Failed(problem) => Err(problem),
        },
    };
    let fitting = keys.and_then(|keys| match left.checked_sub(keys.len()) {
        Some(rest) => {
            *left = rest;
            Ok(keys)
        }
        None => {
            Err(format!("the key sets of one RequestAuthentication may take {MAX_KEY_BYTES} bytes together"))
        }
    });
    let (jwks, jwks_problem) = match fitting {
        Ok(keys) => (keys, String::new()),
        Err(problem) => (String::new(), problem),
    };
    wire::JwtRule { jwks, jwks_problem, ..rule.message.clone() }
}

fn rule(rule: &istio::JwtRule) -> Rule {
    // Taken apart by name, so that a field added to the kind cannot be forgotten here.
    let istio::JwtRule {
        issuer,
        audiences,
        jwks_uri: _,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        forward_original_token,
        output_claim_to_headers,
        timeout: _,
        space_delimited_claims,
    } = rule.clone();
    let keys = match KeySource::of(rule) {
        Some(source) => KeysOfRule::Fetched(source),
        None if jwks.is_empty() => KeysOfRule::Nowhere,
        None => KeysOfRule::Inline(public_keys(&jwks)),
    };
    let message = wire::JwtRule {
        issuer,
        audiences,
        jwks: String::new(),
        jwks_problem: String::new(),
        from_headers: from_headers.into_iter().map(header).collect(),
        from_params,
        from_cookies,
        forward_original_token,
        output_payload_to_header,
        output_claim_to_headers: output_claim_to_headers.into_iter().map(claim).collect(),
        space_delimited_claims,
    };
    Rule { message, keys }
}

fn header(header: istio::JwtHeader) -> wire::JwtHeader {
    let istio::JwtHeader { name, prefix } = header;
    wire::JwtHeader { name, prefix }
}

fn claim(claim: istio::ClaimToHeader) -> wire::ClaimToHeader {
    let istio::ClaimToHeader { header, claim } = claim;
    wire::ClaimToHeader { header, claim }
}

/// A key set (RFC 7517) without what is private of its keys; an error if nothing is left that could verify a signature.
///
/// A symmetric key is nothing but private: whoever can verify with it can also sign.
pub(crate) fn public_keys(text: &str) -> Result<String, String> {
    let set: Value =
        serde_json::from_str(text).map_err(|error| format!("the key set is no JSON: {error}"))?;
    let Some(keys) = set.get("keys").and_then(Value::as_array) else {
        return Err("the key set has no list `keys` (RFC 7517)".to_owned());
    };
    let public: Vec<Value> = keys.iter().filter_map(Value::as_object).filter_map(public_key).collect();
    if public.is_empty() {
        return Err("the key set has no public key that could verify a signature".to_owned());
    }
    Ok(serde_json::json!({ "keys": public }).to_string())
}

fn public_key(key: &Map<String, Value>) -> Option<Value> {
    let asymmetric = key.get("kty").and_then(Value::as_str).is_some_and(|kind| kind != "oct");
    let for_signatures = key.get("use").and_then(Value::as_str).is_none_or(|purpose| purpose == "sig");
    (asymmetric && for_signatures).then(|| {
        let public = key.iter().filter(|(member, _)| !PRIVATE.contains(&member.as_str()));
        Value::Object(public.map(|(member, value)| (member.clone(), value.clone())).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_private_of_a_key_set_is_passed_on() {
        let text = r#"{"keys": [
            {"kty": "RSA", "kid": "a", "use": "sig", "n": "AQ", "e": "AQAB", "d": "SECRET", "p": "SECRET", "dp": "SECRET",
             "q": "SECRET", "dq": "SECRET", "qi": "SECRET", "oth": [{"d": "SECRET"}]},
            {"kty": "EC", "kid": "b", "crv": "P-256", "x": "AQ", "y": "AQ", "d": "SECRET"},
            {"kty": "oct", "kid": "c", "k": "SECRET"},
            {"kty": "RSA", "kid": "d", "use": "enc", "n": "AQ", "e": "AQAB"},
            {"kid": "e", "k": "SECRET"}, "SECRET"
        ], "more": "SECRET"}"#;
        let public = public_keys(text).expect("two keys are left");
        assert!(!public.contains("SECRET"), "{public}");
        let read: Value = serde_json::from_str(&public).expect("JSON");
        let kids: Vec<&str> =
            read["keys"].as_array().expect("keys").iter().filter_map(|k| k["kid"].as_str()).collect();
        assert_eq!(kids, ["a", "b"]);
        assert_eq!(read["keys"][0]["n"], "AQ");
        for (text, named) in [
            ("keys", "no JSON"),
            ("[]", "no list `keys`"),
            (r#"{"keys": {}}"#, "no list `keys`"),
            (r#"{"keys": []}"#, "no public key"),
            (r#"{"keys": [{"kty": "oct", "k": "SECRET"}]}"#, "no public key"),
        ] {
            let error = public_keys(text).expect_err(text);
            assert!(error.contains(named) && !error.contains("SECRET"), "{error}");
        }
    }
}
