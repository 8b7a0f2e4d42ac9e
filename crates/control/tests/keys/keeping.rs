//! Key sets over time, which is the test's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maille_control::keys::{Fetcher, KeySource, KeyStore, Pace, Roots};
use maille_control::world::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::server::{InMemory, Reply, Script, answer, key_set, url};

const KEYS: &str = "http://idp.example/keys";
const FIVE: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);

struct Lab {
    script: Script,
    store: KeyStore,
    events: mpsc::Receiver<Event>,
}

fn lab() -> Lab {
    let script = Script::default();
    let (sender, events) = mpsc::channel(8);
    let fetcher = Fetcher::new(Arc::new(InMemory(script.clone())), Roots::System);
    Lab { store: KeyStore::spawn(fetcher, Pace::default(), sender), script, events }
}

impl Lab {
    fn want(&self, sources: &[&str]) {
        self.store.wanted(sources.iter().map(|source| (url(source), FIVE)).collect());
    }

    /// What is told next: the id of the key, or the problem.
    async fn next(&mut self) -> Result<String, String> {
        match timeout(30 * 24 * 60 * MINUTE, self.events.recv()).await {
            Ok(Some(Event::Keys(_, Ok(keys)))) => {
                let read: serde_json::Value = serde_json::from_str(&keys).expect("JSON");
                Ok(read["keys"][0]["kid"].as_str().unwrap_or_default().to_owned())
            }
            Ok(Some(Event::Keys(_, Err(problem)))) => Err(problem),
            other => panic!("{other:?}"),
        }
    }

    async fn quiet_for(&mut self, time: Duration) {
        let told = timeout(time, self.events.recv()).await;
        assert!(told.is_err(), "{told:?}");
    }

    fn asked(&self) -> usize {
        self.script.asked().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotated_set_is_picked_up_within_twenty_minutes() {
    let mut lab = lab();
    lab.script.json("/keys", &key_set("old"));
    lab.want(&[KEYS]);
    assert_eq!(lab.next().await, Ok("old".to_owned()));
    for round in 2..10 {
        lab.quiet_for(19 * MINUTE).await;
        assert_eq!(lab.next().await, Ok("old".to_owned()));
        assert_eq!(lab.asked(), round);
    }
    lab.script.json("/keys", &key_set("new"));
    let since = Instant::now();
    assert_eq!(lab.next().await, Ok("new".to_owned()));
    assert!(since.elapsed() <= 20 * MINUTE);
}

#[tokio::test(start_paused = true)]
async fn the_last_good_set_stays_through_errors_garbage_and_silence() {
    let mut lab = lab();
    lab.script.json("/keys", &key_set("good"));
    lab.want(&[KEYS]);
    assert_eq!(lab.next().await, Ok("good".to_owned()));
    for reply in [
        answer("500 Internal Server Error", &[], ""),
        answer("200 OK", &[], "garbage"),
        answer("200 OK", &[], "{\"keys\":[]}"),
        Reply::Silence,
    ] {
        lab.script.on("/keys", reply);
        lab.quiet_for(60 * MINUTE).await;
    }
    lab.script.json("/keys", &key_set("next"));
    let since = Instant::now();
    assert_eq!(lab.next().await, Ok("next".to_owned()));
    assert!(since.elapsed() <= 6 * MINUTE, "after a failure it is tried sooner");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_cannot_be_fetched_for_a_week_is_given_up() {
    let mut lab = lab();
    lab.script.json("/keys", &key_set("good"));
    lab.want(&[KEYS]);
    assert_eq!(lab.next().await, Ok("good".to_owned()));
    let since = Instant::now();
    lab.script.on("/keys", answer("500 Internal Server Error", &[], ""));
    let problem = lab.next().await.expect_err("it is old");
    assert!(problem.contains("answered 500"), "{problem}");
    let days = since.elapsed().as_secs_f64() / 86400.0;
    assert!((7.0..7.1).contains(&days), "{days}");
    lab.script.json("/keys", &key_set("good"));
    assert_eq!(lab.next().await, Ok("good".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_once_and_tried_again_ever_later() {
    let mut lab = lab();
    lab.script.on("/keys", answer("503 Service Unavailable", &[], ""));
    lab.want(&[KEYS]);
    assert!(lab.next().await.is_err());
    let mut gaps = Vec::new();
    let (mut count, mut since) = (lab.asked(), Instant::now());
    while gaps.len() < 10 {
        sleep(Duration::from_millis(100)).await;
        if lab.asked() > count {
            gaps.push(since.elapsed().as_secs_f64().round());
            (count, since) = (lab.asked(), Instant::now());
        }
    }
    assert_eq!(gaps, [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]);
    assert!(lab.events.try_recv().is_err(), "the same problem is no news");
    lab.script.json("/keys", &key_set("there"));
    assert_eq!(lab.next().await, Ok("there".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_source_is_fetched_once_for_all_and_no_more_when_nobody_wants_it() {
    let mut lab = lab();
    lab.script.json("/keys", &key_set("a"));
    lab.want(&[KEYS]);
    assert_eq!(lab.next().await, Ok("a".to_owned()));
    for _ in 0..10 {
        lab.want(&[KEYS]);
    }
    // A longer limit alone starts nothing.
    lab.store.wanted(BTreeMap::from([(url(KEYS), MINUTE)]));
    lab.quiet_for(10 * MINUTE).await;
    assert_eq!(lab.asked(), 1);
    lab.want(&[]);
    lab.quiet_for(120 * MINUTE).await;
    assert_eq!(lab.asked(), 1);
    lab.want(&[KEYS]);
    assert_eq!(lab.next().await, Ok("a".to_owned()), "who wants it again is told again");
}

#[tokio::test(start_paused = true)]
async fn one_silent_source_holds_up_no_other() {
    let mut lab = lab();
    lab.script.on("/silent", Reply::Silence).json("/keys", &key_set("a"));
    lab.want(&["http://idp.example/silent", KEYS]);
    assert_eq!(lab.next().await, Ok("a".to_owned()));
    let problem = lab.next().await.expect_err("silence");
    assert!(problem.contains("http://idp.example/silent was not answered within 5s"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn sources_beyond_the_bound_are_told_so_and_fetched_when_there_is_room() {
    let mut lab = lab();
    let name = |index: usize| format!("http://idp.example/{index:04}");
    let all: BTreeMap<KeySource, Duration> = (0..513).map(|index| (url(&name(index)), FIVE)).collect();
    for index in 0..513 {
        lab.script.json(&format!("/{index:04}"), &key_set(&index.to_string()));
    }
    lab.store.wanted(all.clone());
    let mut problems = Vec::new();
    for _ in 0..513 {
        problems.extend(lab.next().await.err());
    }
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("more than 512 sources"), "{problems:?}");
    let mut fewer = all;
    fewer.remove(&url(&name(0)));
    lab.store.wanted(fewer);
    assert_eq!(lab.next().await, Ok("512".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_the_world_names_is_followed() {
    let Lab { script, store, mut events } = lab();
    script.json("/keys", &key_set("a"));
    let (world, sources) = watch::channel(BTreeMap::new());
    let following = tokio::spawn(async move { store.follow(sources).await });
    world.send_replace(BTreeMap::from([(url(KEYS), FIVE)]));
    let told = timeout(MINUTE, events.recv()).await.expect("it is fetched");
    assert!(matches!(told, Some(Event::Keys(source, Ok(_))) if source == url(KEYS)));
    drop(world);
    following.await.expect("it ends with the world");
}
