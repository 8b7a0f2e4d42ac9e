//! The one place that knows the DNS library.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use parking_lot::Mutex;

/// For one question to one server.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Questions before a lookup has failed.
const ATTEMPTS: usize = 2;

/// Who is asked.
#[derive(Debug, Clone)]
pub(crate) enum Servers {
    /// Those of `/etc/resolv.conf`, after `/etc/hosts`.
    System,
    /// These, and answers may be loopback addresses: for tests.
    These(Vec<SocketAddr>),
}

/// Addresses of a name and how long they are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) good_for: Duration,
}

/// Why there are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    /// The servers say so.
    #[error("{0}")]
    NoAddress(String),
    /// They cannot be asked.
    #[error("{0}")]
    Away(String),
}

pub(crate) type LookingUp<'a> = Pin<Box<dyn Future<Output = Result<Found, LookupError>> + Send + 'a>>;

/// Looks names up.
pub(crate) trait LookUp: Send + Sync {
    /// The addresses of a host name, which is taken as it is: no search domains.
    fn look_up<'a>(&'a self, name: &'a str) -> LookingUp<'a>;
}

/// Asks name servers.
pub(crate) fn dns(servers: Servers) -> Arc<dyn LookUp> {
    Arc::new(Dns { servers, resolver: Mutex::default() })
}

struct Dns {
    servers: Servers,
    /// Made at first use; most proxies never need it.
    resolver: Mutex<Option<Arc<TokioResolver>>>,
}

impl Dns {
    fn resolver(&self) -> Result<Arc<TokioResolver>, LookupError> {
        let mut held = self.resolver.lock();
        if let Some(resolver) = &*held {
            return Ok(resolver.clone());
        }
        let away =
            |e: &dyn std::fmt::Display| LookupError::Away(format!("/etc/resolv.conf cannot be used: {e}"));
        let mut builder = match &self.servers {
            Servers::System => TokioResolver::builder_tokio().map_err(|e| away(&e))?,
            Servers::These(addresses) => {
                let servers = addresses.iter().map(|address| {
                    let at = |mut connection: ConnectionConfig| {
                        connection.port = address.port();
                        connection
                    };
                    let mut server = NameServerConfig::udp_and_tcp(address.ip());
                    server.connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
                    server
                });
                let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options: &mut ResolverOpts = builder.options_mut();
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        // Answers are kept by whoever asked, for as long as they are good.
        options.cache_size = 0;
        let resolver = Arc::new(builder.build().map_err(|e| away(&e))?);
        *held = Some(resolver.clone());
        Ok(resolver)
    }

    fn is_usable(&self, address: IpAddr) -> bool {
        // An IPv4 address in IPv6's clothes is that IPv4 address: `::ffff:0.0.0.0` reaches this Pod's own loopback.
        let address = address.to_canonical();
        let is_tame = match &self.servers {
            // A name from outside must not lead to what listens on this Pod's loopback, such as the admin port.
            Servers::System => !address.is_loopback(),
            Servers::These(_) => true,
        };
        is_tame && !address.is_unspecified() && !address.is_multicast()
    }
}

impl LookUp for Dns {
    fn look_up<'a>(&'a self, name: &'a str) -> LookingUp<'a> {
        Box::pin(async move {
            let resolver = self.resolver()?;
            // With its final dot, so that search domains play no part: four questions for one otherwise.
            let absolute = Name::from_ascii(format!("{name}."))
                .map_err(|e| LookupError::NoAddress(format!("it is no DNS name: {e}")))?;
            let (v4, v6) = futures::join!(
                resolver.lookup(absolute.clone(), RecordType::A),
                resolver.lookup(absolute, RecordType::AAAA)
            );
            let now = Instant::now();
            let (mut addresses, mut good_for, mut away, mut none) = (Vec::new(), None, None, None);
            for outcome in [v4, v6] {
                match outcome {
                    Ok(answer) => {
                        let found = answer.answers().iter().filter_map(|record| record.data.ip_addr());
                        let before = addresses.len();
                        addresses.extend(found.filter(|address| self.is_usable(*address)));
                        if addresses.len() > before {
                            let left = answer.valid_until().saturating_duration_since(now);
                            good_for = Some(good_for.map_or(left, |other: Duration| other.min(left)));
                        }
                    }
                    Err(e) if e.is_nx_domain() => none = Some("there is no such name (NXDOMAIN)"),
                    Err(e) if e.is_no_records_found() => {
                        none = none.or(Some("the name has no address"));
                    }
                    Err(e) => away = Some(e.to_string()),
                }
            }
            if addresses.iter().any(|address| is_routed(*address)) {
                addresses.retain(|address| is_routed(*address));
            }
            match (good_for, away) {
                (Some(good_for), _) if !addresses.is_empty() => Ok(Found { addresses, good_for }),
                (_, Some(why)) => Err(LookupError::Away(format!("the name servers did not answer: {why}"))),
                _ => Err(LookupError::NoAddress(
                    none.unwrap_or("the name has no address that may be dialled").to_owned(),
                )),
            }
        })
    }
}

/// Whether the kernel knows a way to an address: many Pods have no IPv6. Sends nothing.
fn is_routed(address: IpAddr) -> bool {
    if address.is_ipv4() {
        return true;
    }
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect((address, 9))).is_ok()
}
