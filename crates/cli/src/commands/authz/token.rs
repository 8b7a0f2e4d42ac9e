//! Whether a running workload takes a token, and why not. The token itself is never printed.

use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maille_policy::authentication::{
    Authentication, JwtRule, RequestAuthentication, TokenCache, TokenRefused, TokenRequest, Verified,
};
use serde_json::{Map, Value, json};

use super::CheckArgs;
use super::held::{Held, held};
use super::offline::one_line;
use crate::Outcome;
use crate::output::{out, write_out};

/// Longer than any header that a proxy takes.
const MOST: u64 = 256 << 10;

pub(super) async fn run(args: &CheckArgs, pod: &str) -> Result<Outcome> {
    let Some(file) = &args.token else { return Ok(Outcome::Fine) };
    let token = read(file)?;
    let held = held(args, pod).await?;
    let checked = check(&token, &held);
    if args.output.is_some() {
        out!("{}", serde_json::to_string_pretty(&as_json(&held, &checked))?);
    } else {
        write_out(&for_people(&held, &checked));
    }
    Ok(if checked.claims.is_some() { Outcome::Fine } else { Outcome::NotFine })
}

/// Reads a token, with or without the word before it in a header.
pub(super) fn read(file: &Path) -> Result<String> {
    let mut text = String::new();
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(MOST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MOST).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {name}"))?;
    let token = text.trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim().to_owned();
    ensure!(!token.is_empty(), "{name} holds no token");
    ensure!(
        token.bytes().all(|byte| byte.is_ascii_graphic()),
        "{name} holds something that is no token: there are blanks or lines in it"
    );
    Ok(token)
}

/// What the rules of a workload say to a token.
pub(super) struct Checked {
    /// If one accepts it.
    pub(super) claims: Option<Map<String, Value>>,
    /// HTTP status of the answer to a request with it.
    pub(super) status: u16,
    /// Body of that answer, or why it is accepted.
    pub(super) reason: String,
    rules: Vec<OfRule>,
    says: Says,
}

struct OfRule {
    policy: String,
    index: usize,
    issuer: String,
    location: String,
    keys: String,
    refused: Option<TokenRefused>,
}

/// Verifies a token by each rule alone, where the rule looks for one; and by all of them, as the proxy does.
pub(super) fn check(token: &str, held: &Held) -> Checked {
    let (now, mut cache) = (SystemTime::now(), TokenCache::new());
    let (whole, _) = Authentication::compile(&held.authentications);
    let mut checked = Checked {
        claims: None,
        status: 200,
        reason: "no RequestAuthentication applies to the workload: tokens are not looked at".to_owned(),
        rules: Vec::new(),
        says: Says::of(token),
    };
    let mut refusal: Option<TokenRefused> = None;
    for one in &held.authentications {
        for (index, rule) in one.rules.iter().enumerate() {
            let alone = RequestAuthentication { rules: vec![rule.clone()], ..one.clone() };
            let (alone, _) = Authentication::compile(&[alone]);
            let place = Place::of(rule, token);
            let mut ask = |who: &Authentication| place.ask(who, now, &mut cache);
            let (by_rule, by_all) = (ask(&alone), ask(&whole));
            if let Ok(Verified { claims: Some(claims), .. }) = &by_all
                && checked.claims.is_none()
                && by_rule.is_ok()
            {
                checked.claims = Some(claims.as_map().clone());
                checked.reason = format!(
                    "accepted by {}/{} rule {index}, issuer {}",
                    one.namespace, one.name, rule.issuer
                );
            }
            refusal = refusal.or(by_all.err());
            checked.rules.push(OfRule {
                policy: format!("{}/{}", one.namespace, one.name),
                index,
                issuer: rule.issuer.clone(),
                location: place.name,
                keys: keys(rule),
                refused: by_rule.err(),
            });
        }
    }
    if let (Some(refusal), None) = (refusal, &checked.claims) {
        // Of the rule that the token is meant for, if there is one.
        let issuer = checked.says.issuer.as_deref();
        let own = checked.rules.iter().find(|rule| Some(rule.issuer.as_str()) == issuer);
        let refusal = own.and_then(|rule| rule.refused.clone()).unwrap_or(refusal);
        checked.status = refusal.status;
        checked.reason = refusal.reason.to_owned();
    }
    checked
}

/// A request with the token where a rule looks for it first.
struct Place {
    name: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Place {
    fn of(rule: &JwtRule, token: &str) -> Self {
        let header = |name: &str, value: String| vec![(name.to_ascii_lowercase(), value)];
        let at = |name: String, headers| Self { name, path: "/".to_owned(), headers };
        if let Some(place) = rule.from_headers.first() {
            return at(
                format!("header {}", place.name),
                header(&place.name, format!("{}{token}", place.prefix)),
            );
        }
        if let Some(name) = rule.from_params.first() {
            let path = format!("/?{name}={token}");
            return Self { name: format!("query parameter {name}"), path, headers: Vec::new() };
        }
        match rule.from_cookies.first() {
            Some(name) => at(format!("cookie {name}"), header("cookie", format!("{name}={token}"))),
            None => at("header Authorization".to_owned(), header("authorization", format!("Bearer {token}"))),
        }
    }

    fn ask(
        &self,
        who: &Authentication,
        now: SystemTime,
        cache: &mut TokenCache,
    ) -> Result<Verified, TokenRefused> {
        let request = TokenRequest { method: "GET", path: &self.path, headers: &self.headers };
        who.verify(&request, now, cache)
    }
}

/// What a token says of itself, whether it is true or not: enough to find a mistake by, and no secret.
#[derive(Default)]
struct Says {
    algorithm: Option<String>,
    key: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    audiences: Vec<String>,
    expires: Option<u64>,
}

impl Says {
    fn of(token: &str) -> Self {
        let mut parts = token.split('.').map(|part| {
            let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
            serde_json::from_slice::<Value>(&bytes).unwrap_or_default()
        });
        let (header, payload) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let audiences = match &payload["aud"] {
            Value::Array(all) => all.iter().filter_map(text).collect(),
            one => text(one).into_iter().collect(),
        };
        Self {
            algorithm: text(&header["alg"]),
            key: text(&header["kid"]),
            issuer: text(&payload["iss"]),
            subject: text(&payload["sub"]),
            audiences,
            expires: payload["exp"].as_u64(),
        }
    }

    fn for_people(&self) -> String {
        let mut parts = Vec::new();
        let mut say = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                parts.push(format!("{name} {value}"));
            }
        };
        say("issuer", self.issuer.as_deref());
        say("subject", self.subject.as_deref());
        let audiences = self.audiences.join(", ");
        say("audience", Some(audiences.as_str()).filter(|text| !text.is_empty()));
        say("algorithm", self.algorithm.as_deref());
        say("key", self.key.as_deref());
        if let Some(expires) = self.expires {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            parts.push(match expires.checked_sub(now) {
                Some(left) => format!("expires in {left} s"),
                None => format!("expired {} s ago", now - expires),
            });
        }
        if parts.is_empty() { "nothing that can be read".to_owned() } else { parts.join(", ") }
    }
}

/// Names of a rule's keys, as far as they have one; or why it has no key.
pub(super) fn key_names(rule: &JwtRule) -> Result<Vec<String>, String> {
    let set = rule.jwks.as_ref().map_err(Clone::clone)?;
    let set: Value = serde_json::from_str(set).map_err(|error| format!("the key set is no JSON: {error}"))?;
    let Some(keys) = set["keys"].as_array() else { return Err("the key set has no keys".to_owned()) };
    let name = |key: &Value| key["kid"].as_str().or(key["kty"].as_str()).unwrap_or("?").to_owned();
    Ok(keys.iter().map(name).collect())
}

/// The state of a rule's keys, for people.
pub(super) fn keys(rule: &JwtRule) -> String {
    match key_names(rule) {
        Ok(names) if names.is_empty() => "none: every token is refused".to_owned(),
        Ok(names) => format!("{}: {}", names.len(), names.join(", ")),
        Err(problem) => format!("none, every token is refused: {problem}"),
    }
}

fn for_people(held: &Held, checked: &Checked) -> String {
    let verdict = match (&checked.claims, checked.rules.is_empty()) {
        (Some(_), _) => "ACCEPTED".to_owned(),
        (None, true) => "NOT LOOKED AT".to_owned(),
        (None, false) => format!("REFUSED with {}", checked.status),
    };
    let mut lines = vec![
        ("to", format!("Pod {}/{}", held.pod.namespace, held.pod.name)),
        ("token", format!("it says: {}", checked.says.for_people())),
        ("because", checked.reason.clone()),
    ];
    for rule in &checked.rules {
        let issuer = if rule.issuer.is_empty() { "any" } else { &rule.issuer };
        let said = match &rule.refused {
            None => "accepts it".to_owned(),
            Some(refused) => format!("refuses it ({}): {}", refused.status, refused.reason),
        };
        lines.push((
            "rule",
            format!(
                "{} rule {}, issuer {issuer}, in {}: {said}; keys: {}",
                rule.policy, rule.index, rule.location, rule.keys
            ),
        ));
    }
    let lines = lines.into_iter().map(|(name, text)| format!("   {name:<9} {}\n", one_line(&text)));
    format!("{verdict}\n{}", lines.collect::<String>())
}

/// `accepted`, `status` of the answer (null if no rule looks at tokens), `reason`, `principal` (`iss/sub`, if accepted),
/// and `rules[]` with each rule's own word.
fn as_json(held: &Held, checked: &Checked) -> Value {
    let principal = checked.claims.as_ref().and_then(|claims| {
        Some(format!("{}/{}", claims.get("iss")?.as_str()?, claims.get("sub")?.as_str()?))
    });
    let rule = |rule: &OfRule| {
        json!({
            "policy": rule.policy,
            "rule": rule.index,
            "issuer": rule.issuer,
            "location": rule.location,
            "accepted": rule.refused.is_none(),
            "status": rule.refused.as_ref().map(|refused| refused.status),
            "reason": rule.refused.as_ref().map(|refused| refused.reason),
        })
    };
    json!({
        "pod": format!("{}/{}", held.pod.namespace, held.pod.name),
        "source": if held.generation.is_some() { "proxy" } else { "api" },
        "accepted": checked.claims.is_some(),
        "status": (checked.claims.is_none() && !checked.rules.is_empty()).then_some(checked.status),
        "reason": checked.reason,
        "principal": principal,
        "rules": checked.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use maille_analysis::Enforced;
    use maille_analysis::authz::Providers;
    use maille_config::mtls::ResolvedMtls;
    use maille_core::{MtlsMode, TrustDomain};
    use maille_policy::TrustContext;
    use maille_policy::path::Normalization;

    use super::*;
    use crate::commands::admin::PodRef;

    /// Of a key that was thrown away; it never expires.
    const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "kid": "k1", "alg": "ES256", "use": "sig",
        "x": "op3E-gki0_kv0WFe1gDuFG9mC5mirD2NEFy0RXliehc", "y": "YvOpvLUjNHXmf50G7v9LEsP90DAeUd4NuOWXTPG3mfs"}]}"#;
    const TOKEN: &str = "eyJhbGciOiAiRVMyNTYiLCAia2lkIjogImsxIn0.eyJpc3MiOiAiaHR0cHM6Ly9pZHAiLCAic3ViIjogInUxIiwgImF1ZCI6I\
        Fsic2hvcCJdLCAicm9sZXMiOiAidXNlciBhZG1pbiJ9.zXudBMDZQZeBMBNLRNFwxdNKo9OEqz-1cJSxgNxzkgLApi3KE4ZEs8JhCU0aZAcLFGSEHB\
        g0Qp-oEoQp_cOypg";

    fn rule(issuer: &str, audience: &str) -> JwtRule {
        let spec = maille_config::istio::JwtRule {
            issuer: issuer.to_owned(),
            audiences: vec![audience.to_owned()],
            ..Default::default()
        };
        JwtRule::of_spec(&spec, Ok(KEYS.to_owned()))
    }

    fn held_with(rules: Vec<JwtRule>) -> Held {
        let one = RequestAuthentication { namespace: "shop".into(), name: "idp".into(), rules };
        Held {
            pod: PodRef { namespace: "shop".into(), name: "web".into() },
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            policy: Enforced {
                meshed: true,
                account: "web".into(),
                mtls: ResolvedMtls { mode: MtlsMode::Strict, ports: BTreeMap::new() },
                ports: BTreeMap::new(),
                policies: Vec::new(),
                authentications: Vec::new(),
            },
            authentications: if one.rules.is_empty() { Vec::new() } else { vec![one] },
            providers: Providers::Unknown,
            trust: TrustContext {
                trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
                aliases: Vec::new(),
                root_namespace: "istio-system".into(),
            },
            normalization: Normalization::Base,
            generation: Some(1),
        }
    }

    /// What is printed, in both forms.
    fn printed(held: &Held, checked: &Checked) -> String {
        for_people(held, checked) + &as_json(held, checked).to_string()
    }

    #[test]
    fn the_rule_that_accepts_is_named_and_the_token_is_not_printed() {
        let held = held_with(vec![rule("https://other", "shop"), rule("https://idp", "shop")]);
        let checked = check(TOKEN, &held);
        assert!(checked.claims.is_some(), "{}", checked.reason);
        let text = printed(&held, &checked);
        assert!(text.contains("ACCEPTED") && text.contains("shop/idp rule 1, issuer https://idp"), "{text}");
        assert!(text.contains(r#""principal":"https://idp/u1""#), "{text}");
        for part in TOKEN.split('.') {
            assert!(!text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_refusal_is_that_of_the_rule_the_token_is_meant_for() {
        let forged = format!("{}A", TOKEN.strip_suffix('g').expect("its end"));
        let mut keyless = rule("https://idp", "shop");
        keyless.jwks = Err("http://idp/keys cannot be fetched".to_owned());
        let elsewhere = || rule("https://elsewhere", "x");
        for (rules, token, status, said) in [
            (vec![elsewhere(), rule("https://idp", "other")], TOKEN, 403, "Audiences in Jwt are not allowed"),
            (vec![elsewhere(), rule("https://idp", "shop")], &forged, 401, "Jwt verification fails"),
            (vec![elsewhere()], TOKEN, 401, "Jwt issuer is not configured"),
            (vec![rule("https://idp", "shop")], "x.y", 401, "Header.Payload.Signature"),
            (vec![keyless], TOKEN, 401, "http://idp/keys cannot be fetched"),
        ] {
            let held = held_with(rules);
            let checked = check(token, &held);
            let text = printed(&held, &checked);
            assert!(checked.claims.is_none() && checked.status == status, "{said}: {text}");
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn without_rules_nobody_looks_at_tokens() {
        let held = held_with(Vec::new());
        let text = printed(&held, &check(TOKEN, &held));
        assert!(text.contains("NOT LOOKED AT") && text.contains(r#""status":null"#), "{text}");
    }
}
