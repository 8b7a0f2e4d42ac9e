//! The SPIFFE Workload API and Envoy's secret discovery, on a Unix socket for the applications of the own Pod
//! (reference mtls 6.3, 6.5).
//!
//! **Who may ask.** The socket is in a volume of this Pod that only its own containers mount: that is the attestation, as
//! everywhere with this API, and so every caller is the Pod's ServiceAccount. The kernel's word on the caller is looked
//! at besides: a process that can be seen from here and lives in another network namespace is refused.
//!
//! **Which key they get.** Never the proxy's: private keys do not leave the proxy (design, rule 3). Who asks for an SVID gets
//! one of the same identity with a key made for the applications alone, by a request of its own to the authority. That
//! happens when somebody asks for the first time, and is kept current as long as somebody listens; what nobody listens to is
//! forgotten when it would be due for renewal. It is renewed whenever the proxy's own is, and so follows changes of the
//! authority and of the trust domain, and at half of its life otherwise. It is kept in memory only. Once it is revoked it is
//! given to nobody, and once the authority says that this workload may have none, all that is kept is dropped and callers are
//! told (`PERMISSION_DENIED`).
//!
//! Everything is bounded: connections, streams, what is remembered, and what a slow reader can make this process hold (one
//! message: each is the whole state, and what was overtaken is not sent).

mod authority;
mod believed;
mod file_secrets;
mod sds;
mod service;
mod socket;
mod supply;
mod tokens;
mod x509;

use std::path::PathBuf;
use std::sync::Arc;

use maille_proto::secret::secret_discovery_service_server::SecretDiscoveryServiceServer;
use maille_proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::service::interceptor::InterceptedService;
use tracing::{error, info};

use super::discovery::ChannelWatch;
use super::facts_in_force::FactsInForce;
use super::identity::CredentialWatch;
use super::options::ProxyOptions;
use believed::{Believed, BelievedWatch};
use sds::SecretService;
use service::WorkloadService;
use supply::{Judge, Supply};
use tokens::Tokens;

/// Streams and calls at once, of all callers.
const MAX_STREAMS: usize = 256;
/// Those of one connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 32;
/// Requests are small: audiences and names.
const MAX_REQUEST: usize = 64 << 10;

/// What the services share.
#[derive(Clone)]
pub(super) struct Sources {
    supply: Arc<Supply>,
    believed: BelievedWatch,
    tokens: Arc<Tokens>,
    places: Arc<Semaphore>,
    options: Arc<ProxyOptions>,
    /// The proxy's own.
    credential: CredentialWatch,
}

/// What the proxy has for it.
pub(crate) struct Given {
    pub(crate) credential: CredentialWatch,
    pub(crate) facts: Arc<Mutex<FactsInForce>>,
    /// Heard of when the facts have changed.
    pub(crate) news: watch::Receiver<()>,
    /// To the control plane.
    pub(crate) channel: ChannelWatch,
}

/// The Workload API before it listens.
pub(crate) struct WorkloadApi {
    socket: PathBuf,
    options: Arc<ProxyOptions>,
    given: Given,
}

impl WorkloadApi {
    /// `None` where it is switched off.
    pub(crate) fn new(options: &Arc<ProxyOptions>, given: Given) -> Option<Self> {
        Some(Self { socket: options.workload_socket.clone()?, options: Arc::clone(options), given })
    }

    /// Listens, in the place of an earlier process of this Pod if there is one. Where that is impossible the proxy goes
    /// on without: traffic does not depend on it.
    pub(crate) fn start(self, tasks: &mut JoinSet<()>) {
        let Self { socket, options, given: Given { credential, facts, news, channel } } = self;
        let listener = match socket::bind(&socket) {
            Ok(listener) => listener,
            Err(error) => {
                error!(
                    socket = %socket.display(), %error,
                    "applications get no certificates: the socket of the Workload API cannot be made; is its volume mounted?"
                );
                return;
            }
        };
        info!(socket = %socket.display(), "serving the SPIFFE Workload API");
        let (sender, believed) = watch::channel(Arc::new(Believed::default()));
        let sources = Sources {
            supply: Arc::new(Supply::new(credential.clone())),
            tokens: Arc::new(Tokens::new(credential.clone(), channel, believed.clone())),
            believed,
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
            options: Arc::clone(&options),
            credential: credential.clone(),
        };
        let judge = Judge { facts: Arc::clone(&facts), news: news.clone() };
        tasks.spawn(believed::follow(facts, news, sender));
        tasks.spawn(supply::run(Arc::clone(&sources.supply), options, credential, judge));
        tasks.spawn(async move {
            let workload = SpiffeWorkloadApiServer::new(WorkloadService(sources.clone()))
                .max_decoding_message_size(MAX_REQUEST);
            let secrets = SecretDiscoveryServiceServer::new(SecretService(sources))
                .max_decoding_message_size(MAX_REQUEST);
            let served = tonic::transport::Server::builder()
                .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
                .add_service(InterceptedService::new(workload, service::check_header))
                .add_service(secrets)
                .serve_with_incoming(socket::incoming(listener))
                .await;
            if let Err(error) = served {
                error!(%error, "the Workload API has ended");
            }
            // The proxy serves on; only a restart brings the socket back.
            std::future::pending::<()>().await;
        });
    }
}

/// Waits until the value of either changes; false when there will be no more.
async fn either_changed<A, B>(one: &mut watch::Receiver<A>, other: &mut watch::Receiver<B>) -> bool {
    tokio::select! {
        changed = one.changed() => changed.is_ok(),
        changed = other.changed() => changed.is_ok(),
    }
}
