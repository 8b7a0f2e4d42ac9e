use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};

use crate::limits::{MAX_NAME_BYTES, MAX_SUBSCRIPTIONS, MAX_TYPES, MORE_FOLLOWS, RESPONSE_TARGET_BYTES};
use crate::resource::Resource;
use crate::server::{Dirty, View};
use crate::type_urls::WILDCARD;

/// A request no stream can go on after.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More names than one stream may have.
    #[error("more than {MAX_SUBSCRIPTIONS} names subscribed to on one stream")]
    TooManySubscriptions,
    /// More types than one stream may have.
    #[error("more than {MAX_TYPES} types on one stream")]
    TooManyTypes,
    /// A name that cannot be one.
    #[error("a resource name has 1 to {MAX_NAME_BYTES} bytes, this one has {0}")]
    Name(usize),
}

/// What a request turned out to be, for the server's records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Names newly subscribed to, without the wildcard.
    pub added: Vec<String>,
    /// Names given up.
    pub removed: Vec<String>,
    /// The response on its way was accepted.
    pub acked: bool,
    /// The response on its way was rejected, whole or in part, for this reason.
    pub nacked: Option<String>,
    /// Who the peer says it is, in the first request of a stream only.
    pub node: Option<NodeInfo>,
}

/// What a peer says of itself; shown to people, never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeInfo {
    /// Its name for itself.
    pub id: String,
    /// Its version; empty if it does not say.
    pub version: String,
}

/// The publisher's side of the delta protocol for one stream, without I/O.
///
/// It owes its peer: whatever the peer is subscribed to, may see ([`View`] decides),
/// and was not sent in its current version.
#[derive(Debug, Default)]
pub struct ServerState {
    types: BTreeMap<String, TypeState>,
    last_nonce: u64,
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the peer has, or is about to have: `None` is "told that there is none".
    sent: HashMap<String, Option<String>>,
    /// Nonce of the response neither accepted nor rejected yet.
    in_flight: Option<String>,
    /// Nonce of the last response.
    sent_nonce: Option<String>,
    /// Nonce of the last response that was accepted.
    acked_nonce: Option<String>,
    dirty: Pending,
    answered: bool,
}

#[derive(Debug, Default)]
enum Pending {
    #[default]
    Nothing,
    Names(BTreeSet<String>),
    All,
}

impl Pending {
    fn add(&mut self, name: &str) {
        match self {
            Self::Nothing => *self = Self::Names(BTreeSet::from([name.to_owned()])),
            Self::Names(names) => {
                names.insert(name.to_owned());
            }
            Self::All => {}
        }
    }
}

impl ServerState {
    /// A stream on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a request in.
    pub fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Request, ProtocolError> {
        if !self.types.contains_key(&request.type_url) && self.types.len() >= MAX_TYPES {
            return Err(ProtocolError::TooManyTypes);
        }
        let names = request.resource_names_subscribe.iter();
        let names = names.chain(&request.resource_names_unsubscribe);
        if let Some(bad) = names.chain(request.initial_resource_versions.keys()).find(|n| !is_name(n)) {
            return Err(ProtocolError::Name(bad.len()));
        }
        if request.initial_resource_versions.len() > MAX_SUBSCRIPTIONS {
            return Err(ProtocolError::TooManySubscriptions);
        }
        let others: usize =
            self.types.iter().filter(|(url, _)| **url != request.type_url).map(|(_, t)| t.names.len()).sum();
        let first = !self.types.contains_key(&request.type_url);
        let state = self.types.entry(request.type_url).or_default();
        let node = request
            .node
            .map(|node| NodeInfo { id: shorten(&node.id), version: shorten(&node.user_agent_version) });
        let mut done = Request { node, ..Request::default() };
        if first {
            // A first request that subscribes to nothing is the legacy way to ask for everything.
            if request.resource_names_subscribe.is_empty() {
                state.wildcard = true;
            }
            state.dirty = Pending::All;
            state.sent = request.initial_resource_versions.into_iter().map(|(n, v)| (n, Some(v))).collect();
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                if !state.wildcard {
                    state.wildcard = true;
                    state.dirty = Pending::All;
                }
                continue;
            }
            if !first {
                // Asking explicitly is asking for the content, also of what was sent before.
                state.sent.remove(&name);
            }
            state.dirty.add(&name);
            if state.names.insert(name.clone()) {
                done.added.push(name);
            }
        }
        if others + state.names.len() > MAX_SUBSCRIPTIONS {
            return Err(ProtocolError::TooManySubscriptions);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                state.wildcard = false;
                let names = &state.names;
                state.sent.retain(|sent, _| names.contains(sent));
            } else if state.names.remove(&name) {
                if state.wildcard {
                    // Still seen through the wildcard, but the client may have forgotten the content.
                    state.sent.remove(&name);
                    state.dirty.add(&name);
                } else {
                    state.sent.remove(&name);
                }
                done.removed.push(name);
            }
        }
        if !request.response_nonce.is_empty() && state.in_flight.as_ref() == Some(&request.response_nonce) {
            state.in_flight = None;
            match request.error_detail {
                None => {
                    done.acked = true;
                    state.acked_nonce = Some(request.response_nonce);
                }
                // What was rejected stays in `sent`: the same version again would be rejected again.
                Some(error) => done.nacked = Some(error.message.chars().take(4096).collect()),
            }
        }
        Ok(done)
    }

    /// Notes what may have changed.
    pub fn mark(&mut self, dirty: &Dirty) {
        match dirty {
            Dirty::Type(type_url) => {
                if let Some(state) = self.types.get_mut(*type_url) {
                    state.dirty = Pending::All;
                }
            }
            Dirty::Name(type_url, name) => {
                if let Some(state) = self.types.get_mut(*type_url)
                    && (state.wildcard || state.names.contains(name))
                {
                    state.dirty.add(name);
                }
            }
        }
    }

    /// The next response owed, if any may be sent now.
    pub fn next_response(&mut self, view: &impl View) -> Option<DeltaDiscoveryResponse> {
        for (type_url, state) in &mut self.types {
            if state.in_flight.is_some() {
                continue;
            }
            let (mut resources, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut rest = BTreeSet::new();
            for (name, resource) in state.candidates(type_url, view) {
                match resource {
                    Some(resource) if state.lacks(&name, Some(&resource.version)) => {
                        if bytes >= RESPONSE_TARGET_BYTES {
                            rest.insert(name);
                            continue;
                        }
                        bytes += name.len() + resource.body.value.len() + 128;
                        state.sent.insert(name, Some(resource.version.clone()));
                        resources.push(wire(&resource));
                    }
                    None if state.lacks(&name, None) => {
                        if state.names.contains(&name) {
                            state.sent.insert(name.clone(), None);
                        } else {
                            state.sent.remove(&name);
                        }
                        removed.push(name);
                    }
                    _ => {}
                }
            }
            let system_version_info = if rest.is_empty() { String::new() } else { MORE_FOLLOWS.to_owned() };
            if !rest.is_empty() {
                state.dirty = Pending::Names(rest);
            }
            if resources.is_empty() && removed.is_empty() && state.answered {
                continue;
            }
            state.answered = true;
            self.last_nonce += 1;
            let nonce = self.last_nonce.to_string();
            state.in_flight = Some(nonce.clone());
            state.sent_nonce = Some(nonce.clone());
            return Some(DeltaDiscoveryResponse {
                resources,
                removed_resources: removed,
                type_url: type_url.clone(),
                nonce,
                system_version_info,
            });
        }
        None
    }

    /// Whether a response waits for its ack.
    pub fn awaits_ack(&self) -> bool {
        self.types.values().any(|t| t.in_flight.is_some())
    }

    /// What this stream is about, type by type.
    pub fn types(&self) -> impl Iterator<Item = TypeStatus<'_>> {
        self.types.iter().map(|(type_url, state)| TypeStatus {
            type_url,
            wildcard: state.wildcard,
            names: state.names.len(),
            resources: state.sent.values().flatten().count(),
            sent_nonce: state.sent_nonce.as_deref(),
            acked_nonce: state.acked_nonce.as_deref(),
            settled: state.in_flight.is_none() && matches!(state.dirty, Pending::Nothing),
        })
    }
}

/// One type on one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeStatus<'a> {
    /// The type.
    pub type_url: &'a str,
    /// Subscribed to all there is.
    pub wildcard: bool,
    /// Names subscribed to one by one.
    pub names: usize,
    /// Resources sent.
    pub resources: usize,
    /// Nonce of the last response.
    pub sent_nonce: Option<&'a str>,
    /// Nonce of the last response that was accepted.
    pub acked_nonce: Option<&'a str>,
    /// All that was sent was answered, and nothing more is owed.
    pub settled: bool,
}

impl TypeState {
    /// Takes what is pending: each name with what the peer should have of it.
    fn candidates(&mut self, type_url: &str, view: &impl View) -> Vec<(String, Option<Arc<Resource>>)> {
        match std::mem::take(&mut self.dirty) {
            Pending::Nothing => Vec::new(),
            Pending::Names(names) => names
                .into_iter()
                .filter(|name| self.wildcard || self.names.contains(name))
                .map(|name| {
                    let resource = view.resource(type_url, &name);
                    (name, resource)
                })
                .collect(),
            Pending::All => {
                let mut all = BTreeMap::new();
                // What was sent and is neither listed nor named any more is gone.
                all.extend(self.sent.keys().map(|name| (name.clone(), None)));
                all.extend(self.names.iter().map(|name| (name.clone(), view.resource(type_url, name))));
                if self.wildcard {
                    all.extend(view.list(type_url).into_iter().map(|r| (r.name.clone(), Some(r))));
                }
                all.into_iter().collect()
            }
        }
    }

    fn lacks(&self, name: &str, version: Option<&String>) -> bool {
        match self.sent.get(name) {
            Some(sent) => sent.as_ref() != version,
            // A name asked for is owed the answer "none"; one never sent through a wildcard is not.
            None => version.is_some() || self.names.contains(name),
        }
    }
}

/// A stranger chooses it, and it is kept.
fn shorten(text: &str) -> String {
    text.chars().take(MAX_NAME_BYTES / 4).collect()
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn wire(resource: &Resource) -> WireResource {
    WireResource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(resource.body.clone()),
        aliases: Vec::new(),
    }
}
