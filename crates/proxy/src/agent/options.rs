//! What a sidecar is told by its environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use maille_core::{DEFAULT_TRUST_DOMAIN, Identity, TrustDomain, ports};
use maille_telemetry::access_log::Format;

use super::app_metrics::AppMetrics;
use super::probes::Probe;
use super::state::DEFAULT_STATE_DIR;
use crate::memory::Memory;

/// Workers unless told otherwise: a sidecar stands beside an application that wants the cores.
const MAX_DEFAULT_WORKERS: usize = 2;

/// Why the environment does not describe a sidecar.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// A variable that must be set is not.
    #[error("environment variable {0} is not set; the injected sidecar gets it from its Pod")]
    Missing(&'static str),
    /// A variable has a value that cannot be used.
    #[error("environment variable {name} is '{value}': {reason}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value, shortened.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Changes what the process logs, for `/logging` of the admin port.
pub trait LogControl: Send + Sync {
    /// The directives in force.
    fn current(&self) -> String;
    /// Puts other directives in force, as `tracing` writes them (`info`, `maille_proxy=debug`).
    fn set(&self, directives: &str) -> Result<(), String>;
}

/// Where the proxy listens.
#[derive(Debug, Clone)]
pub struct ListenAddresses {
    /// Captured inbound connections.
    pub inbound: SocketAddr,
    /// Captured outbound connections.
    pub outbound: SocketAddr,
    /// Probes of the application, merged metrics, drain.
    pub status: SocketAddr,
    /// Readiness only.
    pub readiness: SocketAddr,
    /// Own metrics only.
    pub metrics: SocketAddr,
    /// Admin; must be a loopback address.
    pub admin: SocketAddr,
}

impl Default for ListenAddresses {
    /// Istio's ports, on every address but for admin (reference mtls 7.1).
    fn default() -> Self {
        let every = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            inbound: every(ports::INBOUND),
            outbound: every(ports::OUTBOUND),
            status: every(ports::STATUS),
            readiness: every(ports::READINESS),
            metrics: every(ports::METRICS),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, ports::ADMIN)),
        }
    }
}

/// How a proxy goes away that was told to end (reference mtls 7.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainOptions {
    /// `TERMINATION_DRAIN_DURATION_SECONDS`: from SIGTERM to the end.
    pub termination: Duration,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`: the end is when no connection is open any more instead.
    pub until_unused: bool,
    /// `MINIMUM_DRAIN_DURATION`: and not before this.
    pub minimum: Duration,
    /// `MAILLE_DRAIN_DURATION_SECONDS` (`drainDuration` of ProxyConfig): how long callers with old news are still served
    /// at most.
    pub window: Duration,
}

impl Default for DrainOptions {
    /// Istio's.
    fn default() -> Self {
        Self {
            termination: Duration::from_secs(5),
            until_unused: false,
            minimum: Duration::from_secs(5),
            window: Duration::from_secs(45),
        }
    }
}

impl DrainOptions {
    /// How long new inbound connections are taken after the drain has begun. Envoy takes them to the end, and then cuts
    /// them; here the second half of the time is for those that were taken in the first.
    pub fn welcome(&self) -> Duration {
        let all = if self.until_unused { self.minimum } else { self.termination / 2 };
        all.min(self.window)
    }

    fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, OptionError> {
        let defaults = Self::default();
        let invalid = |name: &'static str, value: &str, reason: &str| OptionError::Invalid {
            name,
            value: value.chars().take(100).collect(),
            reason: reason.to_owned(),
        };
        let seconds = |name: &'static str, default: Duration| match get(name) {
            Some(text) => {
                text.parse().map(Duration::from_secs).map_err(|_| invalid(name, &text, "it must be seconds"))
            }
            None => Ok(default),
        };
        let until_unused = match get("EXIT_ON_ZERO_ACTIVE_CONNECTIONS").as_deref() {
            None => false,
            Some("1" | "t" | "T" | "TRUE" | "true" | "True") => true,
            Some("0" | "f" | "F" | "FALSE" | "false" | "False") => false,
            Some(other) => {
                return Err(invalid("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", other, "it must be true or false"));
            }
        };
        let minimum = match get("MINIMUM_DRAIN_DURATION") {
            Some(text) if text == "0" || text == "0s" => Duration::ZERO,
            Some(text) => go_duration(&text).ok_or_else(|| {
                invalid("MINIMUM_DRAIN_DURATION", &text, "a duration has a form such as 5s or 1m0s")
            })?,
            None => defaults.minimum,
        };
        Ok(Self {
            termination: seconds("TERMINATION_DRAIN_DURATION_SECONDS", defaults.termination)?,
            until_unused,
            minimum,
            window: seconds("MAILLE_DRAIN_DURATION_SECONDS", defaults.window)?,
        })
    }
}

/// Everything a sidecar needs to start.
#[derive(Clone)]
pub struct ProxyOptions {
    /// `POD_NAME`.
    pub pod_name: String,
    /// Who the workload is, by `TRUST_DOMAIN`, `POD_NAMESPACE` and `SERVICE_ACCOUNT`: a certificate
    /// or facts of anybody else are not used.
    pub identity: Identity,
    /// `INSTANCE_IP`.
    pub pod_ip: IpAddr,
    /// `ISTIO_META_CLUSTER_ID`.
    pub cluster: String,
    /// `DISCOVERY_ADDRESS`, host and port.
    pub discovery_address: String,
    /// `CA_ADDR`, host and port; the same control plane unless told otherwise.
    pub ca_address: String,
    /// Name in the control plane's certificate; the host of each address unless told otherwise.
    pub server_name: Option<String>,
    /// Roots for the control plane's certificate, PEM.
    pub root_file: PathBuf,
    /// The ServiceAccount token for the authority.
    pub token_file: PathBuf,
    /// `SECRET_TTL`.
    pub certificate_ttl: Duration,
    /// Memory-backed directory for what outlives a restart.
    pub state_dir: PathBuf,
    /// `MAILLE_WORKERS`.
    pub workers: usize,
    /// Where to listen.
    pub listen: ListenAddresses,
    /// `MAILLE_ACCESS_LOG_FORMAT`, `text` or `json`.
    pub access_log: Format,
    /// `ISTIO_KUBE_APP_PROBERS`: path of a rewritten probe to what it was (reference mtls 7.6).
    pub probes: BTreeMap<String, Probe>,
    /// `ISTIO_PROMETHEUS_ANNOTATIONS`.
    pub app_metrics: Option<AppMetrics>,
    /// How the proxy goes away.
    pub drain: DrainOptions,
    /// `MAILLE_LIFE`: told with every answer about readiness, for whoever starts one process in place of another.
    pub life: Option<String>,
    /// How long a first look-up may wait for the control plane.
    pub resolve_timeout: Duration,
    /// `MAILLE_WORKLOAD_SOCKET`: where applications get certificates of their own (reference mtls 6.3); `None`: nowhere.
    pub workload_socket: Option<PathBuf>,
    /// Where the application's DNS questions are answered; `None` unless `ISTIO_META_DNS_CAPTURE` is `true`.
    pub dns: Option<SocketAddr>,
    /// Names the resolvers for what the registry does not know.
    pub resolv_conf: PathBuf,
    /// Behind `/logging`.
    pub log_control: Option<Arc<dyn LogControl>>,
    /// What is done for the memory of this process.
    pub memory: Memory,
}

impl ProxyOptions {
    /// Reads the environment through `get`.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, OptionError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let required = |name: &'static str| get(name).ok_or(OptionError::Missing(name));
        let invalid = |name: &'static str, value: &str, reason: &dyn ToString| OptionError::Invalid {
            name,
            value: value.chars().take(100).collect(),
            reason: reason.to_string(),
        };

        let domain = get("TRUST_DOMAIN").unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned());
        let domain = TrustDomain::parse(&domain).map_err(|e| invalid("TRUST_DOMAIN", &domain, &e))?;
        let namespace = required("POD_NAMESPACE")?;
        let account = get("SERVICE_ACCOUNT").unwrap_or_else(|| "default".to_owned());
        let identity = Identity::new(domain, &namespace, &account)
            .map_err(|e| invalid("SERVICE_ACCOUNT", &format!("{namespace}/{account}"), &e))?;
        let ip = required("INSTANCE_IP")?;
        // Dual-stack Pods get all their addresses, joined by commas; the first is the main one.
        let first = ip.split(',').next().unwrap_or_default().trim();
        let pod_ip = first.parse().map_err(|e: std::net::AddrParseError| invalid("INSTANCE_IP", &ip, &e))?;
        let discovery_address =
            get("DISCOVERY_ADDRESS").unwrap_or_else(|| "istiod.istio-system.svc:15012".to_owned());
        let ca_address = get("CA_ADDR").unwrap_or_else(|| discovery_address.clone());
        for (name, address) in [("DISCOVERY_ADDRESS", &discovery_address), ("CA_ADDR", &ca_address)] {
            host_of(address).ok_or_else(|| invalid(name, address, &"it must be host:port"))?;
        }
        let certificate_ttl = match get("SECRET_TTL") {
            Some(text) => go_duration(&text).ok_or_else(|| {
                invalid("SECRET_TTL", &text, &"a duration has a form such as 24h0m0s and is not zero")
            })?,
            None => Duration::from_secs(24 * 3600),
        };
        let workers = match get("MAILLE_WORKERS") {
            Some(text) => match text.parse() {
                Ok(number @ 1..=256) => number,
                _ => return Err(invalid("MAILLE_WORKERS", &text, &"it must be 1 to 256")),
            },
            None => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_DEFAULT_WORKERS),
        };
        let access_log = match get("MAILLE_ACCESS_LOG_FORMAT").as_deref() {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => {
                return Err(invalid("MAILLE_ACCESS_LOG_FORMAT", other, &"it must be text or json"));
            }
        };
        let probes = match get("ISTIO_KUBE_APP_PROBERS") {
            Some(text) => {
                super::probes::parse(&text).map_err(|e| invalid("ISTIO_KUBE_APP_PROBERS", &text, &e))?
            }
            None => BTreeMap::new(),
        };
        let app_metrics = match get("ISTIO_PROMETHEUS_ANNOTATIONS") {
            Some(text) => {
                AppMetrics::parse(&text).map_err(|e| invalid("ISTIO_PROMETHEUS_ANNOTATIONS", &text, &e))?
            }
            None => None,
        };
        let drain = DrainOptions::from_env(get)?;
        Ok(Self {
            pod_name: required("POD_NAME")?,
            identity,
            pod_ip,
            cluster: get("ISTIO_META_CLUSTER_ID").unwrap_or_else(|| "Kubernetes".to_owned()),
            discovery_address,
            ca_address,
            server_name: None,
            root_file: "/var/run/secrets/istio/root-cert.pem".into(),
            token_file: "/var/run/secrets/tokens/istio-token".into(),
            certificate_ttl,
            state_dir: get("MAILLE_STATE_DIR").unwrap_or_else(|| DEFAULT_STATE_DIR.to_owned()).into(),
            workers,
            listen: ListenAddresses::default(),
            access_log,
            probes,
            app_metrics,
            drain,
            life: get("MAILLE_LIFE"),
            resolve_timeout: Duration::from_secs(5),
            workload_socket: get("MAILLE_WORKLOAD_SOCKET").map(PathBuf::from),
            // Any other value is Istio's "no", as the interception's.
            dns: (get("ISTIO_META_DNS_CAPTURE").as_deref() == Some("true"))
                .then_some(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::DNS))),
            resolv_conf: "/etc/resolv.conf".into(),
            log_control: None,
            memory: Memory::default(),
        })
    }

    /// `<namespace>/<pod>`: the name of the own `Inbound` resource.
    pub fn uid(&self) -> String {
        format!("{}/{}", self.identity.namespace(), self.pod_name)
    }
}

/// The host of `host:port`; brackets of an IPv6 address are dropped.
pub(crate) fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

/// A duration in Go's notation (`24h0m0s`, `90s`, `1.5h` is not needed and not read); `None` for zero too.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match rest.get(..letters)? {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(u32::try_from(number).ok()?)?)?;
        rest = rest.get(letters..)?;
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ProxyOptions, OptionError> {
        let base = [("POD_NAME", "cart-1"), ("POD_NAMESPACE", "shop"), ("INSTANCE_IP", "10.1.2.3,fd00::3")];
        ProxyOptions::from_env(|name| {
            let find =
                |set: &[(&str, &str)]| set.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
            find(pairs).or_else(|| find(&base))
        })
    }

    #[test]
    fn defaults_are_istios() {
        let options = read(&[]).expect("enough is set");
        assert_eq!(options.identity.uri(), "spiffe://cluster.local/ns/shop/sa/default");
        assert_eq!(options.uid(), "shop/cart-1");
        assert_eq!(options.ca_address, "istiod.istio-system.svc:15012");
        assert_eq!(options.certificate_ttl, Duration::from_secs(86_400));
        assert!((1..=2).contains(&options.workers));
        assert!(options.listen.admin.ip().is_loopback());
    }

    #[test]
    fn the_drain_is_istios_unless_told_otherwise() {
        assert_eq!(read(&[]).expect("enough is set").drain, DrainOptions::default());
        let told = read(&[
            ("TERMINATION_DRAIN_DURATION_SECONDS", "20"),
            ("MAILLE_DRAIN_DURATION_SECONDS", "4"),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
            ("MINIMUM_DRAIN_DURATION", "1m2s"),
        ]);
        let expected = DrainOptions {
            termination: Duration::from_secs(20),
            until_unused: true,
            minimum: Duration::from_secs(62),
            window: Duration::from_secs(4),
        };
        assert_eq!(told.expect("good values").drain, expected);
        assert_eq!(expected.welcome(), Duration::from_secs(4), "never longer than the window");
    }

    #[test]
    fn bad_values_name_the_variable() {
        for (name, value) in [
            ("TRUST_DOMAIN", "a/b"),
            ("POD_NAMESPACE", "a/b"),
            ("INSTANCE_IP", "10.1.2"),
            ("DISCOVERY_ADDRESS", "istiod"),
            ("CA_ADDR", "istiod:0"),
            ("SECRET_TTL", "1d"),
            ("SECRET_TTL", "0s"),
            ("MAILLE_WORKERS", "0"),
            ("MAILLE_ACCESS_LOG_FORMAT", "xml"),
            ("ISTIO_KUBE_APP_PROBERS", "{"),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", "scrape"),
            ("TERMINATION_DRAIN_DURATION_SECONDS", "5s"),
            ("MAILLE_DRAIN_DURATION_SECONDS", "-1"),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "yes"),
            ("MINIMUM_DRAIN_DURATION", "5"),
        ] {
            let error = read(&[(name, value)]).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(value), "{name}={value}: {error}");
        }
        let missing = ProxyOptions::from_env(|_| None).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(missing.contains("POD_NAMESPACE"), "{missing}");
    }

    #[test]
    fn go_durations() {
        assert_eq!(go_duration("24h0m0s"), Some(Duration::from_secs(86_400)));
        assert_eq!(go_duration("1m500ms"), Some(Duration::from_millis(60_500)));
        for bad in ["", "h", "5", "5x", "-1s", "0h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
        assert_eq!(host_of("[::1]:15012"), Some("::1"));
    }
}
