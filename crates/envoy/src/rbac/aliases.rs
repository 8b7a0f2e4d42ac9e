//! Trust domains of policies, as Istio replaces them before it writes filters (reference authorization 12.5).

use maille_proto::facts as wire;

/// The mesh's trust domain and its aliases.
#[derive(Debug, Default)]
pub(super) struct TrustDomains<'f>(Vec<&'f str>);

impl<'f> TrustDomains<'f> {
    pub(super) fn of(facts: &'f wire::FactsInForce) -> Self {
        let settings = facts.mesh_settings.iter();
        let all = settings.flat_map(|settings| {
            std::iter::once(&settings.trust_domain).chain(&settings.trust_domain_aliases)
        });
        let mut domains: Vec<&str> = Vec::new();
        for domain in all.map(String::as_str).filter(|domain| !domain.is_empty()) {
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        Self(domains)
    }

    /// Principals of exactly five parts, once for each trust domain that theirs stands for.
    pub(super) fn principals(&self, values: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut add = |value: String| {
            if !all.contains(&value) {
                all.push(value);
            }
        };
        for value in values {
            let parts: Vec<&str> = value.split('/').collect();
            let is_own = |domain: &str| self.0.iter().any(|own| overlaps(own, domain));
            match parts.as_slice() {
                [domain, rest @ ..]
                    if rest.len() == 4
                        && *domain != "*"
                        && !self.0.is_empty()
                        && (*domain == "cluster.local" || is_own(domain)) =>
                {
                    for own in &self.0 {
                        let fits = domain.strip_prefix('*').is_some_and(|suffix| own.ends_with(suffix));
                        add(if fits { value.clone() } else { format!("{own}/{}", rest.join("/")) });
                    }
                }
                _ => add(value.clone()),
            }
        }
        all
    }

    /// Trust domains; one of the mesh's own stands for all of them.
    pub(super) fn trust_domains(&self, values: &[String]) -> Vec<String> {
        if values.iter().any(|value| self.0.contains(&value.as_str())) {
            return self.0.iter().map(|domain| (*domain).to_owned()).collect();
        }
        values.to_vec()
    }
}

/// Equal, or fitting by a star at either end.
fn overlaps(own: &str, written: &str) -> bool {
    match (written.strip_prefix('*'), written.strip_suffix('*')) {
        (Some(suffix), _) => own.ends_with(suffix),
        (None, Some(prefix)) => own.starts_with(prefix),
        (None, None) => own == written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the reference.
    #[test]
    fn a_principal_stands_for_every_own_trust_domain() {
        let domains = TrustDomains(vec!["td-new", "td-old"]);
        let expand = |value: &str| domains.principals(&[value.to_owned()]).join(" ");
        assert_eq!(expand("td-old/ns/a/sa/b"), "td-new/ns/a/sa/b td-old/ns/a/sa/b");
        assert_eq!(expand("cluster.local/ns/a/sa/b"), "td-new/ns/a/sa/b td-old/ns/a/sa/b");
        assert_eq!(expand("*-old/ns/a/sa/b"), "td-new/ns/a/sa/b *-old/ns/a/sa/b");
        for kept in ["other/ns/a/sa/b", "*", "*/sa/b", "*/ns/a/sa/b", "td-old/ns/a/*"] {
            assert_eq!(expand(kept), kept);
        }
        assert_eq!(domains.trust_domains(&["td-old".to_owned()]), ["td-new", "td-old"]);
        assert_eq!(domains.trust_domains(&["cluster.local".to_owned()]), ["cluster.local"]);
    }
}
