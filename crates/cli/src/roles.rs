//! The roles that processes of a mesh play. People do not call these; the supervisor, or Kubernetes, does.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use maille_core::TrustDomain;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

#[derive(Debug, clap::Args)]
pub(crate) struct ControlPlaneArgs {
    /// Trust domain of every identity, unless the ConfigMap `istio` names one.
    #[arg(long, env = "TRUST_DOMAIN", default_value = maille_core::DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// Lifetime of workload certificates when none is asked for.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    default_workload_cert_ttl: Duration,
    /// Longest lifetime that may be asked for; more is refused.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", value_name = "TIME", default_value = "2160h", value_parser = lifetime)]
    max_workload_cert_ttl: Duration,
    /// Accounts (namespace/account, with commas between) of node proxies, which may ask for certificates of the workloads
    /// of their node; nobody unless given.
    #[arg(long, env = "CA_TRUSTED_NODE_ACCOUNTS", value_name = "ACCOUNTS", default_value = "")]
    ca_trusted_node_accounts: maille_kube::TrustedNodeAccounts,
    /// File to which a line of JSON is appended for each certificate issued or refused.
    #[arg(long, env = "CA_AUDIT_LOG", value_name = "FILE")]
    ca_audit_log: Option<PathBuf>,
    /// Folder with the files of a CA to plug in: ca-cert.pem, ca-key.pem, root-cert.pem, and cert-chain.pem and ca-crl.pem if
    /// there are; or tls.crt, tls.key and ca.crt. They become Secret `cacerts`, and are rotated to when they are replaced.
    /// Unless one is named, this one is read if there is one; an empty name means none.
    #[arg(long, env = "ROOT_CA_DIR", value_name = "DIR", default_value = DEFAULT_CA_FOLDER)]
    root_ca_dir: OsString,
    /// Name of the Pod that this is, to know which Secrets are its folders.
    #[arg(long, env = "POD_NAME", value_name = "NAME", hide = true)]
    pod_name: Option<String>,
    /// Issue nothing that cannot be written to that file.
    #[arg(long, env = "CA_AUDIT_REQUIRED", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    ca_audit_required: bool,
}

/// Where Istio's charts mount the files of a CA.
const DEFAULT_CA_FOLDER: &str = "/etc/cacerts";

/// A lifetime as Istio writes it: 24h, 30m, 45s; at least a second.
fn lifetime(text: &str) -> Result<Duration, String> {
    let read = maille_config::duration::parse(text).filter(|time| *time >= Duration::from_secs(1));
    read.ok_or_else(|| format!("'{text}' is no lifetime such as 24h, 30m or 45s, of a second at least"))
}

/// Runs the control plane until SIGTERM.
pub(crate) fn control_plane(args: ControlPlaneArgs) -> Result<()> {
    let _log = log_to_stdout();
    crate::choose_crypto();
    let trust_domain = TrustDomain::parse(&args.trust_domain)?;
    let (default_ttl, max_ttl) = (args.default_workload_cert_ttl, args.max_workload_cert_ttl);
    anyhow::ensure!(
        default_ttl <= max_ttl,
        "DEFAULT_WORKLOAD_CERT_TTL ({default_ttl:?}) is longer than MAX_WORKLOAD_CERT_TTL ({max_ttl:?})"
    );
    let mut options = maille_kube::ControlPlaneOptions::new(trust_domain);
    let node_accounts = args.ca_trusted_node_accounts;
    options.issue_rules = maille_kube::IssueRules { default_ttl, max_ttl, node_accounts };
    if !args.root_ca_dir.is_empty() {
        let must_exist = args.root_ca_dir != DEFAULT_CA_FOLDER;
        options.ca_folder = Some(maille_kube::CaFolder { path: args.root_ca_dir.into(), must_exist });
    }
    // Kubernetes names a Pod's host after the Pod.
    let pod = args.pod_name.or_else(|| std::env::var("HOSTNAME").ok());
    options.pod = pod.filter(|name| !name.is_empty());
    options.audit = maille_kube::AuditOptions {
        file: args.ca_audit_log.filter(|file| !file.as_os_str().is_empty()),
        required: args.ca_audit_required,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(maille_kube::run_control_plane(options))
}

#[derive(Debug, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Run one sidecar from this file of facts instead of from a control plane.
    #[arg(long = "static", value_name = "FILE")]
    static_file: Option<PathBuf>,
    /// Wait until the sidecar of this Pod is ready, for a minute at most.
    #[arg(long, conflicts_with_all = ["static_file", "drain"])]
    wait: bool,
    /// Tell the sidecar of this Pod to send its callers elsewhere, and come back at once.
    #[arg(long, conflicts_with = "static_file")]
    drain: bool,
}

/// A sidecar is one of many on its machine: it keeps no more than it needs.
const MEMORY: maille_proxy::Memory = maille_proxy::Memory {
    once_serving: maille_net::memory::let_go_of_start,
    give_back: maille_net::memory::give_back,
};

/// Runs a sidecar until SIGTERM; what it is comes from the environment that injection gives it.
pub(crate) fn proxy(args: ProxyArgs) -> Result<()> {
    if args.wait {
        return maille_proxy::wait_until_ready();
    }
    if args.drain {
        return maille_proxy::begin_drain();
    }
    let log = log_to_stdout();
    match args.static_file {
        Some(file) => maille_proxy::run_static(&file, MEMORY),
        None => {
            let mut options = maille_proxy::ProxyOptions::from_env(|name| std::env::var(name).ok())?;
            options.log_control = Some(log);
            options.memory = MEMORY;
            maille_proxy::run(options)
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct InterceptArgs {
    /// istio-iptables' arguments, e.g. -p 15001 -z 15006 -u 1337 -x 10.0.0.0/8
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Installs the redirect rules of this network namespace.
pub(crate) fn intercept(args: InterceptArgs) -> Result<()> {
    anyhow::ensure!(
        !args.arguments.is_empty(),
        "`maille intercept` redirects all connections of the network namespace it is called in, and is called by a Pod's \
         istio-init with the ports to redirect to; here it would take the whole machine off the network"
    );
    Ok(maille_net::intercept::apply(&args.arguments)?)
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApiServerArgs {
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Port on the host's 127.0.0.1; 0 for any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Network namespace of the mesh's node.
    #[arg(long, value_name = "NAME")]
    node_namespace: String,
    /// Resolver for names from outside the cluster, in place of those of the host's /etc/resolv.conf.
    #[arg(long = "dns-upstream", value_name = "ADDRESS[:PORT]", value_parser = resolver)]
    dns_upstreams: Vec<SocketAddrV4>,
}

/// Reads the address of a resolver, with port 53 unless it says another.
pub(crate) fn resolver(text: &str) -> Result<SocketAddrV4, String> {
    let parsed = text.parse().or_else(|_| text.parse().map(|address| SocketAddrV4::new(address, DNS)));
    match parsed {
        Ok(resolver) if resolver.port() != 0 && !resolver.ip().is_unspecified() => Ok(resolver),
        _ => Err("not an IPv4 address with or without a port, such as 1.1.1.1 or 127.0.0.1:5353".to_owned()),
    }
}

/// Where resolvers listen.
const DNS: u16 = 53;

/// Serves the embedded API and cluster DNS until SIGTERM.
///
/// The process begins in the host's network namespace, where it keeps one listener on 127.0.0.1 and one socket
/// towards the host's resolvers; then it moves into the node's, before it has a second thread.
pub(crate) fn api_server(args: ApiServerArgs) -> Result<()> {
    use maille_standalone::address::{API_PORT, DNS_PORT, NODE_ADDRESS};

    // A supervisor that is killed must not leave the API behind.
    maille_net::process::die_with_parent()?;
    let _log = log_to_stdout();
    crate::choose_crypto();
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .with_context(|| format!("cannot listen on 127.0.0.1:{}", args.port))?;
    let resolvers = match args.dns_upstreams.is_empty() {
        true => host_resolvers(),
        false => args.dns_upstreams.iter().copied().map(SocketAddr::V4).collect(),
    };
    let any: IpAddr = match maille_standalone::address::is_dual_stack() {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let upstream = UdpSocket::bind((any, 0)).context("cannot open a socket for DNS")?;
    maille_net::NetNs::named(args.node_namespace.as_str()).enter()?;
    let node = TcpListener::bind((NODE_ADDRESS, API_PORT)).context("cannot listen on the node's address")?;
    let udp = UdpSocket::bind((NODE_ADDRESS, DNS_PORT)).context("cannot serve DNS on the node's address")?;
    let tcp =
        TcpListener::bind((NODE_ADDRESS, DNS_PORT)).context("cannot serve DNS on the node's address")?;
    let dns = maille_standalone::dns::DnsOptions { udp, tcp, upstream: Some((upstream, resolvers)) };

    let mut options = maille_apiserver::Options::new(&args.data_dir, vec![local, node]);
    options.advertise = SocketAddr::from((NODE_ADDRESS, API_PORT));
    options.certificate_addresses = vec![NODE_ADDRESS.into()];
    options.service_cidr = maille_standalone::address::SERVICE_NETWORK;
    options.service_cidr_v6 =
        maille_standalone::address::is_dual_stack().then_some(maille_standalone::address::SERVICE_NETWORK_V6);
    options.node_name = maille_standalone::address::NODE_NAME.to_owned();
    options.binary = maille_standalone::address::BINARY_IN_CONTAINERS.into();
    options.pods = Some(Arc::new(crate::pods::Containers::open(&args.data_dir)?));
    for listener in &options.listeners {
        listener.set_nonblocking(true)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let kubeconfig = args.data_dir.join("kubeconfig");
        let (ready, answers) = tokio::sync::oneshot::channel();
        let names = async move {
            let _ = answers.await;
            let client = node_client(&kubeconfig).await?;
            Ok::<_, anyhow::Error>(maille_standalone::dns::serve(dns, client).await?)
        };
        let api = async { Ok(maille_apiserver::serve(options, ready).await?) };
        tokio::select! {
            outcome = async { tokio::try_join!(api, names) } => outcome.map(|_| ()),
            () = crate::signals::shutdown() => Ok(()),
        }
    })
}

/// The administrator's client, by the address that the node's namespace knows.
async fn node_client(kubeconfig: &std::path::Path) -> Result<kube::Client> {
    use maille_standalone::address::{API_PORT, NODE_ADDRESS};
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.cluster_url = format!("https://{NODE_ADDRESS}:{API_PORT}").parse()?;
    Ok(kube::Client::try_from(config)?)
}

/// The `nameserver` lines of the host's resolv.conf.
fn host_resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .map(|address| SocketAddr::new(address, DNS))
        .filter(|address| address.is_ipv4() || maille_standalone::address::is_dual_stack())
        .collect()
}

#[derive(Debug, clap::Args)]
pub(crate) struct EgressArgs {
    /// Network namespace of the mesh's node.
    #[arg(long, value_name = "NAME")]
    node_namespace: String,
}

/// Connects for Pods to the outside of the mesh until SIGTERM. The process stays in the host's network namespace.
pub(crate) fn egress(args: EgressArgs) -> Result<()> {
    let _log = log_to_stdout();
    maille_standalone::egress::run(&args.node_namespace)
}

#[derive(Debug, clap::Args)]
pub(crate) struct SandboxArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Becomes a container's process.
pub(crate) fn sandbox(args: SandboxArgs) -> ExitCode {
    maille_net::sandbox::main(args.arguments)
}

/// Logs of a role: lines on standard output, where the Pod's log collects them. `MAILLE_LOG` says how much, as
/// `tracing` writes it (`info`, `maille_proxy=debug`); what is answered can change it later.
fn log_to_stdout() -> Arc<dyn maille_proxy::LogControl> {
    let directives = std::env::var("MAILLE_LOG").unwrap_or_else(|_| "info".to_owned());
    let (directives, filter) = match filter(&directives) {
        Ok(filter) => (directives, filter),
        Err(_) => ("info".to_owned(), filter("info").unwrap_or_default()),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
    Arc::new(Log { handle, directives: Mutex::new(directives) })
}

/// Kubernetes' client logs answers that it cannot read, in full: one may be a Secret. What it reports as an error names
/// the request only, and its callers say what failed.
const SILENCED: &str = "kube_client::client=error";

/// The filter of these directives, and never what could hold a private key.
fn filter(directives: &str) -> Result<EnvFilter, String> {
    let filter = EnvFilter::try_new(directives).map_err(|error| error.to_string())?;
    Ok(filter.add_directive(SILENCED.parse().map_err(|error| format!("{SILENCED}: {error}"))?))
}

/// What is logged, changeable while the process runs.
struct Log {
    handle: reload::Handle<EnvFilter, Registry>,
    directives: Mutex<String>,
}

impl maille_proxy::LogControl for Log {
    fn current(&self) -> String {
        self.directives.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, directives: &str) -> Result<(), String> {
        let filter = filter(directives)?;
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        directives.clone_into(&mut self.directives.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}
