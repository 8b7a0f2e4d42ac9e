//! Streams that were requests: judged by the request that opened them, for as long as they live.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::Request;
use maille_policy::RequestAttributes;
use maille_proto::facts::ExtensionProvider;
use maille_telemetry::{Edge, Marks, RefusalKind};

use crate::authorizer::AskedFor;
use crate::http::body::Body;
use crate::http::head::Headers;
use crate::http::inbound::attributes;
use crate::http::line::Line;
use crate::http::token::Token;
use crate::open::Facts;
use crate::record::Refused;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// Whom a CUSTOM rule wanted asked, and what was known of them then.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) ask: AskedFor,
    providers: Arc<[ExtensionProvider]>,
}

impl Asked {
    pub(crate) fn now(snapshot: &Snapshot, ask: AskedFor) -> Self {
        Self { ask, providers: snapshot.settings.extension_providers.clone() }
    }
}

/// The request that turned into a stream, as it was judged.
pub(crate) struct Upgraded {
    facts: Facts,
    request: Request<Body>,
    edge: Rc<Edge>,
    token: RefCell<Token>,
    pub(super) asked: Option<Asked>,
}

impl Upgraded {
    /// `request` is the head alone.
    pub(crate) fn new(
        facts: Facts,
        request: Request<Body>,
        edge: Rc<Edge>,
        token: Token,
        asked: Option<Asked>,
    ) -> Self {
        Self { facts, request, edge, token: RefCell::new(token), asked }
    }

    pub(crate) fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// The head that an external authorizer is shown.
    pub(super) fn request(&self) -> &Request<Body> {
        &self.request
    }

    pub(super) fn with_attributes<T>(&self, look: impl FnOnce(&RequestAttributes<'_>) -> T) -> T {
        let headers = Headers(self.request.headers());
        let token = self.token.borrow();
        look(&attributes(&self.request, &headers, token.claims.as_deref()))
    }

    /// Verifies the tokens again if the rules about them have changed: keys may be gone.
    pub(super) fn review(&self, worker: &Worker, snapshot: &Snapshot) -> Option<Refused> {
        let mut token = self.token.borrow_mut();
        let standing = token.standing.as_mut()?;
        if !standing.is_of_other_rules(&snapshot.authentication) {
            return None;
        }
        match standing.review(worker, &snapshot.authentication) {
            Ok(claims) => {
                token.claims = claims;
                None
            }
            Err(refused) => Some(refused),
        }
    }

    /// Why its token does not carry it any longer, if it has expired.
    pub(super) fn expiry(&self, now: SystemTime) -> Option<Refused> {
        let token = self.token.borrow();
        token.standing.as_ref().filter(|standing| standing.has_expired(now)).map(|_| {
            let reason = "the token that the stream was opened with has expired";
            Refused::new(RefusalKind::InvalidToken, reason.to_owned())
                .with_details("jwt_authn_access_denied{Jwt_is_expired}".to_owned())
        })
    }

    /// Records that it was cut. The request itself was recorded when it became a stream.
    pub(super) fn record_cut(&self, worker: &Worker, refused: &Refused) {
        let line = Line::of(&self.request, worker.recorder.logs_everything());
        let line = line.borrow(self.facts.way(), Marks::default());
        worker.recorder.stream_cut(&self.edge, &line, &refused.refusal());
    }
}
