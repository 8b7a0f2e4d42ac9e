//! The own certificate: asked for, kept current, kept across restarts.
//!
//! A new key for every certificate; it is made here and never leaves the process but to the Pod's own tmpfs.
//! Whatever goes wrong, the certificate in use stays in use (reference mtls 5.7, CA-22).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::Identity;
use maille_pki::{Svid, create_csr, generate_key, leaf_facts, renew_at};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_telemetry::Registry;
use maille_xds::BoxError;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::channel::{connect, read_bounded};
use super::facts_in_force::FactsInForce;
use super::in_use::News;
use super::options::ProxyOptions;
use super::state::{Credential, StateStore};

/// Calls per attempt, and the first wait between them (reference mtls 5.2).
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// One call, connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait between attempts without a certificate, and with one (reference mtls 5.7).
const MAX_WAIT_WITHOUT: Duration = Duration::from_secs(3);
const MAX_WAIT_WITH: Duration = Duration::from_secs(150);
/// How often a proxy that waits for its renewal looks whether there is another reason for it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A ServiceAccount token has about a kilobyte.
const MAX_TOKEN: u64 = 64 << 10;

/// The certificate in use; `None` until the first.
pub(crate) type CredentialWatch = watch::Receiver<Option<Arc<Credential>>>;

/// Why no certificate was obtained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("the certificate authority cannot be reached: {0}")]
    Connect(BoxError),
    #[error("the certificate authority refused: {} ({:?})", .0.message(), .0.code())]
    Refused(Box<Status>),
    #[error("the certificate authority did not answer within {CALL_TIMEOUT:?}")]
    TimedOut,
    #[error("the ServiceAccount token {path}: {reason}")]
    Token { path: String, reason: String },
    #[error("the certificate authority's answer: {0}")]
    Answer(String),
    #[error("{0}")]
    Key(maille_pki::Error),
}

impl IssueError {
    /// Whether the same call may succeed if it is made again at once (reference mtls 5.2).
    fn is_transient(&self) -> bool {
        match self {
            Self::Connect(_) | Self::TimedOut => true,
            Self::Refused(status) => matches!(
                status.code(),
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::Internal
                    | Code::Unavailable
            ),
            Self::Token { .. } | Self::Answer(_) | Self::Key(_) => false,
        }
    }
}

/// Keeps `sender` holding a certificate of the own identity for ever. Starts with what it holds.
pub(crate) async fn run(
    options: Arc<ProxyOptions>,
    store: Option<Arc<StateStore>>,
    telemetry: Arc<Registry>,
    facts: Arc<Mutex<FactsInForce>>,
    news: Arc<News>,
    sender: watch::Sender<Option<Arc<Credential>>>,
) {
    let mut wait = Duration::from_secs(1);
    loop {
        let held = sender.borrow().clone();
        if let Some(held) = &held {
            sleep_until(renewal_time(held), || {
                facts
                    .lock()
                    .trust_domain()
                    .is_some_and(|domain| domain != held.svid.identity().trust_domain())
            })
            .await;
        }
        match obtain(&options, held.as_ref().map(|c| &c.svid)).await {
            Ok(credential) => {
                wait = Duration::from_secs(1);
                let svid = &credential.svid;
                info!(identity = %svid.identity(), serial = svid.serial(), "workload certificate obtained");
                telemetry.gauges().identity(svid.identity().to_string());
                telemetry.gauges().certificate_renewed(svid.not_after());
                note_roots(&telemetry, &credential);
                if let Some(store) = &store
                    && let Err(error) = store.save_credential(&credential)
                {
                    warn!(%error, "the certificate is not kept for a restart");
                }
                sender.send_replace(Some(Arc::new(credential)));
                news.renewal_ended(String::new());
            }
            Err(error) => {
                telemetry.gauges().certificate_failed();
                news.renewal_ended(error.to_string());
                let left =
                    held.as_ref().and_then(|c| c.svid.not_after().duration_since(SystemTime::now()).ok());
                match left {
                    Some(left) => warn!(%error, expires_in_s = left.as_secs(), "certificate not renewed"),
                    None => warn!(%error, "no workload certificate"),
                }
                let bound = match left {
                    // Short lives must not be slept through.
                    Some(left) => (left / 8).clamp(Duration::from_millis(200), MAX_WAIT_WITH),
                    None => MAX_WAIT_WITHOUT,
                };
                tokio::time::sleep(wait.min(bound).mul_f64(rand::random_range(0.8..1.2))).await;
                wait = (wait * 2).min(MAX_WAIT_WITH);
            }
        }
    }
}

/// Tells telemetry when the first of the roots ends that came with a certificate.
pub(crate) fn note_roots(telemetry: &Registry, credential: &Credential) {
    let ends = credential.roots.iter().filter_map(|root| Some(leaf_facts(root).ok()?.not_after));
    if let Some(first) = ends.min() {
        telemetry.gauges().roots_loaded(first);
    }
}

fn renewal_time(held: &Credential) -> SystemTime {
    let due = renew_at(held.obtained, held.svid.not_after(), rand::random_range(-1.0..=1.0));
    // An authority that hands out certificates without a life is not asked without a pause.
    due.max(held.obtained + Duration::from_millis(500))
}

/// Sleeps until the time, or until the mesh has another trust domain (SN-12): each piece ends at a moment of the
/// proxy's own, so that not all proxies of a mesh ask at once. Pieces are short also because a machine that was suspended
/// or whose clock was set must notice.
async fn sleep_until(time: SystemTime, has_new_domain: impl Fn() -> bool) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
        if has_new_domain() {
            break;
        }
    }
}

/// Whether two identities are of one account. Its trust domain is the authority's to say, and may change while a
/// workload runs (SN-12).
pub(crate) fn is_same_account(one: &Identity, other: &Identity) -> bool {
    one.namespace() == other.namespace() && one.service_account() == other.service_account()
}

/// One attempt with its retries. Each builds its connection anew, so that a changed root file is seen.
pub(crate) async fn obtain(options: &ProxyOptions, held: Option<&Svid>) -> Result<Credential, IssueError> {
    let mut wait = FIRST_WAIT;
    let mut tried = 1;
    loop {
        match timeout(CALL_TIMEOUT, call(options, held)).await.unwrap_or(Err(IssueError::TimedOut)) {
            Err(error) if error.is_transient() && tried < TRIES => {
                tokio::time::sleep(wait.mul_f64(rand::random_range(0.9..=1.1))).await;
                wait *= 2;
                tried += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn call(options: &ProxyOptions, held: Option<&Svid>) -> Result<Credential, IssueError> {
    let token = read_token(options).await?;
    // Without a token the certificate in use is the proof, while it holds (reference mtls 5.2, 5.3).
    let shown = held.filter(|svid| token.is_none() && !svid.is_expired(SystemTime::now()));
    let server_name = options.server_name.as_deref();
    let channel = connect(&options.ca_address, server_name, &options.root_file, shown)
        .await
        .map_err(IssueError::Connect)?;

    let key = generate_key().map_err(IssueError::Key)?;
    let csr = create_csr(&key, &options.identity).map_err(IssueError::Key)?;
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(options.certificate_ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    let metadata = request.metadata_mut();
    if let Some(token) = token {
        let value = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut value: tonic::metadata::AsciiMetadataValue =
            value.parse().map_err(|_| token_error(options, "it holds characters that no token has"))?;
        value.set_sensitive(true);
        metadata.insert("authorization", value);
    }
    if let Ok(cluster) = options.cluster.parse() {
        metadata.insert("clusterid", cluster);
    }
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await
        .map_err(|status| IssueError::Refused(Box::new(status)))?
        .into_inner();

    let (svid, roots) =
        Svid::from_ca_response(&answer.cert_chain, key).map_err(|e| IssueError::Answer(e.to_string()))?;
    if !is_same_account(svid.identity(), &options.identity) {
        let text = format!("it certifies {}, but this workload is {}", svid.identity(), options.identity);
        return Err(IssueError::Answer(text));
    }
    let obtained = SystemTime::now();
    if svid.is_expired(obtained) {
        return Err(IssueError::Answer(
            "the certificate has expired already; is the clock right?".to_owned(),
        ));
    }
    Ok(Credential { svid, obtained, roots })
}

/// The token, read anew for each use since it is rotated in place; `None` if there is no such file.
async fn read_token(options: &ProxyOptions) -> Result<Option<Zeroizing<String>>, IssueError> {
    let bytes = match read_bounded(&options.token_file, MAX_TOKEN).await {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(token_error(options, &e.to_string())),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| token_error(options, "it is not text"))?.trim();
    if text.is_empty() {
        return Err(token_error(options, "it is empty"));
    }
    Ok(Some(Zeroizing::new(text.to_owned())))
}

fn token_error(options: &ProxyOptions, reason: &str) -> IssueError {
    IssueError::Token { path: options.token_file.display().to_string(), reason: reason.to_owned() }
}
