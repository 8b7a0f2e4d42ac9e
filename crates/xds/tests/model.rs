//! Both state machines joined by a lossy wire, against a model: after any sequence of changes,
//! subscriptions, rejections, disconnects and resumes the client holds exactly what it should, and it never
//! receives what it may not see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;

use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use maille_xds::{ClientState, Dirty, Rejection, Request, Resource, ServerState, View};
use proptest::prelude::*;
use tonic::Status;

const NAMED: &str = "type/named";
const WILD: &str = "type/wild";
/// Names ending in this are another subscriber's.
const FOREIGN: u8 = 4;

#[derive(Debug, Clone)]
enum Step {
    Put {
        wild: bool,
        name: u8,
        version: u8,
    },
    Delete {
        wild: bool,
        name: u8,
    },
    Subscribe(u8),
    Unsubscribe(u8),
    Wildcard,
    Disconnect,
    /// The client loses its memory of everything but what it persisted (all of it).
    Restart,
    /// Moves this many messages each way.
    Deliver(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 0..6u8, 0..8u8).prop_map(|(wild, name, version)| Step::Put { wild, name, version }),
        2 => (any::<bool>(), 0..6u8).prop_map(|(wild, name)| Step::Delete { wild, name }),
        3 => (0..6u8).prop_map(Step::Subscribe),
        2 => (0..6u8).prop_map(Step::Unsubscribe),
        1 => Just(Step::Wildcard),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Restart),
        4 => (1..4u8).prop_map(Step::Deliver),
    ]
}

fn name(n: u8) -> String {
    format!("r{n}")
}

/// The client's application refuses these contents.
fn is_bad(version: &str) -> bool {
    version == "v7"
}

#[derive(Default)]
struct Store(BTreeMap<(&'static str, String), String>);

impl View for Store {
    fn list(&self, type_url: &str) -> Vec<Arc<Resource>> {
        let mine = self.0.keys().filter(|(t, _)| *t == type_url);
        mine.filter_map(|(_, n)| self.resource(type_url, n)).collect()
    }

    fn resource(&self, type_url: &str, wanted: &str) -> Option<Arc<Resource>> {
        let ((t, _), version) = self.0.iter().find(|((t, n), _)| *t == type_url && n == wanted)?;
        let body = prost_types::Any { type_url: (*t).to_owned(), value: version.clone().into_bytes() };
        let resource = Resource { name: wanted.to_owned(), version: version.clone(), body };
        (wanted != name(FOREIGN)).then(|| Arc::new(resource))
    }

    async fn changed(&mut self) -> Result<Vec<Dirty>, Status> {
        pending().await
    }

    fn requested(&mut self, _: &str, _: &Request, _: &ServerState) {}
}

#[derive(Default)]
struct World {
    store: Store,
    client: ClientState,
    server: ServerState,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
    /// What the client's application has.
    applied: BTreeMap<(String, String), String>,
    wanted: BTreeSet<String>,
    wildcard: bool,
    bad_sent: BTreeMap<(String, String), u32>,
}

impl World {
    fn reconnect(&mut self) {
        self.up.clear();
        self.down.clear();
        self.server = ServerState::new();
        self.bad_sent.clear();
        self.client.disconnected();
        self.client.connected();
    }

    /// Moves one message each way; false when nothing moved.
    fn tick(&mut self) -> bool {
        self.up.extend(self.client.take_requests());
        while let Some(response) = self.server.next_response(&self.store) {
            self.down.push_back(response);
        }
        let mut moved = false;
        if let Some(request) = self.up.pop_front() {
            self.server.request(request).expect("within the limits");
            moved = true;
        }
        if let Some(response) = self.down.pop_front() {
            moved = true;
            for resource in &response.resources {
                assert_ne!(resource.name, name(FOREIGN), "a foreign resource was sent");
                if is_bad(&resource.version) {
                    *self.bad_sent.entry((response.type_url.clone(), resource.name.clone())).or_default() +=
                        1;
                }
            }
            let (update, receipt) = self.client.receive(response);
            let mut rejections = Vec::new();
            for resource in update.resources {
                let key = (update.type_url.clone(), resource.name.clone());
                if is_bad(&resource.version) {
                    rejections.push(Rejection::new(resource.name, "bad"));
                } else {
                    self.applied.insert(key, resource.version);
                }
            }
            for gone in update.removed {
                self.applied.remove(&(update.type_url.clone(), gone));
            }
            let outcome = if rejections.is_empty() { Ok(()) } else { Err(rejections) };
            self.client.settle(receipt, outcome);
        }
        moved
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Put { wild, name: n, version } => {
                let type_url = if wild { WILD } else { NAMED };
                self.store.0.insert((type_url, name(n)), format!("v{version}"));
                self.server.mark(&Dirty::Name(type_url, name(n)));
            }
            Step::Delete { wild, name: n } => {
                let type_url = if wild { WILD } else { NAMED };
                self.store.0.remove(&(type_url, name(n)));
                let whole_type = n.is_multiple_of(2);
                let name = Dirty::Name(type_url, name(n));
                self.server.mark(if whole_type { &Dirty::Type(NAMED) } else { &name });
                self.server.mark(&name);
            }
            Step::Subscribe(n) => {
                self.wanted.insert(name(n));
                self.client.subscribe(NAMED, &name(n)).expect("within the limits");
            }
            Step::Unsubscribe(n) => {
                self.wanted.remove(&name(n));
                self.client.unsubscribe(NAMED, &name(n));
                self.applied.remove(&(NAMED.to_owned(), name(n)));
            }
            Step::Wildcard => {
                self.wildcard = true;
                self.client.subscribe_wildcard(WILD);
            }
            Step::Disconnect => self.reconnect(),
            Step::Restart => {
                self.client = ClientState::new("node");
                for ((type_url, name), version) in &self.applied {
                    self.client.resume(type_url, name, version);
                }
                for name in &self.wanted {
                    self.client.subscribe(NAMED, name).expect("within the limits");
                }
                if self.wildcard {
                    self.client.subscribe_wildcard(WILD);
                }
                self.reconnect();
            }
            Step::Deliver(n) => {
                for _ in 0..n {
                    self.tick();
                }
            }
        }
    }

    fn expected(&self) -> BTreeMap<(String, String), String> {
        let visible = |t: &str, n: &str| match t {
            NAMED => self.wanted.contains(n),
            _ => self.wildcard,
        };
        self.store
            .0
            .iter()
            .filter(|((t, n), _)| visible(t, n) && *n != name(FOREIGN))
            .map(|((t, n), v)| (((*t).to_owned(), n.clone()), v.clone()))
            .collect()
    }
}

fn cases() -> u32 {
    std::env::var("MAILLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(256)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_the_client_holds_exactly_what_it_should(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::default();
        world.client.connected();
        for step in &steps {
            world.apply(step);
        }
        let mut ticks = 0;
        while world.tick() {
            ticks += 1;
            prop_assert!(ticks < 1000, "the two never come to rest");
        }
        let expected = world.expected();
        for (key, version) in &expected {
            let has = world.applied.get(key);
            if is_bad(version) {
                // The last good content stays.
                prop_assert!(has.is_none_or(|v| !is_bad(v)), "{:?}", key);
            } else {
                prop_assert_eq!(has, Some(version), "{:?}", key);
                prop_assert_eq!(world.client.held(&key.0, &key.1), Some(version.as_str()), "{:?}", key);
            }
        }
        for key in world.applied.keys() {
            prop_assert!(expected.contains_key(key), "{:?} should be gone", key);
        }
        prop_assert!(!world.server.awaits_ack());
    }

    #[test]
    fn any_request_or_response_is_survived(
        names in prop::collection::vec(".{0,12}", 0..5),
        nonce in "[0-9]{0,2}",
        type_url in "(type/named|type/wild|.{0,8})",
    ) {
        let mut world = World::default();
        world.client.connected();
        world.client.subscribe_wildcard(WILD);
        world.store.0.insert((NAMED, name(0)), "v0".into());
        let request = DeltaDiscoveryRequest {
            type_url: type_url.clone(),
            resource_names_subscribe: names.clone(),
            resource_names_unsubscribe: names.iter().rev().cloned().collect(),
            response_nonce: nonce.clone(),
            ..Default::default()
        };
        let _ = world.server.request(request.clone());
        let _ = world.server.next_response(&world.store);
        let _ = world.server.request(request);
        let response = DeltaDiscoveryResponse { type_url, nonce, removed_resources: names, ..Default::default() };
        let (_, receipt) = world.client.receive(response);
        world.client.settle(receipt, Ok(()));
        let _ = world.client.take_requests();
    }
}

#[test]
fn a_rejected_version_is_not_sent_again_until_it_changes() {
    let mut world = World::default();
    world.client.connected();
    world.apply(&Step::Put { wild: true, name: 1, version: 7 });
    world.apply(&Step::Wildcard);
    while world.tick() {}
    world.server.mark(&Dirty::Type(WILD));
    while world.tick() {}
    assert_eq!(world.bad_sent.values().copied().collect::<Vec<_>>(), [1]);
    world.apply(&Step::Put { wild: true, name: 1, version: 2 });
    while world.tick() {}
    assert_eq!(world.client.held(WILD, "r1"), Some("v2"));
}

#[test]
fn a_nack_names_the_rejected_resource_and_the_good_ones_hold() {
    let mut world = World::default();
    world.client.connected();
    world.apply(&Step::Put { wild: true, name: 1, version: 7 });
    world.apply(&Step::Put { wild: true, name: 2, version: 1 });
    world.apply(&Step::Wildcard);
    for request in world.client.take_requests() {
        world.server.request(request).expect("valid");
    }
    let response = world.server.next_response(&world.store).expect("both resources");
    let (_, receipt) = world.client.receive(response);
    world.client.settle(receipt, Err(vec![Rejection::new("r1", "rule 0: bad CIDR")]));
    let nack = world.client.take_requests().remove(0);
    assert_eq!(nack.error_detail.as_ref().map(|e| e.message.as_str()), Some("r1: rule 0: bad CIDR"));
    let done = world.server.request(nack).expect("valid");
    assert_eq!(done.nacked.as_deref(), Some("r1: rule 0: bad CIDR"));
    assert_eq!(world.client.held(WILD, "r2"), Some("v1"));
    assert_eq!(world.client.held(WILD, "r1"), None);
}

#[test]
fn a_resume_with_known_versions_sends_nothing_but_an_empty_answer() {
    let mut world = World::default();
    world.client.connected();
    for n in 0..3 {
        world.apply(&Step::Put { wild: true, name: n, version: n });
    }
    world.apply(&Step::Wildcard);
    while world.tick() {}
    world.apply(&Step::Restart);
    for request in world.client.take_requests() {
        world.server.request(request).expect("valid");
    }
    let response = world.server.next_response(&world.store).expect("the first request is always answered");
    assert!(response.resources.is_empty() && response.removed_resources.is_empty());
}

#[test]
fn what_vanished_while_away_is_removed_on_resume() {
    let mut world = World::default();
    world.client.connected();
    world.apply(&Step::Put { wild: true, name: 1, version: 1 });
    world.apply(&Step::Wildcard);
    while world.tick() {}
    world.store.0.clear();
    world.apply(&Step::Disconnect);
    while world.tick() {}
    assert!(world.applied.is_empty());
}

#[test]
fn more_subscriptions_than_allowed_end_the_stream() {
    let mut server = ServerState::new();
    let names = (0..=maille_xds::limits::MAX_SUBSCRIPTIONS).map(|n| n.to_string()).collect();
    let request = DeltaDiscoveryRequest {
        type_url: NAMED.into(),
        resource_names_subscribe: names,
        ..Default::default()
    };
    assert_eq!(server.request(request), Err(maille_xds::ProtocolError::TooManySubscriptions));
}

#[test]
fn a_large_set_is_sent_in_several_responses() {
    struct Big;
    impl View for Big {
        fn list(&self, type_url: &str) -> Vec<Arc<Resource>> {
            (0..8).filter_map(|n| self.resource(type_url, &name(n))).collect()
        }
        fn resource(&self, type_url: &str, name: &str) -> Option<Arc<Resource>> {
            let body = prost_types::Any { type_url: type_url.to_owned(), value: vec![0; 200 << 10] };
            Some(Arc::new(Resource { name: name.to_owned(), version: "1".into(), body }))
        }
        async fn changed(&mut self) -> Result<Vec<Dirty>, Status> {
            pending().await
        }
        fn requested(&mut self, _: &str, _: &Request, _: &ServerState) {}
    }
    let (mut client, mut server) = (ClientState::new("n"), ServerState::new());
    client.connected();
    client.subscribe_wildcard(WILD);
    let mut responses = 0;
    loop {
        for request in client.take_requests() {
            server.request(request).expect("valid");
        }
        let Some(response) = server.next_response(&Big) else { break };
        assert!(response.resources.len() <= 3);
        responses += 1;
        let (_, receipt) = client.receive(response);
        client.settle(receipt, Ok(()));
    }
    assert_eq!(client.held_names(WILD).count(), 8);
    assert_eq!(responses, 3);
}
