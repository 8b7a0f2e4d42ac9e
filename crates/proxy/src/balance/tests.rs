use std::cell::Cell;
use std::net::IpAddr;

use maille_core::EndpointTls;

use super::*;
use crate::snapshot::{
    ConnectionPool, Destination, HashTable, OutlierDetection, Resolution, ServiceName, ServicePort, Traffic,
};

/// Endpoints 10.0.0.1, 10.0.0.2 and so on, of these weights.
fn service(weights: &[u32], traffic: Option<Traffic>) -> Service {
    let endpoint = |(index, weight): (usize, &u32)| Endpoint {
        workload: Arc::default(),
        address: IpAddr::from([10, 0, 0, index as u8 + 1]),
        ports: vec![EndpointPort { service_port: 80, target_port: 8080, tls: EndpointTls::Plaintext }],
        weight: *weight,
        other_address: None,
        unix_path: None,
    };
    Service {
        name: Arc::new(ServiceName { hostname: "cart.shop".into(), ..ServiceName::default() }),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            number: 80,
            protocol: Default::default(),
            sni: "x".into(),
            is_tls: false,
            order: None,
            target_port: None,
            traffic: traffic.map(Arc::new),
            balance: None,
        }],
        endpoints: weights.iter().enumerate().map(endpoint).collect(),
        subject_alt_names: Arc::new([]),
        headless: false,
        external: false,
        resolution: Resolution::Listed,
        service_entry: None,
        named_endpoints: Vec::new(),
        lookup_failure: None,
    }
}

fn balance(states: &States, weights: &[u32], traffic: Traffic) -> Arc<Balance> {
    let mut destination = Destination::Service(service(weights, Some(traffic)));
    states.adopt(&mut destination);
    let Destination::Service(service) = destination else { panic!("a service") };
    service.ports[0].balance.clone().expect("made")
}

fn by(algorithm: Algorithm) -> Traffic {
    Traffic { algorithm, ..Traffic::default() }
}

/// How often each endpoint is picked in 1200 tries.
fn shares(balance: &Balance, active: &dyn Fn(usize) -> usize) -> Vec<usize> {
    let state = Cell::new(0x9E37_79B9_u64);
    let random = |bound: usize| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        (x >> 33) as usize % bound.max(1)
    };
    let mut counts = vec![0; balance.hosts.len()];
    for _ in 0..1200 {
        let wish = Wish { random: &random, hash: None, avoid: None, active };
        counts[balance.pick(&wish).expect("somebody")] += 1;
    }
    counts
}

fn idle(_: usize) -> usize {
    0
}

#[test]
fn a_port_without_a_rule_or_uneven_weights_has_no_balance() {
    let states = States::default();
    for (weights, has_one) in [(&[1, 1][..], false), (&[5, 5], false), (&[], false), (&[1, 2], true)] {
        let mut destination = Destination::Service(service(weights, None));
        states.adopt(&mut destination);
        let Destination::Service(service) = destination else { panic!("a service") };
        assert_eq!(service.ports[0].balance.is_some(), has_one, "{weights:?}");
    }
}

#[test]
fn round_robin_takes_turns_by_weight_and_goes_on_when_endpoints_change() {
    let states = States::default();
    let even = balance(&states, &[1, 1, 1], by(Algorithm::RoundRobin));
    assert_eq!(shares(&even, &idle), [400, 400, 400]);
    let uneven = balance(&states, &[10, 20, 30], by(Algorithm::RoundRobin));
    assert_eq!(shares(&uneven, &idle), [200, 400, 600]);
    assert!(uneven.turns.windows(4).all(|run| run.iter().any(|turn| *turn != 2)), "{:?}", uneven.turns);
    assert_eq!(even.next.load(Relaxed), 2400, "both count on");
    let huge = balance(&states, &[1, u32::MAX, u32::MAX], by(Algorithm::RoundRobin));
    assert!(huge.turns.len() < 5000 && huge.turns.contains(&0));
}

#[test]
fn least_request_prefers_who_is_less_busy_and_weighs() {
    let states = States::default();
    let even = balance(&states, &[1, 1, 1], by(Algorithm::LeastRequest));
    let counts = shares(&even, &|index| if index == 1 { 9 } else { 0 });
    assert!(counts[1] < 100 && counts[0] > 400 && counts[2] > 400, "{counts:?}");
    let uneven = balance(&states, &[1, 3], by(Algorithm::LeastRequest));
    let counts = shares(&uneven, &idle);
    assert!((800..1000).contains(&counts[1]), "{counts:?}");
}

#[test]
fn equal_keys_get_to_one_endpoint_and_requests_without_a_key_to_any() {
    let states = States::default();
    let hash = Algorithm::Hash(HashKey::SourceAddress, HashTable::Ring(1024));
    let balance = balance(&states, &[1, 1, 1], by(hash));
    let pick = |hash| {
        let wish = Wish { random: &|_| 0, hash: Some(hash), avoid: None, active: &idle };
        balance.pick(&wish).expect("somebody")
    };
    let hashes: Vec<u64> = (0..100_u32).map(|n| super::hash::xxh64(&n.to_le_bytes(), 0)).collect();
    let chosen: Vec<_> = hashes.iter().map(|hash| pick(*hash)).collect();
    assert!((0..3).all(|index| chosen.contains(&index)));
    assert!(hashes.iter().zip(&chosen).all(|(hash, index)| pick(*hash) == *index));
    assert!(shares(&balance, &idle).iter().all(|count| *count > 300));
}

fn strict() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(2),
        consecutive_gateway: None,
        splits_local: false,
        consecutive_local: None,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

#[test]
fn who_is_left_out_gets_nothing_and_the_others_the_same() {
    let algorithms = [
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::LeastRequest,
        Algorithm::Hash(HashKey::SourceAddress, HashTable::Maglev(101)),
        Algorithm::Hash(HashKey::SourceAddress, HashTable::Ring(101)),
    ];
    for algorithm in algorithms {
        let states = States::default();
        let traffic = Traffic { outliers: Some(strict()), ..by(algorithm.clone()) };
        let first = balance(&states, &[1, 1, 1, 1], traffic.clone());
        first.note(1, Outcome::Lost);
        first.note(1, Outcome::Answered(500));
        // It stays left out when the endpoints are told anew.
        let second = balance(&states, &[1, 1, 1, 1], traffic.clone());
        for balance in [&first, &second] {
            let counts = shares(balance, &idle);
            assert_eq!(counts[1], 0, "{algorithm:?}");
            assert!(counts.iter().enumerate().all(|(i, c)| i == 1 || (330..470).contains(c)), "{counts:?}");
            for key in 0..200_u64 {
                let wish = Wish { random: &|_| 0, hash: Some(key << 56), avoid: None, active: &idle };
                assert_ne!(balance.pick(&wish), Some(1), "{algorithm:?}");
            }
        }
        assert_eq!(second.ejected().map(|(name, _)| name).collect::<Vec<_>>(), ["10.0.0.2:8080"]);
        // With nobody left there is nobody to ask.
        for index in [0, 2, 3] {
            second.note(index, Outcome::Lost);
            second.note(index, Outcome::Lost);
        }
        let wish = Wish { random: &|_| 0, hash: Some(7), avoid: None, active: &idle };
        assert_eq!(second.pick(&wish), None, "{algorithm:?}");
    }
}

#[test]
fn what_failed_a_moment_ago_is_avoided_while_others_are_left() {
    let states = States::default();
    let balance = balance(&states, &[1, 1], by(Algorithm::RoundRobin));
    let random = |bound: usize| bound.saturating_sub(1);
    let pick = |avoid: &dyn Fn(usize) -> bool| {
        balance.pick(&Wish { random: &random, hash: None, avoid: Some(avoid), active: &idle })
    };
    assert!((0..8).all(|_| pick(&|index| index == 0) == Some(1)));
    assert!(pick(&|_| true).is_some());
}

#[test]
fn a_new_endpoint_gets_a_tenth_at_first() {
    let states = States::default();
    let traffic = Traffic { warmup: Some(Duration::from_secs(3600)), ..by(Algorithm::RoundRobin) };
    let one = balance(&states, &[1], traffic.clone());
    assert!(one.warming.is_none(), "all are of an age");
    let mut two = Arc::into_inner(balance(&states, &[1, 1], traffic)).expect("nobody else has it");
    // The first has been there for the whole of a very short window, the second came just now.
    let until_ms = clock::now_ms() + 1_000_000;
    two.hosts[0].health = Arc::new(Health::new(0));
    two.hosts[1].health = Arc::new(Health::new(until_ms));
    two.warming = Some(Warming { window_ms: 1, until_ms, oldest_ms: 0 });
    let counts = shares(&two, &idle);
    assert!((60..200).contains(&counts[1]), "{counts:?}");
    drop(one);
}

#[test]
fn bounds_are_shared_by_all_who_ask_for_the_service() {
    let states = States::default();
    let pool = ConnectionPool { requests: Some(1), ..ConnectionPool::default() };
    let traffic = Traffic { pool: Some(Arc::new(pool)), ..Traffic::default() };
    let (one, other) = (balance(&states, &[1], traffic.clone()), balance(&states, &[1, 1], traffic));
    let (one, other) = (one.terms().expect("bounds"), other.terms().expect("bounds"));
    assert_eq!(one, other);
    let held = one.take(What::Request).expect("the first");
    assert!(other.take(What::Request).is_none());
    drop(held);
    assert!(other.take(What::Request).is_some());
}
