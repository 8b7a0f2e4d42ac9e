//! What is asked: policy sets of several kinds, each with requests that nearly fit or nearly miss.

use maille_config::istio::{
    Action, AuthorizationPolicySpec, Condition, From, Operation, Provider, Rule, Source, To,
};
use maille_policy::{Authorization, forwarded_for};
use serde_json::{Map, Value, json};

use crate::policies;
use crate::random::Random;
use crate::requests::Facts;

/// Requests per policy set.
const QUESTIONS: usize = 24;

/// Policies of one workload, and requests to it.
pub(crate) struct Set {
    pub(crate) theme: &'static str,
    pub(crate) policies: Vec<Authorization>,
    pub(crate) questions: Vec<Question>,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) facts: Facts,
    /// Of its token, which is good.
    pub(crate) claims: Option<Map<String, Value>>,
    /// What the external authorizer would say.
    pub(crate) authorizer_refuses: bool,
}

type Theme = fn(&mut Random) -> (Vec<Authorization>, Vec<Question>);

const THEMES: [(&str, Theme); 7] = [
    ("anything", anything),
    ("actions", actions),
    ("templates", templates),
    ("headers", headers),
    ("hosts", hosts),
    ("forwarded", forwarded),
    ("claims", claims),
];

/// The set of that number: one theme after the other.
pub(crate) fn set(index: usize, random: &mut Random) -> Set {
    let (theme, make) = THEMES[index % THEMES.len()];
    let (mut policies, questions) = make(random);
    make_valid(&mut policies, random);
    Set { theme, policies, questions }
}

/// The set of that number for a chain of opaque bytes: the themes that such bytes can have a part in.
pub(crate) fn set_for_bytes(index: usize, random: &mut Random) -> Set {
    set(index % 2, random)
}

/// Leaves what Istio would accept.
fn make_valid(policies: &mut Vec<Authorization>, random: &mut Random) {
    for policy in policies.iter_mut() {
        if matches!(policy.spec.action, Action::Audit | Action::Custom) {
            policy.dry_run = false;
        }
        let custom = policy.spec.action == Action::Custom;
        let name = if random.once_in(6) { "other" } else { "asked" };
        policy.spec.provider = custom.then(|| Provider { name: name.to_owned() });
        let spec = policy.spec.clone();
        let is_valid = |rule: &Rule| {
            let spec = AuthorizationPolicySpec { rules: vec![rule.clone()], ..spec.clone() };
            let object = json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": {"name": "generated", "namespace": policy.namespace},
                "spec": spec,
            });
            maille_config::check(&object).is_ok()
        };
        policy.spec.rules.retain(is_valid);
    }
    // Without rules, a policy that does not allow is refused by validation (and means nothing).
    policies.retain(|policy| policy.spec.action == Action::Allow || !policy.spec.rules.is_empty());
}

fn question(facts: Facts, random: &mut Random) -> Question {
    Question { facts, claims: None, authorizer_refuses: random.once_in(3) }
}

fn near(policies: &[Authorization], random: &mut Random) -> Vec<Question> {
    let one = |_| {
        let facts = Facts::near(random, policies);
        question(facts, random)
    };
    (0..QUESTIONS).map(one).collect()
}

/// Whatever the generator gives.
fn anything(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    let policies = policies::policies(random);
    let questions = near(&policies, random);
    (policies, questions)
}

/// The same rules, but all actions and dry-run equally often.
fn actions(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    let mut policies = policies::policies(random);
    let all = [Action::Allow, Action::Deny, Action::Audit, Action::Custom];
    for policy in &mut policies {
        policy.spec.action = *random.one(&all);
        policy.dry_run = random.once_in(3);
    }
    let questions = near(&policies, random);
    (policies, questions)
}

/// One or two policies around one kind of rule.
fn policies_of(random: &mut Random, mut rule: impl FnMut(&mut Random) -> Rule) -> Vec<Authorization> {
    let mut one = |index: usize, random: &mut Random| Authorization {
        namespace: "a".to_owned(),
        name: format!("p{index}"),
        dry_run: random.once_in(10),
        spec: AuthorizationPolicySpec {
            action: *random.one(&[Action::Allow, Action::Allow, Action::Deny]),
            rules: (0..1 + random.below(2)).map(|_| rule(random)).collect(),
            ..AuthorizationPolicySpec::default()
        },
    };
    (0..1 + random.below(2)).map(|index| one(index, random)).collect()
}

/// A plain request of any caller.
fn plain(random: &mut Random) -> Facts {
    let mut facts = Facts::any(random);
    facts.method = "GET".to_owned();
    facts.host = "h".to_owned();
    facts.path = "/".to_owned();
    facts.forwarded = None;
    facts.headers.clear();
    facts
}

/// One edit, or none.
fn nudge(text: &str, random: &mut Random, with: &[&str]) -> String {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    let at = random.below(parts.len() + 1);
    match random.below(8) {
        0 => parts.insert(at, random.pick(with).to_owned()),
        1 if at < parts.len() => parts[at] = random.pick(with).to_owned(),
        2 if at < parts.len() => drop(parts.remove(at)),
        3 if at < parts.len() => parts[at] = parts[at].to_ascii_uppercase(),
        4 => parts.push(random.pick(with).to_owned()),
        _ => {}
    }
    parts.concat()
}

const SEGMENTS: &[&str] = &["a", "v1", "x-y", "a.b", "a~b", "a%20b", "a=1", "a:b", "@", "a;p"];
/// Of paths, with those that templates take and those that break them.
const CHARACTERS: &[&str] = &[
    "/", "//", ".", "*", "%", "%2f", "%7B", "[", "]", "!", "$", "&", "'", "(", ")", "+", ",", ";", ":", "@",
    "=", "~", "_", "-", "\\", "|", "^", "\"", "<", "{", "%41", "?q=/x", "..",
];

fn templates(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    let mut all = Vec::new();
    let policies = policies_of(random, |random| {
        let mut template = String::new();
        let end = random.below(4);
        for segment in 0..=end {
            template.push('/');
            template.push_str(match random.below(6) {
                0 | 1 => "{*}",
                2 if segment == end => "{**}",
                3 if segment == end => "",
                _ => random.pick(SEGMENTS),
            });
        }
        if template.ends_with("{**}") && random.once_in(2) {
            template.push('/');
            template.push_str(random.pick(&["end", "a/b", ""]));
        }
        all.push(template.clone());
        let mut operation = Operation::default();
        let field = if random.once_in(3) { &mut operation.not_paths } else { &mut operation.paths };
        field.push(template);
        Rule { to: vec![To { operation: Some(operation) }], ..Rule::default() }
    });
    let one = |_| {
        let mut facts = plain(random);
        let mut path = random.one(&all).clone();
        while path.contains("{*}") {
            path = path.replacen("{*}", random.pick(&["q", "", "a/b", "a*b", "%5B", "a[b", "~", "a|b"]), 1);
        }
        path = path.replace("{**}", random.pick(&["", "q", "a/b", "/", "a//b/", "a]/b", "..", "a/../b"]));
        facts.path = nudge(&path, random, CHARACTERS);
        question(facts, random)
    };
    let questions = (0..QUESTIONS).map(one).collect();
    (policies, questions)
}

/// Those that Envoy folds, and others; without `referer` and `x-forwarded-proto`, which Envoy
/// takes away where they are no URI, or adds.
const NAMES: &[&str] = &[
    "accept",
    "authorization",
    "content-type",
    "user-agent",
    "via",
    "cookie",
    "accept-language",
    "accept-encoding",
    "cache-control",
    "origin",
    "x-tier",
    "X-Team",
    "x_under",
    "x.dot",
    "if-match",
    "pragma",
    "link",
    "x-b3-traceid",
    "forwarded",
    "date",
];
const VALUES: &[&str] =
    &["a", "b", "ab", "a,b", "a, b", "a;b", "", "A", "gold", "golden", "a b", "\"a\"", "*"];

fn headers(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    let names: Vec<&str> = (0..1 + random.below(2)).map(|_| random.pick(NAMES)).collect();
    let pattern = |random: &mut Random| match (random.pick(VALUES), random.below(5)) {
        ("", _) | (_, 0) => "*".to_owned(),
        (value, 1) => format!("{value}*"),
        (value, 2) => format!("*{value}"),
        (value, _) => value.to_owned(),
    };
    let policies = policies_of(random, |random| {
        let condition = |random: &mut Random| {
            let key = format!("request.headers[{}]", random.one(&names));
            let mut condition = Condition { key, ..Condition::default() };
            let lists = random.below(4);
            if lists != 1 {
                condition.values = (0..1 + random.below(2)).map(|_| pattern(random)).collect();
            }
            if lists <= 1 {
                condition.not_values = (0..1 + random.below(2)).map(|_| pattern(random)).collect();
            }
            condition
        };
        Rule { when: (0..1 + random.below(2)).map(|_| condition(random)).collect(), ..Rule::default() }
    });
    let one = |_| {
        let mut facts = plain(random);
        for _ in 0..random.below(5) {
            let name = *random.one(&names);
            let name = if random.once_in(4) { name.to_ascii_uppercase() } else { name.to_owned() };
            facts.headers.push((name, random.pick(VALUES).to_owned()));
        }
        question(facts, random)
    };
    let questions = (0..QUESTIONS).map(one).collect();
    (policies, questions)
}

const HOSTS: &[&str] = &[
    "shop",
    "shop.example",
    "shop.example:80",
    "shop.example:8080",
    "shop.example.",
    "Shop.Example",
    "sHOP",
    "10.0.0.1",
    "10.0.0.1:80",
    "[::1]",
    "[::1]:80",
    "shop-1.example",
    "xn--bcher-kva.example",
    "h:443",
    "h",
];

fn hosts(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    let pattern = |random: &mut Random| match (random.pick(HOSTS), random.below(7)) {
        (_, 0) => "*".to_owned(),
        (host, 1) => format!("{host}*"),
        (host, 2) => format!("{host}:*"),
        (host, 3) => format!("*{host}"),
        (host, 4) => format!("*.{host}"),
        (host, _) => host.to_owned(),
    };
    let policies = policies_of(random, |random| {
        let mut operation = Operation::default();
        let field = if random.once_in(3) { &mut operation.not_hosts } else { &mut operation.hosts };
        *field = (0..1 + random.below(2)).map(|_| pattern(random)).collect();
        let mut rule = Rule { to: vec![To { operation: Some(operation) }], ..Rule::default() };
        if random.once_in(4) {
            let key = random.pick(&["request.headers[host]", "request.headers[:authority]"]).to_owned();
            rule.when.push(Condition { key, values: vec![pattern(random)], ..Condition::default() });
        }
        rule
    });
    let one = |_| {
        let mut facts = plain(random);
        let host = random.pick(HOSTS);
        facts.host = nudge(host, random, &["a", ".", ":", ":80", "A", "-", "x.", ".evil", "0", "_", "*"]);
        question(facts, random)
    };
    let questions = (0..QUESTIONS).map(one).collect();
    (policies, questions)
}

/// What may stand in `X-Forwarded-For`; without zones, which Envoy takes if the machine has such an interface.
const FORWARDED: &[&str] = &[
    "10.0.0.1",
    "10.1.2.3",
    "192.0.2.1",
    "2001:db8::1",
    "10.0.0.1, 10.1.2.3",
    "10.1.2.3,192.0.2.1",
    "unknown",
    "10.0.0.1, unknown",
    "10.0.0.1,",
    ",10.0.0.1",
    ", ,",
    "10.0.0.1:80",
    "[2001:db8::1]",
    "[2001:db8::1]:80",
    "::ffff:10.0.0.1",
    "10.0.0.01",
    "010.0.0.1",
    "10.0.1",
    "2001:DB8::1",
    "10.0.0.1 10.1.2.3",
    "\"10.0.0.1\"",
    "10.0.0.1 ,10.1.2.3 ",
    "10.0.0.256",
    "0x0a.0.0.1",
    "167772161",
];

fn forwarded(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    const BLOCKS: &[&str] = &[
        "10.0.0.0/8",
        "10.0.0.1",
        "10.1.2.3",
        "192.0.2.0/24",
        "2001:db8::/32",
        "0.0.0.0/0",
        "::/0",
        "::ffff:0:0/96",
    ];
    let policies = policies_of(random, |random| {
        let mut source = Source::default();
        let blocks: Vec<String> = (0..1 + random.below(2)).map(|_| random.pick(BLOCKS).to_owned()).collect();
        match random.below(3) {
            0 => source.not_remote_ip_blocks = blocks,
            _ => source.remote_ip_blocks = blocks,
        }
        Rule { from: vec![From { source: Some(source) }], ..Rule::default() }
    });
    let one = |_| {
        let mut facts = plain(random);
        for _ in 0..random.below(4) {
            facts.headers.push(("X-Forwarded-For".to_owned(), random.pick(FORWARDED).trim().to_owned()));
        }
        question(facts, random)
    };
    let questions = (0..QUESTIONS).map(one).collect();
    (policies, questions)
}

const ISSUERS: &[&str] = &["https://idp.example", "https://idp", "idp", "https://idp.example/", "x"];
const SUBJECTS: &[&str] = &["u1", "u", "u1/x", "alice@idp", "*", ""];
const WORDS: &[&str] = &["dev", "ops", "devops", "read", "write", "true", "1", "a.b"];

/// A claim's value; seldom a text only.
fn claim(random: &mut Random) -> Value {
    let word = |random: &mut Random| json!(random.pick(WORDS));
    match random.below(12) {
        0..4 => word(random),
        4 => json!(format!("{} {}", random.pick(WORDS), random.pick(WORDS))),
        5 => json!(""),
        6 => json!(true),
        7 => json!(1),
        8 => json!([]),
        9 => json!([word(random), 1, word(random)]),
        10 => json!([[word(random)], word(random)]),
        _ => json!([word(random), word(random)]),
    }
}

fn claims(random: &mut Random) -> (Vec<Authorization>, Vec<Question>) {
    const KEYS: &[&str] = &[
        "request.auth.claims[groups]",
        "request.auth.claims[scope]",
        "request.auth.claims[permission]",
        "request.auth.claims[realm][roles]",
        "request.auth.claims[realm][a.b]",
        "request.auth.claims[a.b]",
        "request.auth.claims[realm]",
        "request.auth.claims[iss]",
        "request.auth.claims[sub]",
        "request.auth.audiences",
        "request.auth.presenter",
    ];
    let stars = |text: &str, random: &mut Random| match random.below(8) {
        0 => "*".to_owned(),
        1 => format!("{}*", &text[..text.len().min(3)]),
        2 => format!("*{}", &text[text.len() - text.len().min(3)..]),
        _ => text.to_owned(),
    };
    let principal = |random: &mut Random| match random.below(10) {
        0 => "*".to_owned(),
        1 => {
            random.pick(&["*/*", "https://idp*", "*u1", "idp", "*x", "https://*", "u*", "/", "*/"]).to_owned()
        }
        2..4 => format!("{}/*", random.pick(ISSUERS)),
        4 => format!("*/{}", random.pick(SUBJECTS)),
        5 => format!("*{}/{}", random.pick(&["example", "idp", "x"]), random.pick(SUBJECTS)),
        6 => format!("{}/u*", random.pick(ISSUERS)),
        _ => format!("{}/{}", random.pick(ISSUERS), random.pick(SUBJECTS)),
    };
    let policies = policies_of(random, |random| {
        let mut rule = Rule::default();
        if random.once_in(2) {
            let mut source = Source::default();
            let values: Vec<String> = (0..1 + random.below(2)).map(|_| principal(random)).collect();
            match random.below(3) {
                0 => source.not_request_principals = values,
                _ => source.request_principals = values,
            }
            rule.from.push(From { source: Some(source) });
        }
        if rule.from.is_empty() || random.once_in(2) {
            let mut condition = Condition { key: random.pick(KEYS).to_owned(), ..Condition::default() };
            if random.once_in(6) {
                condition.key = "request.auth.principal".to_owned();
            }
            let value = |random: &mut Random| match condition.key.as_str() {
                "request.auth.principal" => principal(random),
                "request.auth.claims[iss]" => stars(random.pick(ISSUERS), random),
                _ => stars(random.pick(WORDS), random),
            };
            let lists = random.below(5);
            let values: Vec<String> = (0..1 + random.below(2)).map(|_| value(random)).collect();
            let not_values: Vec<String> = (0..1 + random.below(2)).map(|_| value(random)).collect();
            if lists > 0 {
                condition.values = values;
            }
            if lists < 2 {
                condition.not_values = not_values;
            }
            rule.when.push(condition);
        }
        rule
    });
    let one = |_| {
        let mut question = question(plain(random), random);
        let mut token = Map::new();
        // Not texts, a token is refused; that is another test's business.
        let mut text = |name: &str, from: &[&str], random: &mut Random| {
            if !random.once_in(8) {
                token.insert(name.to_owned(), json!(random.pick(from)));
            }
        };
        text("iss", ISSUERS, random);
        text("sub", SUBJECTS, random);
        for name in ["groups", "scope", "permission", "a.b", "azp"] {
            if random.once_in(2) {
                token.insert(name.to_owned(), claim(random));
            }
        }
        if random.once_in(2) {
            // Envoy takes texts and lists of texts only.
            let audiences = [json!("dev"), json!(["dev"]), json!(["ops", "devops"]), json!([]), json!("")];
            token.insert("aud".to_owned(), random.one(&audiences).clone());
        }
        match random.below(4) {
            0 => drop(token.insert("realm".to_owned(), claim(random))),
            1 | 2 => {
                let inner = json!({ "roles": claim(random), "a.b": claim(random) });
                token.insert("realm".to_owned(), inner);
            }
            _ => {}
        }
        question.claims = (!random.once_in(6)).then_some(token);
        question
    };
    let questions = (0..QUESTIONS).map(one).collect();
    (policies, questions)
}

impl Question {
    /// What the token says, as it is signed.
    pub(crate) fn claims(&self) -> Option<Map<String, Value>> {
        self.claims.clone().or_else(|| self.facts.claims.as_ref().map(|claims| claims.as_map().clone()))
    }

    /// The client address that the request names.
    pub(crate) fn forwarded(&self) -> Option<std::net::IpAddr> {
        self.facts.forwarded.or_else(|| forwarded_for(&self.facts.headers))
    }
}
