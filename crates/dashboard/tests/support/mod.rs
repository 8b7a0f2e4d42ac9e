//! A mesh on file: the demo shop as its control plane and API told of it.

#![allow(dead_code, reason = "every test uses its part")]

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use maille_dashboard::{AccessKey, Upstream};
use serde_json::Value;

pub(crate) const KEY: &str = "00112233445566778899aabbccddeeff";

const FLOWS: &str = include_str!("../fixtures/flows.json");
const RECENT: &str = include_str!("../fixtures/recent.json");
const PODS: &str = include_str!("../fixtures/pods.json");
const DEPLOYMENTS: &str = include_str!("../fixtures/deployments.json");
const SERVICES: &str = include_str!("../fixtures/services.json");

/// Answers from the files, with times as if they had just been written.
pub(crate) struct Fixture {
    pub(crate) flows: String,
    pub(crate) recent: String,
    pub(crate) away: AtomicBool,
    /// Whether lists of objects are refused.
    pub(crate) lists_nothing: bool,
    /// Whether the control plane takes questions and answers none.
    pub(crate) hangs: AtomicBool,
    pub(crate) asked: AtomicUsize,
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            flows: as_of_now(FLOWS),
            recent: as_of_now(RECENT),
            away: AtomicBool::new(false),
            lists_nothing: false,
            hangs: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        }
    }
}

/// The flows with all times moved so that the last is now.
pub(crate) fn as_of_now(flows: &str) -> String {
    let mut answer: Value = serde_json::from_str(flows).expect("a fixture");
    let list = answer["flows"].as_array_mut().expect("flows");
    let newest = list.iter().filter_map(|f| f["lastSeenMs"].as_u64()).max().unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let moved = u64::try_from(now).expect("before the year 584 million") - newest;
    for flow in list {
        for time in ["firstSeenMs", "lastSeenMs"] {
            flow[time] = (flow[time].as_u64().unwrap_or(0) + moved).into();
        }
    }
    answer.to_string()
}

impl Upstream for Fixture {
    fn get(&self, path: String) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = match path.as_str() {
            _ if self.away.load(Ordering::Relaxed) => Err("connection refused <by> \"nobody\"".to_owned()),
            "/api/v1/pods" if self.lists_nothing => Err("pods is forbidden".to_owned()),
            "/api/v1/pods" => Ok(PODS.to_owned()),
            "/apis/apps/v1/deployments" => Ok(DEPLOYMENTS.to_owned()),
            "/api/v1/services" => Ok(SERVICES.to_owned()),
            path if path.ends_with(":15014/proxy/flows") => Ok(self.flows.clone()),
            path if path.contains(":15014/proxy/flows?since=") => Ok(self.recent.clone()),
            other => Err(format!("nobody asked for {other} so far")),
        };
        let hangs = self.hangs.load(Ordering::Relaxed) && path.contains("/proxy/flows");
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            answer.map(String::into_bytes)
        }
        .boxed()
    }
}

/// Serves the page over `fixture` on a free port, for as long as the test's runtime lives.
pub(crate) fn serve(fixture: Arc<Fixture>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let key = AccessKey::parse(KEY).expect("a key");
    tokio::spawn(async move {
        maille_dashboard::serve(listener, fixture, key, "the wall has it", std::future::pending()).await
    });
    address
}
