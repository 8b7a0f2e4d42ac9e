//! Where one request goes: the connections to one endpoint, and what is noted about it.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use maille_core::PortProtocol;

use super::{OutboundHttp, Refusal};
use crate::balance::{self, Keyed, Outcome, Terms, Watched, Wish};
use crate::connect::{Security, Upstream};
use crate::pool::{Pool, SendError};
use crate::route;
use crate::snapshot::{Endpoint, EndpointPort, Service, ServicePort};

/// See the module's text.
pub(super) struct Toward {
    pub(super) pool: Rc<Pool>,
    /// Where failures count.
    watched: Option<Watched>,
    /// By what the endpoint was chosen; a repetition goes to the same one (Istio's `DefaultConsistentHashPolicy`).
    pub(super) keyed: Keyed,
}

/// What a choice is made by.
pub(super) struct Asked<'a> {
    pub(super) authority: &'a str,
    pub(super) version: Version,
    pub(super) is_upgrade: bool,
    /// The request, while it has not been sent.
    pub(super) request: Option<&'a Request<Incoming>>,
    /// What it was hashed by before.
    pub(super) hash: Option<u64>,
    /// Avoided if others are left.
    pub(super) tried: &'a [Upstream],
}

impl Toward {
    pub(super) fn new(pool: Rc<Pool>) -> Self {
        Self { pool, watched: None, keyed: Keyed::default() }
    }

    /// Takes note of how it went.
    pub(super) fn note<B>(&self, outcome: Result<&Response<B>, &SendError>) {
        let Some(watched) = &self.watched else { return };
        match outcome {
            Ok(response) => {
                let grpc = grpc_status(response.headers());
                watched.note(Outcome::Answered(grpc.unwrap_or(response.status().as_u16())));
            }
            // Nobody was asked.
            Err(SendError::Overflow(_)) => {}
            Err(
                SendError::Connect(_)
                | SendError::Reset(_)
                | SendError::StreamReset(_)
                | SendError::Protocol(_),
            ) => {
                watched.note(Outcome::Lost);
            }
        }
    }

    /// Has the caller keep the cookie that chose the endpoint, if it had none.
    pub(super) fn set_cookie<B>(&mut self, response: &mut Response<B>) {
        if let Some(cookie) = self.keyed.cookie.take() {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
}

impl OutboundHttp {
    /// The less busy of two endpoints drawn at random, or as a rule says.
    pub(super) fn to_service(
        &self,
        service: &Service,
        port: &ServicePort,
        host: &str,
        asked: &Asked<'_>,
    ) -> Result<Toward, Refusal> {
        let terms = port.balance.as_ref().and_then(|balance| balance.terms());
        let version = spoken(port.protocol, asked, terms.map(|terms| &**terms));
        let pools = &self.worker.pools;
        if route::is_dialled(service, port) {
            let Some(address) = self.dialled.address else { return Err(self.unknown()) };
            let upstream = route::to_dialled(service, port, address, Some(host));
            let address = upstream.address;
            let called = || Some(route::called_service(service, address));
            return Ok(Toward::new(pools.pool(upstream, version, called)));
        }
        let pool_of = |endpoint: &Endpoint, at: &EndpointPort| {
            let upstream = route::to_endpoint(service, port, endpoint, at, Some(host));
            let address = upstream.address;
            let called = || Some(route::called_endpoint(service, endpoint, address));
            // A proxy that takes many HTTP/1.1 requests over one connection anyway hands them to its application as they
            // are, which may not speak anything else.
            let is_upgrade_needless = port.protocol != PortProtocol::Http2
                && matches!(upstream.security, Security::Mutual { multiplexes: true, .. });
            let version = if is_upgrade_needless { asked.version } else { version };
            pools.pool(upstream, version, called)
        };
        let is_tried = |pool: &Rc<Pool>| asked.tried.contains(&pool.upstream);
        let Some(balance) = &port.balance else {
            let active = |pool: &Rc<Pool>| pool.active();
            let found = route::less_busy(&self.worker, service, port.number, pool_of, active, is_tried);
            return found.map(Toward::new).ok_or_else(|| self.no_endpoint(service, port));
        };
        let keyed = match (balance.key(), asked.request) {
            (Some(key), Some(request)) => {
                balance::of_request(key, request, self.dialled.from(), || self.fresh())
            }
            (Some(_), None) => Keyed { hash: asked.hash, cookie: None },
            (None, _) => Keyed::default(),
        };
        let reached = |index: usize| balance.at(service, index).map(|(endpoint, at)| pool_of(endpoint, at));
        let avoid = |index: usize| reached(index).is_none_or(|pool| is_tried(&pool));
        let index = balance.pick(&Wish {
            random: &|bound| self.worker.random_below(bound),
            hash: keyed.hash,
            avoid: (!asked.tried.is_empty()).then_some(&avoid),
            active: &|index| reached(index).map_or(0, |pool| pool.active()),
        });
        let found = index.and_then(|index| Some((index, reached(index)?)));
        let (index, pool) = found.ok_or_else(|| self.no_endpoint(service, port))?;
        Ok(Toward { pool, watched: balance.watched(index), keyed })
    }
}

/// The version for an upstream: HTTP/2 where the port is declared so or a rule upgrades to it, else as the application
/// speaks (WR-3), which a rule may keep in any case.
pub(super) fn spoken(protocol: PortProtocol, asked: &Asked<'_>, terms: Option<&Terms>) -> Version {
    let pool = terms.map(|terms| &terms.pool);
    if pool.is_some_and(|pool| pool.keeps_version) {
        return asked.version;
    }
    // Few servers take an upgrade over HTTP/2 (RFC 8441), and nobody declared that this one does.
    let is_upgraded = pool.is_some_and(|pool| pool.upgrades_to_http2) && !asked.is_upgrade;
    if protocol == PortProtocol::Http2 || is_upgraded { Version::HTTP_2 } else { asked.version }
}

/// The status of an answer without body, as HTTP has it (Envoy's `grpcToHttpStatus`).
fn grpc_status(headers: &HeaderMap<HeaderValue>) -> Option<u16> {
    let status: u16 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    })
}
