//! Who is connected, and how far each has acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use maille_core::Clock;
use maille_xds::{Request, ServerState};
use parking_lot::Mutex;
use serde::Serialize;

use crate::attest::Peer;

/// Streams one pod may have at a time: a restarted proxy's old stream may linger until its pings fail.
const MAX_STREAMS_PER_POD: usize = 4;

/// The proxies connected now.
#[derive(Debug, Default)]
pub struct Proxies(Mutex<Connected>);

#[derive(Debug, Default)]
struct Connected {
    last_id: u64,
    streams: BTreeMap<u64, ProxyStatus>,
}

/// One connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// `<namespace>/<pod>`.
    pub uid: String,
    /// The identity proved.
    pub identity: String,
    /// Where it calls from.
    pub address: String,
    /// Unix milliseconds.
    pub connected_since_ms: u64,
    /// By type name (`Inbound`, …).
    pub types: BTreeMap<String, TypeSummary>,
}

/// What a proxy has of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeSummary {
    /// Resources sent.
    pub resources: usize,
    /// All that was sent was acknowledged or rejected, and nothing more is owed.
    pub settled: bool,
    /// Unix milliseconds of the last acknowledgement; 0 before the first.
    pub acked_ms: u64,
    /// Why the last response was rejected, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

/// A proxy's place in the list; dropping it ends it.
pub struct ProxyHandle {
    proxies: Arc<Proxies>,
    clock: Arc<dyn Clock>,
    id: u64,
}

impl std::fmt::Debug for ProxyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ProxyHandle").field(&self.id).finish()
    }
}

impl Proxies {
    /// Enters a stream of a proxy; `None` if its pod has too many.
    pub fn enter(self: &Arc<Self>, peer: &Peer, clock: Arc<dyn Clock>) -> Option<ProxyHandle> {
        let uid = peer.pod().name.to_string();
        let mut connected = self.0.lock();
        if connected.streams.values().filter(|s| s.uid == uid).count() >= MAX_STREAMS_PER_POD {
            return None;
        }
        connected.last_id += 1;
        let id = connected.last_id;
        let status = ProxyStatus {
            uid,
            identity: peer.identity().to_string(),
            address: peer.address().to_string(),
            connected_since_ms: millis(clock.now()),
            types: BTreeMap::new(),
        };
        connected.streams.insert(id, status);
        drop(connected);
        Some(ProxyHandle { proxies: Arc::clone(self), clock, id })
    }

    /// All of them, in the order of their connecting.
    pub fn list(&self) -> Vec<ProxyStatus> {
        self.0.lock().streams.values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().streams.len()
    }
}

impl ProxyHandle {
    /// Notes a request of the proxy and the state of its stream after it.
    pub fn update(&self, type_url: &str, request: &Request, state: &ServerState) {
        let now = millis(self.clock.now());
        let mut connected = self.proxies.0.lock();
        let Some(status) = connected.streams.get_mut(&self.id) else { return };
        for of_type in state.types() {
            let name = of_type.type_url.rsplit('.').next().unwrap_or_default();
            let summary = status.types.entry(name.to_owned()).or_default();
            summary.resources = of_type.resources;
            summary.settled = of_type.settled;
            if of_type.type_url == type_url {
                if request.acked {
                    summary.acked_ms = now;
                    summary.rejected = None;
                }
                if let Some(reason) = &request.nacked {
                    summary.rejected = Some(reason.clone());
                }
            }
        }
    }
}

impl Drop for ProxyHandle {
    fn drop(&mut self) {
        self.proxies.0.lock().streams.remove(&self.id);
    }
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
