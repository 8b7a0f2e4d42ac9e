use maille_config::mesh::{ExtensionProvider, ProviderKind};

/// The external authorizers of a mesh (reference authorization 15).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Providers {
    /// The mesh's configuration is not at hand: whoever policies name counts as there.
    #[default]
    Unknown,
    /// All that there are.
    Known(Vec<Provider>),
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name in policies.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Whether it can be asked about connections; one of HTTP only about requests.
    pub asks_tcp: bool,
    /// Whether its failure counts as a yes.
    pub fail_open: bool,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

impl From<&ExtensionProvider> for Provider {
    fn from(provider: &ExtensionProvider) -> Self {
        Self {
            name: provider.name.clone(),
            address: format!("{}:{}", provider.host, provider.port),
            asks_tcp: provider.kind == ProviderKind::Grpc,
            fail_open: provider.fail_open,
            problem: None,
        }
    }
}

/// What becomes of a request that a CUSTOM rule matches.
#[allow(clippy::enum_variant_names, reason = "one of its outcomes is what the question is about")]
pub(super) enum Asked {
    /// The provider is asked.
    Asked(Option<Provider>),
    /// Nobody is asked, and it goes on: an HTTP provider and a connection.
    Passed,
    /// Nobody can be asked, and it is refused.
    Refused(String),
}

impl Providers {
    pub(super) fn asked(&self, name: &str, tcp: bool) -> Asked {
        let Self::Known(all) = self else { return Asked::Asked(None) };
        match all.iter().find(|provider| provider.name == name) {
            None => {
                let known: Vec<&str> = all.iter().map(|provider| provider.name.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Asked::Refused(format!(
                    "the mesh's configuration has no extension provider {name} (it has {known})"
                ))
            }
            Some(Provider { problem: Some(problem), .. }) => {
                Asked::Refused(format!("extension provider {name} cannot be used: {problem}"))
            }
            Some(provider) if tcp && !provider.asks_tcp => Asked::Passed,
            Some(provider) => Asked::Asked(Some(provider.clone())),
        }
    }
}
