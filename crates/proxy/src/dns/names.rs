//! What the registry says of a name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ClusterDomain;
use crate::snapshot::{Destination, DestinationCell, ResolveError, Resolver, Service};

/// The application's resolver waits five seconds. Of the cluster's names the cluster's own server is asked in what is left
/// of them; of others nobody is, and whoever's endpoints are names may have to wait until they were looked up.
const PATIENCE_FOR_CLUSTERS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_millis(4500);

/// Names that the control plane is asked about for the first time, in a second and at once. An application that looks up
/// ever new names must not make it do more work than that.
const NEW_NAMES_PER_SECOND: f64 = 200.0;
const NEW_NAMES_AT_ONCE: f64 = 1000.0;

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// The registry's own.
    Addresses {
        /// The name that has them, where it is another than the one asked for.
        alias: Option<String>,
        addresses: Vec<IpAddr>,
        /// That it has others, in a family of which there is none, only the cluster's own server can say.
        may_have_more: bool,
    },
    /// Nothing of the registry's: whoever else may know it.
    Elsewhere,
    /// Nobody can say now.
    Failure,
}

/// The registry, asked on demand.
pub(super) struct RegistryNames {
    registry: Arc<dyn Resolver>,
    cluster_domain: ClusterDomain,
    /// The first search domain. Resolvers try names below it first, so a name that is found there needs no second
    /// question (as Istio does).
    first_search: Option<String>,
    allowance: Mutex<Allowance>,
}

impl RegistryNames {
    pub(super) fn new(
        registry: Arc<dyn Resolver>,
        cluster_domain: ClusterDomain,
        search: Vec<String>,
    ) -> Self {
        Self {
            registry,
            cluster_domain,
            first_search: search.into_iter().next(),
            allowance: Mutex::new(Allowance::full()),
        }
    }

    /// Looks up a name in lower case, without its final dot.
    pub(super) async fn find(&self, name: &str) -> Known {
        let Some(cluster_domain) = (self.cluster_domain)() else { return Known::Failure };
        let is_clusters = name.strip_suffix(cluster_domain.as_str()).is_some_and(|rest| rest.ends_with('.'));
        let patience = if is_clusters { PATIENCE_FOR_CLUSTERS } else { PATIENCE };
        let mut is_uncertain = false;
        for (asked, alias) in self.readings(name) {
            match self.addresses(asked, patience).await {
                Ok(Some((addresses, may_have_more))) => {
                    return Known::Addresses { alias: alias.map(str::to_owned), addresses, may_have_more };
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(name = asked, %error, "not known whether the registry has it");
                    is_uncertain = true;
                }
            }
        }
        // The cluster's own server says of these what the registry would.
        if is_uncertain && !is_clusters { Known::Failure } else { Known::Elsewhere }
    }

    /// What `name` may stand for: itself, or a name that a search domain was appended to.
    fn readings<'n>(&self, name: &'n str) -> impl Iterator<Item = (&'n str, Option<&'n str>)> {
        let expanded = self
            .first_search
            .as_deref()
            .and_then(|domain| name.strip_suffix(domain)?.strip_suffix('.'))
            .filter(|rest| !rest.is_empty());
        let is_name = |(name, _): &(&str, Option<&str>)| name.parse::<IpAddr>().is_err();
        std::iter::once((name, None)).chain(expanded.map(|rest| (rest, Some(rest)))).filter(is_name)
    }

    /// The addresses that the registry has for a name, and whether there may be more; `None` if it has none.
    async fn addresses(
        &self,
        name: &str,
        patience: Duration,
    ) -> Result<Option<(Vec<IpAddr>, bool)>, ResolveError> {
        let cell = match self.registry.lookup(name) {
            Some(cell) => cell,
            None => self.ask(name, patience).await?,
        };
        // Not a use: what is only looked up makes room for what is called.
        match &**cell.load() {
            Destination::Service(service) => Ok(addresses(service)),
            Destination::Workload(_) | Destination::Unknown | Destination::AnyAddress(_) => Ok(None),
        }
    }

    async fn ask(&self, name: &str, patience: Duration) -> Result<Arc<DestinationCell>, ResolveError> {
        let unreachable =
            |reason: &str| ResolveError::Unreachable { name: name.to_owned(), reason: reason.to_owned() };
        if !self.allowance.lock().take(Instant::now()) {
            return Err(unreachable("too many new names are looked up"));
        }
        let answer = tokio::time::timeout(patience, self.registry.resolve(name)).await;
        answer.unwrap_or_else(|_| Err(unreachable("no answer in time")))
    }
}

/// The addresses under which a service is called: its own, or of a headless one its endpoints'; and whether there may be
/// more.
fn addresses(service: &Service) -> Option<(Vec<IpAddr>, bool)> {
    let own: Vec<IpAddr> = service.addresses.iter().copied().filter(|a| !a.is_unspecified()).collect();
    if !own.is_empty() {
        return Some((own, false));
    }
    let of_endpoints = service.headless && service.service_entry.is_none();
    let endpoints: Vec<IpAddr> =
        service.endpoints.iter().filter(|_| of_endpoints).map(|endpoint| endpoint.address).collect();
    // The registry counts endpoints by ports, each in the family in which it is called; the cluster's own server knows
    // those of Services without ports, and those of the other family.
    (!endpoints.is_empty()).then_some((endpoints, true))
}

/// A bucket of tokens.
struct Allowance {
    left: f64,
    at: Option<Instant>,
}

impl Allowance {
    fn full() -> Self {
        Self { left: NEW_NAMES_AT_ONCE, at: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.left = (self.left + since.as_secs_f64() * NEW_NAMES_PER_SECOND).min(NEW_NAMES_AT_ONCE);
        let is_enough = self.left >= 1.0;
        if is_enough {
            self.left -= 1.0;
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_are_asked_for_at_a_bounded_rate() {
        let mut allowance = Allowance::full();
        let start = Instant::now();
        assert_eq!((0..5000).filter(|_| allowance.take(start)).count(), 1000);
        assert_eq!((0..5000).filter(|_| allowance.take(start + Duration::from_secs(1))).count(), 200);
    }
}
