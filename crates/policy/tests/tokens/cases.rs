//! Every case of the table, twice: with an empty cache and with one that knows the token.

use std::collections::BTreeMap;

use maille_policy::authentication::{TokenCache, TokenRefused, Verified};

use crate::support::{Case, Cases, ask, compile};

#[test]
fn every_case_of_the_table_is_answered_as_expected() {
    let cases = Cases::load();
    let compiled: BTreeMap<&str, _> =
        cases.configs().into_iter().map(|(name, rules)| (name, compile(&rules))).collect();
    let mut wrong = Vec::new();
    for case in &cases.cases {
        let mut cache = TokenCache::new();
        for round in ["first", "again"] {
            let config = compiled.get(case.config.as_str()).expect("make.py wrote it");
            let answer = ask(config, &case.method, &case.path, &case.headers, &mut cache);
            if let Err(difference) = check(case, answer) {
                wrong.push(format!("{} ({round}): {difference}", case.name));
            }
        }
        assert_eq!(cache.hits() > 0, !cache.is_empty(), "{}: what is remembered is used", case.name);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.cases.len() * 2, wrong.join("\n"));
    assert!(cases.cases.len() > 150, "the table is there");
}

fn check(case: &Case, answer: Result<Verified, TokenRefused>) -> Result<(), String> {
    let verified = match answer {
        Err(refused) => {
            let expected = (case.status, case.body.as_deref().unwrap_or_default());
            return match (refused.status, refused.reason) == expected {
                true => Ok(()),
                false => Err(format!("{refused:?} instead of {expected:?}")),
            };
        }
        Ok(_) if case.status != 200 => {
            return Err(format!("accepted instead of {} {:?}", case.status, case.body));
        }
        Ok(verified) => verified,
    };
    let mut headers = case.headers.clone();
    headers.retain(|(name, _)| !verified.changes.remove.iter().any(|removed| **removed == **name));
    for (name, value) in &verified.changes.append {
        headers.push((name.to_string(), value.to_string()));
    }
    let path = verified.changes.path.as_deref().unwrap_or(&case.path);
    let expected = case.upstream.as_deref().unwrap_or(&case.path);
    if path != expected {
        return Err(format!("path {path} instead of {expected}"));
    }
    for (name, value) in &case.forwarded {
        let values: Vec<&String> =
            headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value).collect();
        if values != [value] {
            return Err(format!("{name} is {values:?} instead of {value}"));
        }
    }
    match case.absent.iter().find(|name| headers.iter().any(|(other, _)| other == *name)) {
        Some(name) => Err(format!("{name} is there")),
        None => Ok(()),
    }
}
