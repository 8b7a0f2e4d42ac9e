//! The own certificate, asked for.
//!
//! A new key for every certificate; it is made here and never leaves the process but to the Pod's own tmpfs. When to ask is
//! decided elsewhere ([`super::renewal`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::Identity;
use maille_pki::{BACKDATE, Svid, create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_tls::Skew;
use maille_xds::BoxError;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use super::channel::{connect, read_bounded};
use super::clock::{Clocks, SystemClocks};
use super::options::ProxyOptions;
use super::state::Credential;

/// Calls per attempt, and the first wait between them (reference mtls 5.2).
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// One call, connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A ServiceAccount token has about a kilobyte.
const MAX_TOKEN: u64 = 64 << 10;
/// How wrong a time of the authority may be that its answer's `date` says: it has whole seconds, and is not written anew
/// for each answer. Without one, the start of a fresh certificate says it, which authorities date back by their own choice.
const DATE_ERROR: Duration = Duration::from_secs(1);
const BACKDATE_ERROR: Duration = BACKDATE;

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
    /// What people can do about it.
    pub(crate) fn advice(&self, options: &ProxyOptions) -> String {
        let token = options.token_file.display();
        match self {
            Self::Connect(_) | Self::TimedOut => format!(
                "see that the control plane runs and that this Pod may reach it at {}, and that {} holds its root",
                options.ca_address,
                options.root_file.display()
            ),
            Self::Refused(status) if status.code() == Code::Unauthenticated => format!(
                "the token {token} must be of a Pod that lives, not expired, and for the audience istio-ca; the control \
                 plane's log says what it did not like, and a fresh token is tried at once"
            ),
            Self::Refused(status) if status.code() == Code::ResourceExhausted => {
                "the authority limits how often it is asked; it is asked again".to_owned()
            }
            Self::Refused(_) => "the control plane's log says why".to_owned(),
            Self::Token { .. } => {
                format!(
                    "mount a ServiceAccount token for the audience istio-ca at {token}; it is used at once"
                )
            }
            Self::Answer(_) | Self::Key(_) => format!("see what answers at {}", options.ca_address),
        }
    }

    /// Whether the authority has said that this workload may have none.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::PermissionDenied)
    }

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

/// Whether two identities are of one account. Its trust domain is the authority's to say, and may change while a
/// workload runs (SN-12).
pub(crate) fn is_same_account(one: &Identity, other: &Identity) -> bool {
    one.namespace() == other.namespace() && one.service_account() == other.service_account()
}

/// What came of asking.
pub(crate) struct Outcome {
    pub(crate) credential: Result<Credential, IssueError>,
    /// How far the own clock is from the authority's, if it answered; a refusal says it as well.
    pub(crate) skew: Option<Skew>,
}

/// A certificate besides the one that the data path uses.
pub(crate) async fn obtain(options: &ProxyOptions, held: Option<&Svid>) -> Result<Credential, IssueError> {
    ask(options, held, &SystemClocks).await.credential
}

/// One attempt with its retries. Each builds its connection anew, so that a changed root file is seen.
pub(crate) async fn ask(options: &ProxyOptions, held: Option<&Svid>, clocks: &dyn Clocks) -> Outcome {
    let mut wait = FIRST_WAIT;
    let mut tried = 1;
    let mut skew = None;
    loop {
        let outcome = timeout(CALL_TIMEOUT, call(options, held, clocks, &mut skew)).await;
        match outcome.unwrap_or(Err(IssueError::TimedOut)) {
            Err(error) if error.is_transient() && tried < TRIES => {
                tokio::time::sleep(wait.mul_f64(rand::random_range(0.9..=1.1))).await;
                wait *= 2;
                tried += 1;
            }
            credential => return Outcome { credential, skew },
        }
    }
}

async fn call(
    options: &ProxyOptions,
    held: Option<&Svid>,
    clocks: &dyn Clocks,
    skew: &mut Option<Skew>,
) -> Result<Credential, IssueError> {
    let token = read_token(options).await?;
    // Without a token the certificate in use is the proof, while it holds (reference mtls 5.2, 5.3).
    let shown = held.filter(|svid| token.is_none() && !svid.is_expired(clocks.read().wall));
    if token.is_none() && shown.is_none() {
        return Err(token_error(
            options,
            "there is no such file, and no certificate to prove the identity by",
        ));
    }
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
    let asked = clocks.read().wall;
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    let answered = clocks.read().wall;
    // Its clock was read somewhere in between.
    let own = asked + answered.duration_since(asked).unwrap_or_default() / 2;
    let headers = match &answer {
        Ok(answer) => answer.metadata(),
        Err(status) => status.metadata(),
    };
    let date = date_of(headers);
    if let Some(date) = date {
        *skew = Some(Skew::measured(own, date, DATE_ERROR));
    }
    let answer = answer.map_err(|status| IssueError::Refused(Box::new(status)))?.into_inner();

    let (svid, roots) =
        Svid::from_ca_response(&answer.cert_chain, key).map_err(|e| IssueError::Answer(e.to_string()))?;
    if !is_same_account(svid.identity(), &options.identity) {
        let text = format!("it certifies {}, but this workload is {}", svid.identity(), options.identity);
        return Err(IssueError::Answer(text));
    }
    if date.is_none() {
        *skew = Some(Skew::measured(own, svid.not_before() + BACKDATE, BACKDATE_ERROR));
    }
    // By the own clock it may be over already, or not have begun. Peers judge by theirs: it is of use to them, and the own
    // clock is what is wrong then, which is said.
    Ok(Credential { svid, obtained: answered, roots })
}

/// When the authority answered, by its own clock (RFC 9110 section 6.6.1); gRPC servers over HTTP libraries say it.
fn date_of(headers: &MetadataMap) -> Option<SystemTime> {
    let date = headers.get("date")?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    // On average half of the second has passed.
    Some(SystemTime::from(date) + Duration::from_millis(500))
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
