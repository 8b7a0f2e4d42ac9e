//! The applications' SVID: asked for when somebody wants it, kept current while somebody does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_pki::renew_at;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::agent::facts_in_force::FactsInForce;
use crate::agent::identity::{self, CredentialWatch, IssueError};
use crate::agent::options::ProxyOptions;
use crate::agent::state::Credential;

/// How long a first caller waits for the authority.
const PATIENCE: Duration = Duration::from_secs(10);
/// Waits between attempts that failed: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The longest for who has been told that it may have none: somebody may take that back, and hears of no other sign.
const MAX_WAIT_DENIED: Duration = Duration::from_secs(5);
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
    /// Not even what is held is the workload's any more.
    is_final: bool,
}

impl Problem {
    fn of(error: &IssueError) -> Self {
        Self { code: code_of(error), text: error.to_string().into(), is_final: error.is_denial() }
    }

    fn status(&self) -> Status {
        Status::new(self.code, format!("no certificate for applications: {}", self.text))
    }
}

impl Held {
    /// Why the workload may have none, if it may not.
    pub(super) fn denied(&self) -> Option<Status> {
        let problem = self.problem.as_ref().filter(|problem| problem.code == Code::PermissionDenied)?;
        self.credential.is_none().then(|| problem.status())
    }
}

/// By what is in force, and when that changes.
pub(super) struct Judge {
    pub(super) facts: Arc<Mutex<FactsInForce>>,
    pub(super) news: watch::Receiver<()>,
}

impl Judge {
    /// Why a certificate is revoked, if it is.
    fn revokes(&self, credential: &Credential) -> Option<String> {
        self.facts.lock().revocation_of(&credential.svid)
    }

    /// Waits until it is.
    async fn has_revoked(&mut self, credential: &Credential) -> String {
        loop {
            self.news.mark_unchanged();
            if let Some(reason) = self.revokes(credential) {
                return reason;
            }
            if self.news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
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
            Some(problem) => problem.status(),
            None => Status::unavailable("the certificate authority has not answered yet"),
        })
    }
}

/// Keeps the supply for ever.
pub(super) async fn run(
    supply: Arc<Supply>,
    options: Arc<ProxyOptions>,
    mut proxys: CredentialWatch,
    mut judge: Judge,
) {
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
        judge.news.mark_unchanged();
        let obtained = identity::obtain(&options, proxys_own.as_ref().map(|c| &c.svid)).await;
        // An authority may hear of a revocation later than others.
        let obtained = obtained.map_err(|error| Problem::of(&error)).and_then(|credential| {
            match judge.revokes(&credential) {
                None => Ok(credential),
                Some(reason) => {
                    Err(Problem { code: Code::PermissionDenied, text: reason.into(), is_final: true })
                }
            }
        });
        match obtained {
            Ok(credential) => {
                wait = FIRST_WAIT;
                let svid = &credential.svid;
                info!(identity = %svid.identity(), serial = svid.serial(), "certificate for applications obtained");
                let due = renew_at(credential.obtained, svid.not_after(), rand::random_range(-1.0..=1.0));
                let due = due.max(credential.obtained + FIRST_WAIT);
                let credential = Arc::new(credential);
                supply.held.send_replace(Held { credential: Some(Arc::clone(&credential)), problem: None });
                tokio::select! {
                    () = sleep_until(due) => {}
                    reason = judge.has_revoked(&credential) => {
                        warn!(reason, "the certificate for applications is revoked; another one is asked for");
                        supply.held.send_replace(Held::default());
                        continue;
                    }
                    // The proxy renews for good reasons: half of a life, another authority, another trust domain.
                    changed = proxys.changed() => if changed.is_err() { return },
                }
                if *wanted.borrow() == 0 {
                    debug!("nobody wants the certificate for applications any more");
                    supply.held.send_replace(Held::default());
                }
            }
            Err(problem) => {
                warn!(reason = %problem.text, "no new certificate for applications");
                let most = if problem.is_final { MAX_WAIT_DENIED } else { MAX_WAIT };
                supply.held.send_modify(|held| {
                    held.credential = held.credential.take().filter(|_| !problem.is_final);
                    held.problem = Some(problem);
                });
                wait = wait.min(most);
                tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
                wait *= 2;
                if *wanted.borrow() == 0 {
                    // Whoever asks next is not told what was true for others.
                    supply.held.send_modify(|held| held.problem = None);
                }
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
