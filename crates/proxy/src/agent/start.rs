//! Puts the agent's parts together and starts them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use anyhow::Context as _;
use http::HeaderValue;
use maille_telemetry::Registry;
use maille_xds::{Client, ClientOptions};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::admin::AdminPages;
use super::caller_names::CallerNames;
use super::clock::{Clocks, SystemClocks};
use super::destinations::Destinations;
use super::discovery::Discovery;
use super::facts_in_force::FactsInForce;
use super::in_use::{InUse, News};
use super::options::ProxyOptions;
use super::renewal::Renewer;
use super::server::Pages;
use super::servers::{Server, StatusServers};
use super::state::{Credential, StateStore};
use super::status::Readiness;
use super::status_pages::{MetricsPages, Order, ReadinessPages, StatusPages};
use super::workload_api::{Given, WorkloadApi};
use super::{flows, renewal};
use crate::dns::{Dns, DnsOptions};
use crate::snapshot::Shared;
use crate::takeover::{Handed, Role};
use crate::upkeep::{Servers, Upkeep};

/// The running agent. Dropping it ends its tasks.
pub(crate) struct Agent {
    /// What the data path needs, once everything is there.
    pub(crate) shared: watch::Receiver<Option<Shared>>,
    pub(crate) readiness: Arc<Readiness>,
    /// What callers on this host ordered.
    pub(crate) orders: mpsc::Receiver<Order>,
    /// The servers that run, with where they listen.
    pub(crate) servers: StatusServers,
    /// Those that do not run yet.
    waiting: Vec<Server>,
    /// Does not listen yet.
    workload_api: Option<WorkloadApi>,
    /// What is kept for the next process of this Pod.
    pub(crate) store: Option<Arc<StateStore>>,
    /// For tests and explanations.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by tests only"))]
    pub(crate) facts: Arc<Mutex<FactsInForce>>,
    /// None of them ends but by a fault.
    pub(crate) tasks: JoinSet<()>,
}

impl Agent {
    /// Starts everything on the current runtime. Fails only if a port cannot be had or the options contradict themselves.
    #[cfg(test)]
    pub(crate) fn start(
        options: Arc<ProxyOptions>,
        telemetry: Arc<Registry>,
        clocks: Arc<dyn Clocks>,
    ) -> anyhow::Result<Self> {
        let mut agent = Self::prepare_by(options, telemetry, clocks)?;
        agent.listen(&mut Vec::new())?;
        Ok(agent)
    }

    /// Starts the status servers, on sockets of `inherited` as far as they are there.
    pub(crate) fn listen(&mut self, inherited: &mut Vec<Handed>) -> anyhow::Result<()> {
        for server in std::mem::take(&mut self.waiting) {
            self.servers.start(server, inherited)?;
        }
        if let Some(workload_api) = self.workload_api.take() {
            workload_api.start(&mut self.tasks);
        }
        Ok(())
    }

    /// Starts everything but the status servers, whose ports another process of this Pod may still have.
    pub(crate) fn prepare(options: Arc<ProxyOptions>, telemetry: Arc<Registry>) -> anyhow::Result<Self> {
        Self::prepare_by(options, telemetry, Arc::new(SystemClocks))
    }

    fn prepare_by(
        options: Arc<ProxyOptions>,
        telemetry: Arc<Registry>,
        clocks: Arc<dyn Clocks>,
    ) -> anyhow::Result<Self> {
        let admin = options.listen.admin;
        anyhow::ensure!(admin.ip().is_loopback(), "the admin address {admin} is not a loopback address");
        let store = match StateStore::open(&options.state_dir) {
            Ok(store) => Some(Arc::new(store)),
            Err(error) => {
                warn!(%error, "nothing is kept for a restart");
                None
            }
        };
        let client_options = ClientOptions::new(options.uid());
        let (client, driver) = Client::new(&client_options);
        let readiness = Arc::new(Readiness::default());
        let upkeep = Upkeep::new(Servers::System);
        let (wait, gives_addresses) = (options.resolve_timeout, options.dns.is_some());
        let destinations = Arc::new(Destinations::new(client.clone(), wait, gives_addresses, upkeep.clone()));
        telemetry.set_names(Arc::new(CallerNames(destinations.clone())));
        telemetry.gauges().identity(options.identity.to_string());
        let facts = Arc::new(Mutex::new(FactsInForce::new(
            options.clone(),
            telemetry.clone(),
            readiness.clone(),
            destinations.clone(),
        )));
        let news = Arc::new(News::default());
        let (shared_sender, shared) = watch::channel(None);
        let discovery = Arc::new(Discovery {
            options: options.clone(),
            telemetry: telemetry.clone(),
            facts: facts.clone(),
            destinations: destinations.clone(),
            client: client.clone(),
            shared: shared_sender,
            changed: Notify::new(),
            news: news.clone(),
        });

        let mut tasks = JoinSet::new();
        let (orders_sender, orders) = mpsc::channel(4);
        let server = |role, address, pages: Arc<dyn Pages>| Server { role, address, pages };
        let life = options.life.as_ref().and_then(|life| HeaderValue::from_str(life).ok());
        let ready = Arc::new(ReadinessPages { readiness: readiness.clone(), life });
        let waiting = vec![
            server(Role::Readiness, options.listen.readiness, ready),
            server(Role::Metrics, options.listen.metrics, Arc::new(MetricsPages(telemetry.clone()))),
            server(
                Role::Status,
                options.listen.status,
                Arc::new(StatusPages {
                    options: options.clone(),
                    telemetry: telemetry.clone(),
                    readiness: readiness.clone(),
                    orders: orders_sender,
                    scrapes: AtomicU64::new(0),
                    scrape_failures: AtomicU64::new(0),
                }),
            ),
            server(
                Role::Admin,
                admin,
                Arc::new(AdminPages {
                    options: options.clone(),
                    telemetry: telemetry.clone(),
                    readiness: readiness.clone(),
                    facts: facts.clone(),
                    destinations: destinations.clone(),
                }),
            ),
        ];

        if let Some(address) = options.dns {
            let facts = shared.clone();
            let cluster_domain = move || {
                let facts = facts.borrow();
                Some(facts.as_ref()?.snapshot.load().settings.cluster_domain.clone())
            };
            let dns = Dns::bind(DnsOptions {
                address,
                resolv_conf: &options.resolv_conf,
                registry: destinations.clone(),
                cluster_domain: Box::new(cluster_domain),
                telemetry: telemetry.clone(),
            });
            let dns = dns.with_context(|| format!("cannot answer DNS on {address}"))?;
            tasks.spawn(dns.run());
        }
        discovery.start_over(store.as_deref());
        let kept = store.as_deref().and_then(|store| stored_credential(store, &options));
        if let Some(kept) = &kept {
            info!(identity = %kept.svid.identity(), serial = kept.svid.serial(), "using the certificate of the life before");
            facts.lock().set_credential(kept.clone());
            renewal::note_roots(&telemetry, kept);
            discovery.publish();
        }
        let (credential_sender, credential) = watch::channel(kept);
        let (channel_sender, channel) = watch::channel(None);
        let in_use = InUse::new(facts.clone(), news.clone(), options.root_file.clone());
        let given = Given {
            credential: credential.clone(),
            facts: facts.clone(),
            news: news.subscribe(),
            channel: channel.clone(),
        };
        let workload_api = WorkloadApi::new(&options, given);
        let renewer = Renewer {
            options,
            store: store.clone(),
            telemetry: telemetry.clone(),
            facts: facts.clone(),
            news: news.clone(),
            clocks,
            sender: credential_sender,
        };
        tasks.spawn(renewer.run());
        tasks.spawn(discovery.clone().follow_credential(credential.clone()));
        tasks.spawn(flows::run(telemetry, in_use, news, channel, client.connection()));
        tasks.spawn(discovery.clone().sweep());
        tasks.spawn(upkeep.run());
        if let Some(store) = &store {
            tasks.spawn(discovery.clone().store(store.clone()));
        }
        tasks.spawn(discovery.run(driver, client_options, credential, channel_sender));
        let servers = StatusServers::default();
        Ok(Self { shared, readiness, orders, servers, waiting, workload_api, store, facts, tasks })
    }
}

fn stored_credential(store: &StateStore, options: &ProxyOptions) -> Option<Arc<Credential>> {
    match store.load_credential(&options.identity, SystemTime::now()) {
        Ok(found) => found.map(Arc::new),
        Err(error) => {
            warn!(%error, "the stored certificate is not used");
            None
        }
    }
}
