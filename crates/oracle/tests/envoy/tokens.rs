//! Requests with good and bad tokens: what Envoy's filter says and forwards, beside `maille_policy::authentication`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use maille_policy::authentication::{
    Authentication, ClaimToHeader, JwtHeader, JwtRule, RequestAuthentication, TokenCache, TokenRefused,
    TokenRequest, Verified,
};
use serde_json::{Map, Value, json};

use crate::client::Caller;
use crate::keys::{Key, base64url};
use crate::lab::{Lab, cluster, http_manager, router, tcp_address};
use crate::random::Random;
use crate::wire::{Answer, serve};

const QUESTIONS: usize = 24;
const LISTENER: u16 = 10_010;
const UPSTREAM: u16 = 7002;
const ISSUERS: &[&str] = &["https://idp.example", "https://other.example", "idp"];
const AUDIENCES: &[&str] = &["aud-a", "https://aud-a/", "http://aud-b", "aud-b/", "aud-c"];
const PREFIXES: &[&str] = &["", "Bearer ", "Tok ", "t="];
/// Beginnings of headers that a token comes in or that rules write; compared as forwarded.
const COMPARED: &[&str] =
    &["authorization", "x-jwt", "x-other", "cookie", "x-payload", "x-sub", "x-groups", "x-roles"];
const PAYLOAD: &str = "x-seen-payload";

/// The keys of one run, with their ids.
struct Ring {
    keys: Vec<(&'static str, Key)>,
    foreign: Key,
}

impl Ring {
    fn new() -> Self {
        let keys = vec![
            ("p256", Key::p256()),
            ("p384", Key::p384()),
            ("ed", Key::ed25519()),
            ("rsa", Key::rsa()),
            ("shared", Key::shared()),
        ];
        Self { keys, foreign: Key::p256() }
    }

    /// A set of some of the keys.
    fn jwks(&self, random: &mut Random) -> Value {
        let mut keys: Vec<Value> = Vec::new();
        for (id, key) in &self.keys {
            if random.once_in(2) {
                let mut jwk = key.jwk();
                if !random.once_in(3) {
                    jwk["kid"] = (*id).into();
                }
                match random.below(5) {
                    // Envoy looks no further than an Ed25519 key that could be meant.
                    _ if *id == "ed" => jwk["alg"] = "EdDSA".into(),
                    0 | 1 => jwk["alg"] = random.pick(key.algorithms()).into(),
                    2 => jwk["use"] = "sig".into(),
                    _ => {}
                }
                keys.push(jwk);
            }
        }
        if keys.is_empty() {
            keys.push(self.keys[0].1.jwk());
        }
        json!({ "keys": keys })
    }
}

/// One rule of the set with this number. Headers that it writes have the number in their names, since Envoy takes away
/// those of all providers that it knows.
fn rule(set: usize, ring: &Ring, random: &mut Random) -> JwtRule {
    let some = |random: &mut Random, from: &[&str]| -> Vec<String> {
        (0..random.below(3)).map(|_| random.pick(from).to_owned()).collect()
    };
    let mut rule = JwtRule {
        issuer: random.pick(ISSUERS).to_owned(),
        audiences: some(random, AUDIENCES),
        jwks: Ok(ring.jwks(random).to_string()),
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward_original_token: random.once_in(2),
        output_payload_to_header: String::new(),
        output_claim_to_headers: Vec::new(),
        space_delimited_claims: Vec::new(),
    };
    let locations = random.below(8);
    if matches!(locations, 1 | 4 | 5) {
        let name = random.pick(&["x-jwt", "authorization", "X-Other"]).to_owned();
        rule.from_headers.push(JwtHeader { name, prefix: random.pick(PREFIXES).to_owned() });
    }
    if matches!(locations, 2 | 5) {
        rule.from_params.push("jwt".to_owned());
    }
    if matches!(locations, 3 | 4) {
        rule.from_cookies.push("session".to_owned());
    }
    if random.once_in(3) {
        rule.output_payload_to_header = format!("x-payload-{set}");
    }
    let outputs = [("X-Sub", "sub"), ("x-groups", "groups"), ("x-roles", "realm.roles")];
    for (header, claim) in outputs {
        if random.once_in(4) {
            let (header, claim) = (format!("{header}-{set}"), claim.to_owned());
            rule.output_claim_to_headers.push(ClaimToHeader { header, claim });
        }
    }
    if random.once_in(4) {
        rule.space_delimited_claims.push("groups".to_owned());
    }
    rule
}

/// As Istio's `policyApplier` writes it.
fn provider(rule: &JwtRule) -> Value {
    let mut words = rule.space_delimited_claims.clone();
    words.extend(["permission", "scope"].map(str::to_owned));
    let headers: Vec<Value> =
        rule.from_headers.iter().map(|h| json!({ "name": h.name, "value_prefix": h.prefix })).collect();
    let claims = rule.output_claim_to_headers.iter();
    let claims: Vec<Value> =
        claims.map(|c| json!({ "header_name": c.header, "claim_name": c.claim })).collect();
    json!({
        "issuer": rule.issuer,
        "audiences": rule.audiences,
        "local_jwks": { "inline_string": rule.jwks.as_ref().expect("there are keys") },
        "forward": rule.forward_original_token,
        "forward_payload_header": rule.output_payload_to_header,
        "claim_to_headers": claims,
        "from_headers": headers,
        "from_params": rule.from_params,
        "from_cookies": rule.from_cookies,
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": { "space_delimited_claims": words },
    })
}

fn configuration(sets: &[Vec<JwtRule>]) -> Value {
    const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3";
    let (mut providers, mut requirements, mut routes) = (Map::new(), Map::new(), Vec::new());
    for (index, rules) in sets.iter().enumerate() {
        let mut sorted: Vec<&JwtRule> = rules.iter().collect();
        sorted.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        let names: Vec<String> = (0..sorted.len()).map(|rule| format!("{index}-{rule}")).collect();
        providers.extend(names.iter().cloned().zip(sorted.into_iter().map(provider)));
        let provided = |name: &String| json!({ "provider_name": name });
        let or_missing = |name: &String| json!({ "requires_any": { "requirements": [provided(name), { "allow_missing": {} }] } });
        let requirement = match names.as_slice() {
            [only] => or_missing(only),
            several => {
                let mut any: Vec<Value> = several.iter().map(provided).collect();
                let all: Vec<Value> = several.iter().map(or_missing).collect();
                any.push(json!({ "requires_all": { "requirements": all } }));
                json!({ "requires_any": { "requirements": any } })
            }
        };
        requirements.insert(index.to_string(), requirement);
        let seen = "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload)%";
        routes.push(json!({
            "match": { "prefix": "/", "headers": [{ "name": "x-set", "string_match": { "exact": index.to_string() } }] },
            "route": { "cluster": "upstream" },
            "request_headers_to_add": [{ "header": { "key": PAYLOAD, "value": seen } }],
            "typed_per_filter_config": { "envoy.filters.http.jwt_authn": {
                "@type": format!("{FILTER}.PerRouteConfig"), "requirement_name": index.to_string(),
            }},
        }));
    }
    let jwt = json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": format!("{FILTER}.JwtAuthentication"),
            "providers": providers,
            "requirement_map": requirements,
            "bypass_cors_preflight": true,
        },
    });
    let manager = http_manager(routes.into(), json!([jwt, router()]), Value::Null);
    json!({ "static_resources": {
        "listeners": [{
            "name": "tokens",
            "address": tcp_address("127.0.0.1", LISTENER),
            "filter_chains": [{ "filters": [manager] }],
        }],
        "clusters": [cluster("upstream", UPSTREAM)],
    }})
}

/// A token that some rule of the set may take; broken in one way or two, or not at all. `odd` becomes true for what
/// Envoy takes or says otherwise than the standards demand (padding, whitespace or leftover bits in base64url, empty
/// sections, `crit`, an `alg` that is not the key's, a member twice, `exp` of 0, the second of two lines): refusing is
/// enough then.
fn token(rules: &[JwtRule], ring: &Ring, now: u64, odd: &mut bool, random: &mut Random) -> String {
    let rule = random.one(rules);
    let jwks: Value = serde_json::from_str(rule.jwks.as_deref().unwrap_or_default()).unwrap_or_default();
    let jwk = random.one(jwks["keys"].as_array().map_or(&[][..], Vec::as_slice)).clone();
    let own = ring.keys.iter().find(|(_, key)| {
        let public = key.jwk();
        public.as_object().is_some_and(|members| members.iter().all(|(name, value)| jwk[name] == *value))
    });
    let mut key = &own.expect("it is of the ring").1;
    let algorithm = jwk["alg"].as_str().unwrap_or_else(|| random.pick(key.algorithms())).to_owned();
    let mut header = json!({ "alg": algorithm, "typ": "JWT" });
    if !random.once_in(3) && jwk["kid"].is_string() {
        header["kid"] = jwk["kid"].clone();
    }
    let mut payload = json!({ "iss": rule.issuer, "sub": "alice", "exp": now + 3600 });
    if let Some(audience) = rule.audiences.first() {
        let bare =
            audience.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        payload["aud"] = match random.below(4) {
            0 => json!([audience, "x"]),
            1 => json!(bare),
            2 => json!(format!("https://{bare}/")),
            _ => json!(audience),
        };
    }
    match random.below(6) {
        0 => payload["groups"] = json!(["dev", "ops"]),
        1 => payload["groups"] = json!("dev ops"),
        2 => payload["groups"] = json!({ "dev": 1.5 }),
        3 => {
            payload["groups"] =
                json!(random.one(&[json!(true), json!(7), json!(1.5), json!(-3), json!(null)]))
        }
        _ => {}
    }
    if random.once_in(3) {
        payload["realm"] = json!({ "roles": random.one(&[json!("admin"), json!(["a", "b"]), json!(2)]) });
    }
    if random.once_in(4) {
        payload["scope"] = "read  write ".into();
    }
    let defects = [0, 0, 0, 1, 1, 2][random.below(6)];
    for _ in 0..defects {
        match random.below(22) {
            0 => payload["exp"] = json!(now - 30),
            1 => payload["exp"] = json!(now - 90),
            2 => {
                *odd = true;
                payload["exp"] =
                    random.one(&[json!("1"), json!(1.5), json!(-1), json!(0), json!(1e300)]).clone();
            }
            3 => drop(payload.as_object_mut().map(|members| members.remove("exp"))),
            4 => payload["nbf"] = json!(now + 30),
            5 => payload["nbf"] = json!(now + 90),
            6 => payload["nbf"] = random.one(&[json!("1"), json!(-5), json!(0), json!(1.0)]).clone(),
            7 => payload["iat"] = random.one(&[json!("1"), json!(now + 900), json!(-5), json!(2.5)]).clone(),
            8 => {
                payload["iss"] =
                    random.one(&[json!("https://evil"), json!(""), json!(1), json!(null)]).clone()
            }
            9 => drop(payload.as_object_mut().map(|members| members.remove("iss"))),
            10 => payload["sub"] = random.one(&[json!(1), json!(""), json!(null), json!(["a"])]).clone(),
            11 => {
                let odd = [json!("other"), json!([]), json!(["x", 1]), json!(1), json!(null), json!("")];
                payload["aud"] = random.one(&odd).clone();
            }
            12 => drop(payload.as_object_mut().map(|members| members.remove("aud"))),
            13 => payload["jti"] = random.one(&[json!(1), json!("x")]).clone(),
            14 => key = &ring.foreign,
            15 => {
                *odd = true;
                key = &random.one(&ring.keys).1;
            }
            16 => {
                *odd = true;
                header["alg"] =
                    random.pick(&["none", "NONE", "es256", "HS256", "RS256", "ES384", "x", ""]).into();
            }
            17 => drop(header.as_object_mut().map(|members| members.remove("alg"))),
            18 => header["kid"] = random.one(&[json!("other"), json!(1), json!(""), json!(null)]).clone(),
            19 => {
                *odd = true;
                header["crit"] = json!(["exp"]);
            }
            20 => header["typ"] = random.one(&[json!(1), json!("at+jwt")]).clone(),
            _ => header["alg"] = json!(1),
        }
    }
    let mut text = payload.to_string();
    let form = random.below(40);
    *odd |= form < 3;
    match form {
        0 => text = text.replacen('{', r#"{"sub":"twice","#, 1),
        1 => text.push(' '),
        2 => text.push('x'),
        3 => text = "[]".to_owned(),
        4 => text.clear(),
        _ => {}
    }
    let mut token = key.token(&header, text.as_bytes());
    let form = random.below(30);
    *odd |= form < 8;
    match form {
        0 => drop(token.pop()),
        1 => token.push('='),
        2 => token.push_str(".x"),
        3 => token = token.replacen('.', "..", 1),
        4 => token = token.rsplit_once('.').map(|(start, _)| format!("{start}.")).unwrap_or_default(),
        5 => {
            let broken = random.below(token.len());
            let with = if token.as_bytes()[broken] == b'A' { "B" } else { "A" };
            token.replace_range(broken..=broken, with);
        }
        6 => token = format!("{}.{}.x", base64url(b"{"), base64url(b"{}")),
        7 => token = random.pick(&["x", "a.b.c", "..", "a.b", "eyJ.eyJ.eyJ"]).to_owned(),
        _ => {}
    }
    token
}

/// Puts a token where a rule looks for it, or nearly.
fn place(rules: &[JwtRule], token: &str, request: &mut Request, random: &mut Random) {
    let rule = random.one(rules);
    let Request { path, headers, odd, .. } = request;
    let mut header = |name: &str, value: String| {
        let again = headers.iter().any(|(other, _)| other == name);
        *odd |= again;
        // Envoy makes one value of two lines of this name.
        if !again || name != "authorization" {
            headers.push((name.to_owned(), value));
        }
    };
    let default = rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty();
    let from = random.below(3);
    let mut is_form_odd = false;
    if let Some(location) = rule.from_headers.first().filter(|_| from == 0 || default) {
        let prefix = if random.once_in(6) { random.pick(PREFIXES) } else { &location.prefix };
        is_form_odd = prefix != location.prefix;
        header(&location.name, format!("{prefix}{token}"));
    } else if !rule.from_cookies.is_empty() && from < 2 {
        let cookie = match random.below(4) {
            0 => format!("session={token}"),
            1 => format!("session=\"{token}\"; a=b"),
            2 => format!("a=b;session={token}"),
            _ => format!("a=b; session={token}; c"),
        };
        header("cookie", cookie);
    } else if default && from < 2 {
        let form = random.below(12);
        is_form_odd = form < 7;
        let value = match form {
            0 => format!("bearer {token}"),
            1 => format!("Bearer  {token}"),
            2 => format!("Bearer {token} x"),
            3 => format!("Bearer {token},x"),
            4 => format!("Basic {token}"),
            5 => "Bearer".to_owned(),
            6 => format!("x Bearer {token}"),
            _ => format!("Bearer {token}"),
        };
        header("authorization", value);
    } else {
        let name = if default || random.once_in(6) { "access_token" } else { "jwt" };
        let escaped = token.replace('.', if random.once_in(6) { "%2E" } else { "." });
        let separator = if path.contains('?') { "&" } else { "?" };
        path.push_str(&format!("{separator}{name}={escaped}"));
        if random.once_in(3) {
            path.push_str("&b=%2F+c&d");
        }
    }
    *odd |= is_form_odd;
}

#[derive(Debug)]
struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    /// See [`token`].
    odd: bool,
    /// Two tokens for several rules: which of them counts is not defined (reference authorization 19).
    two_of_many: bool,
}

fn request(set: usize, rules: &[JwtRule], ring: &Ring, now: u64, random: &mut Random) -> Request {
    let path = random.pick(&["/", "/a", "/a?x=1", "/a?x"]).to_owned();
    let mut request = Request { method: "GET", path, headers: Vec::new(), odd: false, two_of_many: false };
    let count = [0, 1, 1, 1, 1, 2][random.below(6)];
    request.two_of_many = count > 1 && rules.len() > 1;
    for _ in 0..count {
        let token = token(rules, ring, now, &mut request.odd, random);
        place(rules, &token, &mut request, random);
    }
    if random.once_in(12) {
        // What a caller would like to be believed.
        request.headers.push((format!("x-sub-{set}"), "root".to_owned()));
        request.headers.push((format!("x-payload-{set}"), "e30".to_owned()));
    }
    if random.once_in(25) {
        request.method = "OPTIONS";
        request.headers.push(("origin".to_owned(), "https://o".to_owned()));
        request.headers.push(("access-control-request-method".to_owned(), "GET".to_owned()));
    }
    request
}

/// What came of a request: a refusal, or what was forwarded.
#[derive(Debug, PartialEq)]
enum Outcome {
    Refused { status: u16, body: String, challenge: String },
    Forwarded { target: String, headers: BTreeMap<String, String>, claims: Value },
}

impl Outcome {
    fn of_envoy(answer: &Answer) -> Self {
        if answer.status != 200 {
            let challenge = answer.header("www-authenticate").unwrap_or_default().to_owned();
            return Self::Refused { status: answer.status, body: body(&answer.text()), challenge };
        }
        let seen: Value = serde_json::from_slice(&answer.body).expect("the upstream answers JSON");
        let headers: Vec<(String, String)> = serde_json::from_value(seen["headers"].clone()).expect("pairs");
        let claims = headers.iter().find(|(name, _)| name == PAYLOAD);
        let claims = claims.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default();
        Self::Forwarded {
            target: target(seen["target"].as_str().unwrap_or_default()),
            headers: compared(&headers),
            claims: as_doubles(claims),
        }
    }

    fn of_authentication(request: &Request, result: Result<Verified, TokenRefused>) -> Self {
        match result {
            Err(refused) => Self::Refused {
                status: refused.status,
                body: body(refused.reason),
                challenge: refused.challenge("http", "h", &request.path),
            },
            Ok(verified) => {
                let mut headers = request.headers.clone();
                let removed = &verified.changes.remove;
                headers.retain(|(name, _)| !removed.iter().any(|other| name.eq_ignore_ascii_case(other)));
                let more = verified.changes.append;
                headers.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
                let claims = verified.claims.map(|claims| json!(claims.as_map())).unwrap_or_default();
                Self::Forwarded {
                    target: target(verified.changes.path.as_deref().unwrap_or(&request.path)),
                    headers: compared(&headers),
                    claims: as_doubles(claims),
                }
            }
        }
    }
}

/// The reason, without the difference that Envoy's forgiving base64 makes to broken headers.
fn body(text: &str) -> String {
    text.replace("header is an invalid Base64url encoded", "header is an invalid JSON")
}

/// A target with its parameters in the form and order that Envoy writes them in when it takes one away.
fn target(text: &str) -> String {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let mut parameters: Vec<String> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| if parameter.contains('=') { parameter.to_owned() } else { format!("{parameter}=") })
        .map(|parameter| parameter.replace("%2F", "/").replace("%2E", "."))
        .collect();
    parameters.sort();
    format!("{path}?{}", parameters.join("&"))
}

fn compared(headers: &[(String, String)]) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if COMPARED.iter().any(|start| name.starts_with(start)) {
            let joined = all.entry(name).or_default();
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(value);
        }
    }
    all
}

/// Envoy's metadata knows doubles only.
fn as_doubles(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(list) => list.into_iter().map(as_doubles).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (name, as_doubles(value))).collect()
        }
        other => other,
    }
}

/// Asks `count` sets of rules some questions each.
pub(crate) fn compare(envoy: &Path, count: usize, random: &mut Random) {
    let ring = Ring::new();
    let sets: Vec<Vec<JwtRule>> =
        (0..count).map(|set| (0..1 + random.below(3)).map(|_| rule(set, &ring, random)).collect()).collect();
    let to = SocketAddr::from(([127, 0, 0, 1], LISTENER));
    let lab = Lab::start(envoy, "tokens", to, &|_| configuration(&sets));
    serve(&lab.namespace, UPSTREAM, |seen| {
        let target = seen.start.split(' ').nth(1).unwrap_or_default();
        (200, json!({ "target": target, "headers": seen.headers }).to_string().into_bytes())
    });
    let mut caller = Caller::new(&lab, to);
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut different = 0;
    for (index, rules) in sets.into_iter().enumerate() {
        let policy = RequestAuthentication {
            namespace: "a".to_owned(),
            name: "generated".to_owned(),
            rules: rules.clone(),
        };
        let (authentication, problems) = Authentication::compile(&[policy]);
        let mut cache = TokenCache::new();
        for _ in 0..QUESTIONS {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            let request = request(index, &rules, &ring, now.as_secs(), random);
            let mut text =
                format!("{} {} HTTP/1.1\r\nHost: h\r\nx-set: {index}\r\n", request.method, request.path);
            for (name, value) in &request.headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("\r\n");
            let envoy = Outcome::of_envoy(&caller.ask(text.as_bytes()));
            let asked =
                TokenRequest { method: request.method, path: &request.path, headers: &request.headers };
            let verified = authentication.verify(&asked, SystemTime::now(), &mut cache);
            let ours = Outcome::of_authentication(&request, verified);
            let outcome = match &envoy {
                _ if request.odd && matches!(ours, Outcome::Refused { .. }) => "refused as odd",
                _ if request.two_of_many && envoy != ours => "two tokens, of which one counts",
                // Envoy lets a preflight bring such headers; nobody gains by them here.
                _ if request.method == "OPTIONS" && envoy != ours => "preflight without forged headers",
                _ if envoy != ours => {
                    println!("set {index} {problems:?}\nEnvoy {envoy:?}\nours {ours:?}\n{request:?}");
                    rules.iter().for_each(|rule| print!("{} ", provider(rule)));
                    println!("\n");
                    different += 1;
                    "different"
                }
                Outcome::Forwarded { claims: Value::Null, .. } => "no token for both",
                Outcome::Forwarded { .. } => "accepted by both",
                Outcome::Refused { body, .. } => body,
            };
            *outcomes.entry(outcome.to_owned()).or_default() += 1;
        }
    }
    println!("Envoy and authentication: {outcomes:#?}");
    assert_eq!(different, 0, "differences, printed above");
    assert!(outcomes.get("accepted by both").is_some_and(|count| *count > 200), "too few were accepted");
}
