use std::collections::{BTreeMap, BTreeSet};

use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};

use crate::limits::{MAX_NAME_BYTES, MAX_SUBSCRIPTIONS, MORE_FOLLOWS};
use crate::resource::{Rejection, Resource, Update};
use crate::type_urls::WILDCARD;

/// Why a subscription was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The name is empty, too long, or the wildcard (which has a call of its own).
    #[error("'{0}' cannot name a resource: 1 to {MAX_NAME_BYTES} bytes, and not '*'")]
    Name(String),
    /// Too many names; drop some that are no longer used first.
    #[error("already subscribed to {MAX_SUBSCRIPTIONS} names; unsubscribe from unused ones first")]
    TooMany,
}

/// The subscriber's side of the delta protocol, without I/O.
///
/// Subscriptions outlive streams. [`Self::take_requests`] gives what must be said
/// now, coalesced; [`Self::receive`] and [`Self::settle`] bracket the application
/// of one response.
#[derive(Debug, Default)]
pub struct ClientState {
    node_id: String,
    node_sent: bool,
    connected: bool,
    types: BTreeMap<String, TypeState>,
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    wanted: BTreeSet<String>,
    /// Versions accepted so far.
    held: BTreeMap<String, String>,
    /// What the server of the current stream knows of the subscription; `None` before the first request.
    told: Option<Told>,
    /// Told names given up since the last request, whether or not they are wanted again:
    /// their content is forgotten here, so the server must send it anew.
    dropped: BTreeSet<String>,
    /// Acks and nacks not sent yet: nonce and, for a nack, the reason.
    replies: Vec<(String, Option<String>)>,
}

#[derive(Debug, Default)]
struct Told {
    wildcard: bool,
    names: BTreeSet<String>,
}

/// Proof of a response received, to be handed back to [`ClientState::settle`].
#[derive(Debug)]
#[must_use = "a response that is not settled is never acknowledged, and the server waits"]
pub struct Receipt {
    type_url: String,
    nonce: String,
    versions: Vec<(String, String)>,
    removed: Vec<String>,
    rejections: Vec<Rejection>,
}

impl ClientState {
    /// A state with no subscription; `node_id` names the client in the server's records only.
    pub fn new(node_id: impl Into<String>) -> Self {
        Self { node_id: node_id.into(), ..Self::default() }
    }

    /// Notes a resource held from an earlier life, so that the server sends it only if it differs.
    /// Counts as subscribed to for wildcard types only; named ones need [`Self::subscribe`] too.
    pub fn resume(&mut self, type_url: &str, name: &str, version: &str) {
        self.state(type_url).held.insert(name.to_owned(), version.to_owned());
    }

    /// Subscribes to one name; again is no change.
    pub fn subscribe(&mut self, type_url: &str, name: &str) -> Result<(), SubscribeError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name == WILDCARD {
            return Err(SubscribeError::Name(name.chars().take(64).collect()));
        }
        let total: usize = self.types.values().map(|t| t.wanted.len()).sum();
        let state = self.state(type_url);
        if !state.wanted.contains(name) {
            if total >= MAX_SUBSCRIPTIONS {
                return Err(SubscribeError::TooMany);
            }
            state.wanted.insert(name.to_owned());
        }
        Ok(())
    }

    /// Subscribes to everything of a type that the server lets this client see.
    pub fn subscribe_wildcard(&mut self, type_url: &str) {
        self.state(type_url).wildcard = true;
    }

    /// Gives a name up and forgets its content.
    pub fn unsubscribe(&mut self, type_url: &str, name: &str) {
        let Some(state) = self.types.get_mut(type_url) else { return };
        if state.wanted.remove(name) {
            if !state.wildcard {
                state.held.remove(name);
            }
            if state.told.as_ref().is_some_and(|t| t.names.contains(name)) {
                state.dropped.insert(name.to_owned());
            }
        }
    }

    /// Whether a stream is up.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Version of a resource held, if any.
    pub fn held(&self, type_url: &str, name: &str) -> Option<&str> {
        self.types.get(type_url)?.held.get(name).map(String::as_str)
    }

    /// Names held of a type, sorted.
    pub fn held_names(&self, type_url: &str) -> impl Iterator<Item = &str> {
        self.types.get(type_url).into_iter().flat_map(|t| t.held.keys().map(String::as_str))
    }

    /// A new stream is up: everything must be said again.
    pub fn connected(&mut self) {
        self.forget_stream();
        self.connected = true;
    }

    /// The stream is gone; subscriptions and held versions stay.
    pub fn disconnected(&mut self) {
        self.forget_stream();
    }

    fn forget_stream(&mut self) {
        self.connected = false;
        self.node_sent = false;
        for state in self.types.values_mut() {
            state.told = None;
            state.dropped.clear();
            state.replies.clear();
        }
    }

    /// What must be sent on the current stream now; empty when disconnected or when all is said.
    pub fn take_requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        if !self.connected {
            return requests;
        }
        for (type_url, state) in &mut self.types {
            for (nonce, error) in state.replies.drain(..) {
                requests.push(DeltaDiscoveryRequest {
                    type_url: type_url.clone(),
                    response_nonce: nonce,
                    // google.rpc.Code.INVALID_ARGUMENT, as Envoy sends.
                    error_detail: error.map(|message| Status { code: 3, message }),
                    ..Default::default()
                });
            }
            if let Some(mut request) = state.subscription_request() {
                request.type_url = type_url.clone();
                requests.push(request);
            }
        }
        if let Some(first) = requests.first_mut()
            && !self.node_sent
        {
            first.node = Some(Node {
                id: self.node_id.clone(),
                user_agent_name: "maille".to_owned(),
                // One version for all crates of the workspace.
                user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Default::default()
            });
            self.node_sent = true;
        }
        requests
    }

    /// Takes a response in. The update (only what is still wanted) is to be applied, and the receipt
    /// handed to [`Self::settle`] with the outcome, also when there is no update to apply.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> (Update, Receipt) {
        let mut update = Update {
            type_url: response.type_url.clone(),
            more_follows: response.system_version_info == MORE_FOLLOWS,
            ..Default::default()
        };
        let mut receipt = Receipt {
            type_url: response.type_url.clone(),
            nonce: response.nonce,
            versions: Vec::new(),
            removed: Vec::new(),
            rejections: Vec::new(),
        };
        let state = self.types.get(&response.type_url);
        let wanted = |name: &str| state.is_some_and(|s| s.wildcard || s.wanted.contains(name));
        let mut seen = BTreeSet::new();
        for resource in response.resources {
            if !seen.insert(resource.name.clone()) {
                receipt.rejections.push(Rejection::new(resource.name, "occurs twice in one response"));
                continue;
            }
            let Some(body) = resource.resource else {
                receipt.rejections.push(Rejection::new(resource.name, "has no content"));
                continue;
            };
            if body.type_url != response.type_url {
                let reason = format!("is a {} in a response of {}", body.type_url, response.type_url);
                receipt.rejections.push(Rejection::new(resource.name, reason));
                continue;
            }
            if wanted(&resource.name) {
                receipt.versions.push((resource.name.clone(), resource.version.clone()));
                update.resources.push(Resource { name: resource.name, version: resource.version, body });
            }
        }
        for name in response.removed_resources {
            if seen.contains(&name) {
                receipt.rejections.push(Rejection::new(name, "is both updated and removed in one response"));
            } else if wanted(&name) && !update.removed.contains(&name) {
                update.removed.push(name);
            }
        }
        receipt.removed = update.removed.clone();
        (update, receipt)
    }

    /// Records what became of a response: accepted versions are held, and an ack is
    /// owed, or a nack that names what was rejected.
    pub fn settle(&mut self, receipt: Receipt, outcome: Result<(), Vec<Rejection>>) {
        let Receipt { type_url, nonce, versions, removed, mut rejections } = receipt;
        // A type never subscribed to gets no state from the server's say-so.
        let Some(state) = self.types.get_mut(&type_url) else { return };
        rejections.extend(outcome.err().into_iter().flatten());
        for (name, version) in versions {
            let keep = (state.wildcard || state.wanted.contains(&name)) && !state.dropped.contains(&name);
            if keep && !rejections.iter().any(|r| r.name == name) {
                state.held.insert(name, version);
            }
        }
        for name in removed {
            if !rejections.iter().any(|r| r.name == name) {
                state.held.remove(&name);
            }
        }
        // A stream that ended meanwhile is owed nothing.
        if state.told.is_some() {
            state.replies.push((nonce, nack_message(&rejections)));
        }
    }

    fn state(&mut self, type_url: &str) -> &mut TypeState {
        self.types.entry(type_url.to_owned()).or_default()
    }
}

/// One line per rejected resource, `name: reason`; bounded, since it ends in a log.
fn nack_message(rejections: &[Rejection]) -> Option<String> {
    const MOST: usize = 16;
    if rejections.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = rejections
        .iter()
        .take(MOST)
        .map(|r| {
            let reason: String = r.reason.chars().take(512).collect();
            format!("{}: {reason}", r.name)
        })
        .collect();
    if let Some(more) = rejections.len().checked_sub(MOST).filter(|n| *n > 0) {
        lines.push(format!("and {more} more"));
    }
    Some(lines.join("\n"))
}

impl TypeState {
    fn subscription_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let mut request = DeltaDiscoveryRequest::default();
        match &mut self.told {
            None => {
                if !self.wildcard && self.wanted.is_empty() {
                    return None;
                }
                if self.wildcard {
                    request.resource_names_subscribe.push(WILDCARD.to_owned());
                }
                request.resource_names_subscribe.extend(self.wanted.iter().cloned());
                let (wildcard, wanted) = (self.wildcard, &self.wanted);
                self.held.retain(|name, _| wildcard || wanted.contains(name));
                request.initial_resource_versions =
                    self.held.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
                self.told = Some(Told { wildcard: self.wildcard, names: self.wanted.clone() });
            }
            Some(told) => {
                if self.wildcard && !told.wildcard {
                    request.resource_names_subscribe.push(WILDCARD.to_owned());
                    told.wildcard = true;
                }
                // Asking again for a name the server holds as subscribed makes it send the content again.
                let again = self.dropped.intersection(&self.wanted);
                let new = self.wanted.difference(&told.names);
                request.resource_names_subscribe.extend(new.chain(again).cloned());
                request.resource_names_unsubscribe.extend(told.names.difference(&self.wanted).cloned());
                if request.resource_names_subscribe.is_empty()
                    && request.resource_names_unsubscribe.is_empty()
                {
                    return None;
                }
                told.names.clone_from(&self.wanted);
                self.dropped.clear();
            }
        }
        Some(request)
    }
}
