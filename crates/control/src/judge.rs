//! Whether what a connection was opened with is still believed, and when a stream on it has to end.
//!
//! A handshake judges once, and streams last for as long as certificates do: meanwhile a root may be withdrawn, or an authority
//! may have revoked the certificate. Whoever has renewed since dials anew and loses nothing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::Clock;
use maille_tls::Refusal;
use maille_tls::control::ClientJudge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::connection::PeerCertificate;

/// How a stream begins to say that the certificate is revoked by which it was opened, and that it is believed no more for
/// another reason: the proxy then asks for another at once.
pub(crate) const REVOKED: &str = "certificate revoked";
pub(crate) const NOT_TRUSTED: &str = "certificate not trusted";

/// How long a proxy whose certificate is believed no more hears of that on its stream: it then knows that it needs another.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Judges clients as a handshake would now.
#[derive(Debug, Default)]
pub(crate) struct Judge(watch::Sender<Option<Arc<ClientJudge>>>);

impl Judge {
    /// From now on this is believed.
    pub(crate) fn set(&self, judge: ClientJudge) {
        self.0.send_replace(Some(Arc::new(judge)));
    }

    /// Why a certificate is not believed any more.
    pub(crate) fn refusal(&self, certificate: &PeerCertificate, now: SystemTime) -> Option<String> {
        refusal(self.0.borrow().as_deref()?, certificate, now)
    }
}

fn refusal(judge: &ClientJudge, certificate: &PeerCertificate, now: SystemTime) -> Option<String> {
    let Refusal { reason, .. } = judge.judge(&certificate.chain, now).err()?;
    let what = if reason.is_revocation() { REVOKED } else { NOT_TRUSTED };
    Some(format!("{what}: {reason}"))
}

/// Waits until a stream has to end whatever happens on it: its certificate ends or is believed no more, or the control
/// plane stops.
pub(crate) struct StreamEnd {
    certificate: PeerCertificate,
    expires: Instant,
    stopping: watch::Receiver<bool>,
    judge: watch::Receiver<Option<Arc<ClientJudge>>>,
    clock: Arc<dyn Clock>,
    /// Why the certificate is believed no more.
    refused: Option<String>,
}

impl fmt::Debug for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamEnd").field("refused", &self.refused).finish_non_exhaustive()
    }
}

impl StreamEnd {
    /// Of a stream that stands on this certificate, which ends at that moment.
    pub(crate) fn new(
        certificate: PeerCertificate,
        expires: Instant,
        stopping: watch::Receiver<bool>,
        judge: &Judge,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut judge = judge.0.subscribe();
        // Trust may have changed since it was judged last.
        judge.mark_changed();
        Self { certificate, expires, stopping, judge, clock, refused: None }
    }

    /// The stream has to end, since the certificate is revoked that it stands on.
    pub(crate) fn revoke(&mut self, reason: &str) {
        self.refuse(format!("{REVOKED}: {reason}"));
    }

    fn refuse(&mut self, reason: String) {
        if self.refused.is_none() {
            let (identity, serial) = (&self.certificate.identity, &self.certificate.serial);
            tracing::warn!(target: "maille::audit", %identity, serial, reason, "proxy's stream ends");
            self.expires = self.expires.min(Instant::now() + LAST_WORDS);
            self.refused = Some(reason);
        }
    }

    /// The status to end with. Cancel safe.
    pub(crate) async fn wait(&mut self) -> Status {
        loop {
            tokio::select! {
                () = sleep_until(self.expires) => return Status::unauthenticated(match &self.refused {
                    Some(reason) => reason.as_str(),
                    None => "certificate has expired; dial again with the renewed one",
                }),
                // An error is a control plane that is gone.
                _ = self.stopping.wait_for(|stop| *stop) => {
                    return Status::unavailable("the control plane is stopping");
                }
                Ok(()) = self.judge.changed() => {}
            }
            let judge = self.judge.borrow_and_update().clone();
            let refused = judge.and_then(|judge| refusal(&judge, &self.certificate, self.clock.now()));
            if let Some(reason) = refused {
                self.refuse(reason);
            }
        }
    }
}
