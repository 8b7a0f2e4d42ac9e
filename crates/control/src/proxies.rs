//! Who is connected, and how far each has acknowledged: what `GET /proxies` of the monitoring port shows.
//!
//! The answer is `{"version": "<of this control plane>", "meshConfigProblem": null, "proxies": [PROXY, …]}`, where the
//! problem is a text while the stored mesh configuration is not in force, or not in full. The proxies come in the order of
//! their connecting, each
//!
//! ```json
//! {
//!   "uid": "production/cart-5f6d-x2x9z", "namespace": "production", "pod": "cart-5f6d-x2x9z", "workload": "cart",
//!   "node": "production/cart-5f6d-x2x9z", "version": "0.1.0",
//!   "identity": "cluster.local/ns/production/sa/cart", "address": "10.244.0.7", "connectedSinceMs": 1700000000000,
//!   "types": {
//!     "Authorization": {
//!       "wildcard": true, "names": 0, "resources": 3, "settled": true, "sentNonce": "4", "ackedNonce": "4",
//!       "sentMs": 1700000001000, "ackedMs": 1700000001002, "rejected": "why", "rejectedMs": 1700000000500
//!     },
//!     "Destination": {…}, "Inbound": {…}, "MeshSettings": {…}, "TrustBundle": {…}
//!   },
//!   "svid": {
//!     "serial": "5f…", "signer": "9c…", "notBeforeMs": 1700000000000, "notAfterMs": 1700086400000, "roots": ["9c…"],
//!     "controlRoots": ["9c…"], "revocations": "", "renewalError": "", "clockAheadMs": 3, "reportedMs": 1700000002000
//!   }
//! }
//! ```
//!
//! A type is there once the proxy asked for it. `sentNonce` and `sentMs` are absent and 0 before the first response;
//! what was sent and neither accepted nor rejected has `sentNonce` ≠ `ackedNonce` and `settled` false. `rejected`
//! stays until a later response is accepted. `node` and `version` are what the proxy says of itself (empty before its
//! first request); all else is attested.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::Clock;
use maille_proto::flows::ProxyState;
use maille_xds::{Request, ServerState};
use parking_lot::Mutex;
use serde::Serialize;

use crate::attest::Peer;
use crate::authority::{Holders, LiveProxy, Seen, Sheet};
use crate::world::World;

/// Streams one pod may have at a time: those of sidecars that were replaced one after the other and still drain, and the one
/// of a proxy that died, which lingers until its pings fail.
const MAX_STREAMS_PER_POD: usize = 8;

/// Roots of which a proxy may say that it uses them: a few times what a rotation distributes at most.
const MAX_ROOTS: usize = 128;
/// Longest text that a proxy may say of itself.
const MAX_TEXT: usize = 512;

/// The proxies connected now, and what each last said that it uses.
#[derive(Debug, Default)]
pub struct Proxies(Mutex<Connected>);

#[derive(Debug, Default)]
struct Connected {
    last_id: u64,
    streams: BTreeMap<u64, ProxyStatus>,
    /// By uid of the Pod. Stays when the proxy is not connected, until the Pod is gone.
    svids: BTreeMap<String, SvidStatus>,
    /// What proxies have told other control planes of the mesh, by uid of the Pod.
    elsewhere: BTreeMap<String, Seen>,
    /// Until when they count.
    holders: Holders,
}

/// What a proxy says that it uses of its identity and the mesh's trust.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SvidStatus {
    /// Serial number of its certificate, lower-case hexadecimal.
    pub serial: String,
    /// Fingerprint of the certificate that signed it.
    pub signer: String,
    /// Start of its validity, Unix milliseconds.
    pub not_before_ms: u64,
    /// End of its validity, Unix milliseconds; 0: it has none.
    pub not_after_ms: u64,
    /// Fingerprints of the roots of its trust domain that it verifies peers by.
    pub roots: BTreeSet<String>,
    /// Fingerprints of the roots that it verifies the control plane by.
    pub control_roots: BTreeSet<String>,
    /// Version of the revocations in force; empty: none.
    pub revocations: String,
    /// Why its last renewal failed; empty after one that did not.
    pub renewal_error: String,
    /// Its clock less the control plane's when this arrived, milliseconds.
    pub clock_ahead_ms: i64,
    /// When it said so, Unix milliseconds.
    pub reported_ms: u64,
}

/// One connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// `<namespace>/<pod>`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its Pod.
    pub pod: String,
    /// The owner people know it by.
    pub workload: String,
    /// Its name for itself.
    pub node: String,
    /// Its version, as it says.
    pub version: String,
    /// The identity proved.
    pub identity: String,
    /// Where it calls from.
    pub address: String,
    /// Unix milliseconds.
    pub connected_since_ms: u64,
    /// By type name (`Inbound`, …).
    pub types: BTreeMap<String, TypeSummary>,
    /// What it says that it uses; absent before it has said anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub svid: Option<SvidStatus>,
    /// Uid of its Pod.
    #[serde(skip)]
    pod_uid: String,
}

/// What a proxy has of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeSummary {
    /// Subscribed to all there is for it.
    pub wildcard: bool,
    /// Names subscribed to one by one.
    pub names: usize,
    /// Resources sent.
    pub resources: usize,
    /// All that was sent was acknowledged or rejected, and nothing more is owed.
    pub settled: bool,
    /// Nonce of the last response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_nonce: Option<String>,
    /// Nonce of the last response that was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acked_nonce: Option<String>,
    /// Unix milliseconds of the last response; 0 before the first.
    pub sent_ms: u64,
    /// Unix milliseconds of the last acknowledgement; 0 before the first.
    pub acked_ms: u64,
    /// Why a response was rejected, if none was accepted since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// Unix milliseconds of that rejection; 0 without one.
    pub rejected_ms: u64,
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
        if let Some(ends) = peer.certificate_ends() {
            connected.holders.note(&peer.pod().uid, millis(ends), millis(clock.now()));
        }
        connected.last_id += 1;
        let id = connected.last_id;
        let status = ProxyStatus {
            uid,
            namespace: peer.pod().name.namespace.clone(),
            pod: peer.pod().name.name.clone(),
            workload: peer.pod().workload_name.clone(),
            node: String::new(),
            version: String::new(),
            identity: peer.identity().to_string(),
            address: peer.address().to_string(),
            connected_since_ms: millis(clock.now()),
            types: BTreeMap::new(),
            svid: None,
            pod_uid: peer.pod().uid.clone(),
        };
        connected.streams.insert(id, status);
        drop(connected);
        Some(ProxyHandle { proxies: Arc::clone(self), clock, id })
    }

    /// All of them, in the order of their connecting.
    pub fn list(&self) -> Vec<ProxyStatus> {
        let connected = self.0.lock();
        let with_svid = |status: &ProxyStatus| {
            let svid = connected.svids.get(&status.pod_uid).cloned();
            ProxyStatus { svid, ..status.clone() }
        };
        connected.streams.values().map(with_svid).collect()
    }

    /// Notes what a proxy says that it uses. What is known of Pods that are gone goes when a new one reports.
    pub(crate) fn note(&self, peer: &Peer, state: ProxyState, now: SystemTime, world: &World) {
        let now_ms = millis(now);
        let svid = SvidStatus {
            serial: bounded(state.serial),
            signer: bounded(state.signer),
            not_before_ms: state.not_before_ms,
            not_after_ms: state.not_after_ms,
            roots: state.roots.into_iter().take(MAX_ROOTS).map(bounded).collect(),
            control_roots: state.control_roots.into_iter().take(MAX_ROOTS).map(bounded).collect(),
            revocations: bounded(state.revocations),
            renewal_error: bounded(state.renewal_error),
            clock_ahead_ms: signed(state.clock_ms).saturating_sub(signed(now_ms)),
            reported_ms: now_ms,
        };
        let mut connected = self.0.lock();
        let uid = &peer.pod().uid;
        if let Some(ends) = peer.certificate_ends() {
            connected.holders.note(uid, millis(ends), now_ms);
        }
        if !connected.svids.contains_key(uid) {
            let living: BTreeSet<&str> = world.pods().map(|pod| pod.uid.as_str()).collect();
            connected.svids.retain(|uid, _| living.contains(uid.as_str()));
        }
        connected.svids.insert(uid.clone(), svid);
    }

    /// Notes that a Pod was given a certificate.
    pub(crate) fn certified(&self, peer: &Peer, ends: SystemTime, now: SystemTime) {
        self.0.lock().holders.note(&peer.pod().uid, millis(ends), millis(now));
    }

    /// Takes over what other control planes have heard and issued, in place of what was known of that. `issued`: when the
    /// last certificate of each Pod ends; before `dark_until_ms` they may have issued what is not there.
    pub(crate) fn heard_elsewhere(
        &self,
        elsewhere: BTreeMap<String, Seen>,
        issued: BTreeMap<String, u64>,
        dark_until_ms: u64,
    ) {
        let mut connected = self.0.lock();
        connected.elsewhere = elsewhere;
        connected.holders.heard(issued, dark_until_ms);
    }

    /// What proxies have told this one, and what it has issued, for the others; what was issued before `dark_until_ms` it
    /// does not know.
    pub(crate) fn sheet(&self, dark_until_ms: u64, now_ms: u64) -> Sheet {
        let connected = self.0.lock();
        let heard = connected.svids.iter().map(|(uid, svid)| (uid.clone(), svid.seen())).collect();
        let holders = &connected.holders;
        let since_ms = holders.first_look_ms().unwrap_or(now_ms).max(dark_until_ms);
        Sheet::of(&heard, holders.known(), since_ms, now_ms)
    }

    /// All the Pods with sidecars of a complete world, by name and uid, with what their proxies last said, to whomever.
    /// No certificate lives longer than `longest`.
    pub(crate) fn live(
        &self,
        pods: impl Iterator<Item = (String, String)>,
        now: SystemTime,
        longest: Duration,
    ) -> Vec<LiveProxy> {
        let pods: Vec<_> = pods.collect();
        let uids: Vec<&str> = pods.iter().map(|(_, uid)| uid.as_str()).collect();
        let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        let mut connected = self.0.lock();
        let held = connected.holders.look(&uids, millis(now), longest_ms);
        let seen = |uid: &str| {
            let here = connected.svids.get(uid).map(SvidStatus::seen);
            let elsewhere = connected.elsewhere.get(uid).cloned();
            here.into_iter().chain(elsewhere).max_by_key(|seen| seen.at_ms)
        };
        let all = pods.into_iter().zip(held);
        all.map(|((name, uid), holds)| LiveProxy { seen: seen(&uid), name, uid, holds }).collect()
    }

    /// How many there are of each version, as they say. A proxy may say anything: only a few are told apart.
    pub(crate) fn by_version(&self) -> BTreeMap<String, u64> {
        const MAX_VERSIONS: usize = 16;
        let mut versions = BTreeMap::new();
        for status in self.0.lock().streams.values() {
            let version = match status.version.as_str() {
                "" => "unknown",
                version if versions.len() < MAX_VERSIONS || versions.contains_key(version) => version,
                _ => "other",
            };
            *versions.entry(version.to_owned()).or_default() += 1;
        }
        versions
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
        if let Some(node) = &request.node {
            status.node.clone_from(&node.id);
            status.version.clone_from(&node.version);
        }
        status.read(state);
        let Some(summary) = status.types.get_mut(short(type_url)) else { return };
        if request.acked {
            summary.acked_ms = now;
            summary.rejected = None;
            summary.rejected_ms = 0;
        }
        if let Some(reason) = &request.nacked {
            summary.rejected = Some(reason.clone());
            summary.rejected_ms = now;
        }
    }

    /// Notes that a response of this type goes out, and the state of the stream after it.
    pub fn sending(&self, type_url: &str, state: &ServerState) {
        let now = millis(self.clock.now());
        let mut connected = self.proxies.0.lock();
        let Some(status) = connected.streams.get_mut(&self.id) else { return };
        status.read(state);
        if let Some(summary) = status.types.get_mut(short(type_url)) {
            summary.sent_ms = now;
        }
    }
}

impl SvidStatus {
    fn seen(&self) -> Seen {
        Seen {
            at_ms: self.reported_ms,
            signer: self.signer.clone(),
            roots: self.roots.clone(),
            control_roots: self.control_roots.clone(),
            renewal_error: self.renewal_error.clone(),
        }
    }
}

impl ProxyStatus {
    fn read(&mut self, state: &ServerState) {
        for of_type in state.types() {
            let summary = self.types.entry(short(of_type.type_url).to_owned()).or_default();
            summary.wildcard = of_type.wildcard;
            summary.names = of_type.names;
            summary.resources = of_type.resources;
            summary.settled = of_type.settled;
            summary.sent_nonce = of_type.sent_nonce.map(str::to_owned);
            summary.acked_nonce = of_type.acked_nonce.map(str::to_owned);
        }
    }
}

/// `Inbound` of `type.googleapis.com/maille.facts.v1.Inbound`.
pub(crate) fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or_default()
}

impl Drop for ProxyHandle {
    fn drop(&mut self) {
        self.proxies.0.lock().streams.remove(&self.id);
    }
}

/// No longer than anything that a proxy has to say, and nothing that moves a terminal's cursor.
fn bounded(text: String) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
