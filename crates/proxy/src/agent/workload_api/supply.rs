//! The applications' SVID: asked for when somebody wants it, kept current while somebody does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_pki::renew_at;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::agent::identity::{self, CredentialWatch, IssueError};
use crate::agent::options::ProxyOptions;
use crate::agent::state::Credential;

/// How long a first caller waits for the authority.
const PATIENCE: Duration = Duration::from_secs(10);
/// Waits between attempts that failed: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Longest sleep in one piece, for machines that are suspended and clocks that are set.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The SVID for applications.
pub(super) struct Supply {
    held: watch::Sender<Held>,
    /// How many want it.
    wanted: watch::Sender<usize>,
    proxys: CredentialWatch,
}

/// What there is.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub(super) credential: Option<Arc<Credential>>,
    /// Why there is none, or why it was not renewed.
    problem: Option<Problem>,
}

#[derive(Debug, Clone)]
struct Problem {
    code: Code,
    text: Arc<str>,
}

/// Keeps the SVID current while it exists.
pub(super) struct Want(Arc<Supply>);

impl Drop for Want {
    fn drop(&mut self) {
        self.0.wanted.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Supply {
    pub(super) fn new(proxys: CredentialWatch) -> Self {
        Self { held: watch::Sender::default(), wanted: watch::Sender::new(0), proxys }
    }

    /// Wants the SVID from now on.
    pub(super) fn want(self: &Arc<Self>) -> Want {
        self.wanted.send_modify(|count| *count += 1);
        Want(Arc::clone(self))
    }

    /// What is held, and changes of it.
    pub(super) fn watch(&self) -> watch::Receiver<Held> {
        self.held.subscribe()
    }

    /// Waits for an SVID that is valid, as long as a caller may wait (reference mtls 6.3: else Unavailable). Somebody must
    /// want it meanwhile.
    pub(super) async fn first(&self) -> Result<Arc<Credential>, Status> {
        if self.proxys.borrow().is_none() {
            return Err(Status::unavailable("the proxy has no certificate yet"));
        }
        let mut held = self.watch();
        let usable = |held: &Held| held.credential.clone().filter(|c| !c.svid.is_expired(SystemTime::now()));
        let refused = |held: &Held| held.problem.as_ref().is_some_and(|p| p.code == Code::PermissionDenied);
        let found = timeout(PATIENCE, held.wait_for(|held| usable(held).is_some() || refused(held))).await;
        if let Ok(Ok(found)) = found
            && let Some(credential) = usable(&found)
        {
            return Ok(credential);
        }
        let problem = self.held.borrow().problem.clone();
        Err(match problem {
            Some(Problem { code, text }) => {
                Status::new(code, format!("no certificate for applications: {text}"))
            }
            None => Status::unavailable("the certificate authority has not answered yet"),
        })
    }
}

/// Keeps the supply for ever.
pub(super) async fn run(supply: Arc<Supply>, options: Arc<ProxyOptions>, mut proxys: CredentialWatch) {
    let mut wanted = supply.wanted.subscribe();
    let mut wait = FIRST_WAIT;
    loop {
        if wanted.wait_for(|count| *count > 0).await.is_err()
            || proxys.wait_for(Option::is_some).await.is_err()
        {
            return;
        }
        let proxys_own = proxys.borrow_and_update().clone();
        // Without a token the proxy's certificate is the proof (reference mtls 5.2).
        match identity::obtain(&options, proxys_own.as_ref().map(|c| &c.svid)).await {
            Ok(credential) => {
                wait = FIRST_WAIT;
                let svid = &credential.svid;
                info!(identity = %svid.identity(), serial = svid.serial(), "certificate for applications obtained");
                let due = renew_at(credential.obtained, svid.not_after(), rand::random_range(-1.0..=1.0));
                let due = due.max(credential.obtained + FIRST_WAIT);
                supply.held.send_replace(Held { credential: Some(Arc::new(credential)), problem: None });
                tokio::select! {
                    () = sleep_until(due) => {}
                    // The proxy renews for good reasons: half of a life, another authority, another trust domain.
                    changed = proxys.changed() => if changed.is_err() { return },
                }
                if *wanted.borrow() == 0 {
                    debug!("nobody wants the certificate for applications any more");
                    supply.held.send_replace(Held::default());
                }
            }
            Err(error) => {
                warn!(%error, "no new certificate for applications");
                let problem = Problem { code: code_of(&error), text: error.to_string().into() };
                supply.held.send_modify(|held| held.problem = Some(problem));
                tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
                wait = (wait * 2).min(MAX_WAIT);
            }
        }
    }
}

/// Who has no right to an identity is told so; all else may pass (reference mtls 6.3).
fn code_of(error: &IssueError) -> Code {
    match error {
        IssueError::Refused(status)
            if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) =>
        {
            Code::PermissionDenied
        }
        _ => Code::Unavailable,
    }
}

async fn sleep_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}
