//! External authorization: CUSTOM rules say when somebody else is asked, and here they are (reference authorization 15).
//!
//! What is asked and what becomes of the answer is what Envoy 1.40's `ext_authz` filters do as Istio configures them.
//! Nothing of it costs a workload anything that has no CUSTOM rule. Whom to ask comes with the mesh's settings
//! (`provider`); the check is made of the request (`attributes`, its body read `ahead`), put in gRPC (`grpc`) or sent as
//! a request of its own (`plain`), over connections that the registry chooses (`reach`). The `verdict` then changes the
//! request (`changes`), or stands in for its answer.

mod ahead;
mod attributes;
mod changes;
mod grpc;
mod plain;
mod provider;
mod reach;
mod verdict;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use maille_policy::{Ask, RuleId};
use maille_proto::facts::ExtensionProvider;
use maille_telemetry::{RefusalKind, ResponseFlags};

pub(crate) use ahead::Reserve;

use crate::http::body::Body;
use crate::http::{head, reply};
use crate::open::Facts;
use crate::record::Refused;
use crate::worker::Worker;
use ahead::{Budget, NotRead, Seen};
use provider::{Kind, Provider, Providers};
use reach::Addresses;
use verdict::Verdict;

/// A CUSTOM rule that matched, and whom it wants asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AskedFor {
    provider: Box<str>,
    rule: RuleId,
    problem: Option<Box<str>>,
}

impl From<Ask<'_>> for AskedFor {
    fn from(ask: Ask<'_>) -> Self {
        Self { provider: ask.provider.into(), rule: ask.rule.clone(), problem: ask.problem.map(Into::into) }
    }
}

/// What the provider wants the caller to be told with the answer, whoever answers.
#[derive(Debug, Default)]
pub(crate) struct ForCaller(changes::Changes);

impl ForCaller {
    /// Changes the headers of the answer.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        self.0.apply(headers);
    }
}

/// What became of a request that had to be asked about.
pub(crate) enum Answer<B> {
    /// It may go on as it is now: checked again as any head is, but to be judged by what comes after CUSTOM.
    Allowed(Request<B>, ForCaller),
    /// Somebody said no, or could not be asked. The response is what the caller gets.
    Denied {
        /// Local, with the provider's headers and body.
        response: Response<Body>,
        /// What is recorded.
        refused: Refused,
    },
}

/// The providers as the settings have them, and what was made of it.
struct Compiled {
    of: Arc<[ExtensionProvider]>,
    providers: Rc<Providers>,
}

/// What a worker keeps for asking.
#[derive(Default)]
pub(crate) struct Authorizers {
    providers: RefCell<Option<Compiled>>,
    addresses: Addresses,
    budget: Budget,
}

impl Authorizers {
    fn providers(&self, settings: &Arc<[ExtensionProvider]>) -> Rc<Providers> {
        let mut held = self.providers.borrow_mut();
        match &*held {
            Some(Compiled { of, providers }) if Arc::ptr_eq(of, settings) => providers.clone(),
            _ => {
                let known = held.as_ref().map(|compiled| &*compiled.providers);
                let providers = Rc::new(Providers::compile(settings, known));
                *held = Some(Compiled { of: settings.clone(), providers: providers.clone() });
                providers
            }
        }
    }

    /// The provider that is asked, or why nobody can be.
    fn provider(&self, worker: &Worker, ask: &AskedFor) -> Result<Rc<Provider>, String> {
        if let Some(problem) = &ask.problem {
            return Err(problem.to_string());
        }
        let settings = worker.snapshot().settings.extension_providers.clone();
        self.providers(&settings).find(&ask.provider)
    }
}

/// Asks about a request whose head has been checked. Dropping the future ends the check.
pub(crate) async fn ask_http(
    worker: &Rc<Worker>,
    ask: AskedFor,
    facts: &Facts,
    request: Request<Incoming>,
) -> Answer<Body> {
    // Boxed, since it is rare and large: every request's future would carry it.
    Box::pin(ask_about_request(worker, ask, facts, request)).await
}

async fn ask_about_request(
    worker: &Rc<Worker>,
    ask: AskedFor,
    facts: &Facts,
    request: Request<Incoming>,
) -> Answer<Body> {
    let is_grpc = head::is_grpc(request.headers());
    let denied = |status: StatusCode, text: &str, refused: Refused| Answer::Denied {
        response: reply::local(is_grpc, status, text),
        refused: refused.with_rule(&ask.rule),
    };
    let provider = match worker.authorizers.provider(worker, &ask) {
        Ok(provider) => provider,
        Err(problem) => return denied(StatusCode::FORBIDDEN, reply::DENIED, unusable(&ask, &problem)),
    };
    let arrived = SystemTime::now();
    let read = ahead::read(&worker.authorizers.budget, provider.body.as_ref(), request).await;
    let (request, body) = match read {
        Ok(read) => read,
        Err(why) => {
            let (status, text, refused) = not_read(&ask, why);
            let mut answer = denied(status, text, refused);
            if let Answer::Denied { response, .. } = &mut answer {
                // The rest of the body is still to come. hyper leaves the field out of HTTP/2.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return answer;
        }
    };
    let verdict = check(worker, &provider, facts, &request, arrived, body).await;
    settle(worker, &ask, &provider, is_grpc, verdict, request)
}

async fn check(
    worker: &Rc<Worker>,
    provider: &Rc<Provider>,
    facts: &Facts,
    request: &Request<Body>,
    arrived: SystemTime,
    body: Option<Seen>,
) -> Verdict {
    match &provider.kind {
        Kind::Grpc => {
            let as_bytes = provider.body.as_ref().is_some_and(|body| body.pack_as_bytes);
            let check = attributes::of_request(worker, facts, request, arrived, body.as_ref(), as_bytes);
            grpc::check(worker, provider, check).await
        }
        Kind::Http(settings) => plain::check(worker, provider, settings, request, body).await,
    }
}

/// What a caller is told whose body could not be shown to the provider. None of this is open to `failOpen`.
fn not_read(ask: &AskedFor, why: NotRead) -> (StatusCode, &'static str, Refused) {
    let provider = &ask.provider;
    match why {
        NotRead::TooLong(limit) => {
            let reason =
                format!("the body is longer than the {limit} bytes that provider '{provider}' is shown");
            let refused = Refused::new(RefusalKind::AuthorizerFailed, reason)
                .with_flags(ResponseFlags::None)
                .with_details("request_payload_too_large".to_owned());
            (StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", refused)
        }
        NotRead::Overload => {
            let reason = "too many bytes of bodies wait for external authorizers; this one was too much";
            let refused = Refused::new(RefusalKind::Overload, reason.to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, "overloaded", refused)
        }
        NotRead::Stalled => {
            let reason = format!("the body that provider '{provider}' is to be shown did not come");
            let refused = Refused::new(RefusalKind::BadRequest, reason);
            (StatusCode::REQUEST_TIMEOUT, "stream timeout", refused)
        }
        NotRead::Broken(why) => {
            let reason = format!("the body broke off before provider '{provider}' could be shown it: {why}");
            (StatusCode::BAD_REQUEST, "", Refused::new(RefusalKind::BadRequest, reason))
        }
    }
}

/// Carries a verdict out.
fn settle(
    worker: &Worker,
    ask: &AskedFor,
    provider: &Provider,
    is_grpc: bool,
    verdict: Verdict,
    mut request: Request<Body>,
) -> Answer<Body> {
    let refused = |kind, reason: String| Refused::new(kind, reason).with_rule(&ask.rule);
    let invalid = |what: String| {
        let reason = format!("provider '{}' orders what cannot be done: {what}", ask.provider);
        let refused =
            refused(RefusalKind::AuthorizerFailed, reason).with_details("ext_authz_invalid".to_owned());
        Answer::Denied { response: reply::local(is_grpc, StatusCode::INTERNAL_SERVER_ERROR, ""), refused }
    };
    match verdict {
        Verdict::Allowed(allowed) => {
            match allowed.change(&mut request, worker.path_normalization(), worker.config.limits.head_bytes) {
                Ok(for_caller) => Answer::Allowed(request, ForCaller(for_caller)),
                Err(what) => invalid(what),
            }
        }
        Verdict::Denied(denial) => match denial.response(is_grpc) {
            Ok(response) => {
                let reason = format!("provider '{}' said no", ask.provider);
                Answer::Denied { response, refused: refused(RefusalKind::AuthorizerDenied, reason) }
            }
            Err(what) => invalid(what),
        },
        Verdict::Failed { why, .. } if provider.fail_open => {
            tracing::debug!(provider = &*ask.provider, why, "asked in vain, and failOpen lets it pass");
            Answer::Allowed(request, ForCaller::default())
        }
        Verdict::Failed { why, answer } => {
            let mut answer = answer.unwrap_or_default();
            if answer.status == 0 {
                answer.status = provider.status_on_error.as_u16();
            }
            let response = match answer.response(is_grpc) {
                Ok(response) => response,
                Err(what) => return invalid(what),
            };
            let reason = format!("provider '{}' could not be asked: {why}", ask.provider);
            Answer::Denied { response, refused: refused(RefusalKind::AuthorizerFailed, reason) }
        }
    }
}

/// Asks about a connection that carries opaque bytes. Providers of the HTTP form have nothing to say to those: Istio
/// leaves them out (reference authorization 15).
pub(crate) async fn ask_tcp(worker: &Rc<Worker>, ask: AskedFor, facts: &Facts) -> Result<(), Refused> {
    let provider = match worker.authorizers.provider(worker, &ask) {
        Ok(provider) => provider,
        Err(problem) => return Err(unusable(&ask, &problem).with_rule(&ask.rule)),
    };
    if !matches!(provider.kind, Kind::Grpc) {
        return Ok(());
    }
    let check = attributes::of_connection(worker, facts);
    let verdict = Box::pin(grpc::check(worker, &provider, check)).await;
    yes_or_no(&ask, &provider, verdict)
}

/// Asks about a stream that is open already, by the request that opened it: whom to ask, or what they say, has changed.
/// What an answer changes comes too late.
pub(crate) async fn ask_about_stream(
    worker: &Rc<Worker>,
    ask: AskedFor,
    facts: &Facts,
    request: &Request<Body>,
) -> Result<(), Refused> {
    let provider = match worker.authorizers.provider(worker, &ask) {
        Ok(provider) => provider,
        Err(problem) => return Err(unusable(&ask, &problem).with_rule(&ask.rule)),
    };
    let verdict = Box::pin(check(worker, &provider, facts, request, SystemTime::now(), None)).await;
    yes_or_no(&ask, &provider, verdict)
}

/// A verdict on what cannot be changed or answered any more.
fn yes_or_no(ask: &AskedFor, provider: &Provider, verdict: Verdict) -> Result<(), Refused> {
    let (kind, reason) = match verdict {
        Verdict::Allowed(_) => return Ok(()),
        Verdict::Failed { .. } if provider.fail_open => return Ok(()),
        Verdict::Denied(_) => (RefusalKind::AuthorizerDenied, format!("provider '{}' said no", ask.provider)),
        Verdict::Failed { why, .. } => {
            let reason = format!("provider '{}' could not be asked: {why}", ask.provider);
            (RefusalKind::AuthorizerFailed, reason)
        }
    };
    Err(Refused::new(kind, reason).with_rule(&ask.rule))
}

/// A rule that matched and whose provider cannot be used is a DENY rule (Istio `extauthz.go`, `badCustomActionSuffix`).
fn unusable(ask: &AskedFor, problem: &str) -> Refused {
    let AskedFor { provider, rule, .. } = ask;
    let details = format!(
        "rbac_access_denied_matched_policy[istio-ext-authz-{provider}-{rule}-deny-due-to-bad-CUSTOM-action]"
    );
    let reason = format!("{rule} asks provider '{provider}', which cannot be used: {problem}");
    Refused::new(RefusalKind::AuthorizerUnusable, reason).with_details(details)
}
