//! A Kubernetes API in memory, behind a `kube::Client` without a socket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// Plural, namespace (empty for cluster scope), name.
type Id = (String, String, String);

#[derive(Clone)]
pub(super) struct FakeApi(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<(String, Value)>,
    away: AtomicBool,
    status_writes: AtomicUsize,
    /// Names of objects that nobody may read or write, and how often somebody has tried.
    forbidden: Mutex<BTreeMap<String, usize>>,
    /// What creating a ConfigMap comes to, unless it is allowed.
    creations: Mutex<Option<StatusCode>>,
    /// The next creation finds that someone else was faster with this object.
    race: Mutex<Option<Value>>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Id, Value>,
    /// Every event there was: version, plural, event.
    log: Vec<(u64, String, Value)>,
}

impl FakeApi {
    pub(super) fn new() -> Self {
        let state = Mutex::default();
        let events = broadcast::Sender::new(256);
        Self(Arc::new(Inner {
            state,
            events,
            away: AtomicBool::new(false),
            status_writes: AtomicUsize::new(0),
            forbidden: Mutex::default(),
            creations: Mutex::default(),
            race: Mutex::default(),
        }))
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// From now on nothing is answered but errors, and watches have ended.
    pub(super) fn set_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
        let _ = self.0.events.send(("end".into(), Value::Null));
    }

    /// From now on, what asks for an object of this name is answered as by RBAC.
    pub(super) fn forbid(&self, name: &str) {
        self.0.forbidden.lock().expect("lock").insert(name.to_owned(), 0);
    }

    /// The end of that; gives how often it was tried.
    pub(super) fn permit(&self, name: &str) -> Option<usize> {
        self.0.forbidden.lock().expect("lock").remove(name)
    }

    /// From now on, whoever creates a ConfigMap is answered this; `None`: what they ask for.
    pub(super) fn answer_creations(&self, code: Option<StatusCode>) {
        *self.0.creations.lock().expect("lock") = code;
    }

    /// How often an object was asked for in vain.
    pub(super) fn tried(&self, name: &str) -> usize {
        self.0.forbidden.lock().expect("lock").get(name).copied().unwrap_or_default()
    }

    pub(super) fn lose_race_against(&self, object: Value) {
        *self.0.race.lock().expect("lock") = Some(object);
    }

    pub(super) fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.0.state.lock().expect("lock");
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let id = id(plural, &object);
        let known = state.objects.insert(id, object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        self.tell(&mut state, plural, json!({ "type": kind, "object": object }));
    }

    pub(super) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.0.state.lock().expect("lock");
        state.version += 1;
        if let Some(mut object) = state.objects.remove(&(plural.into(), namespace.into(), name.into())) {
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            self.tell(&mut state, plural, json!({ "type": "DELETED", "object": object }));
        }
    }

    fn tell(&self, state: &mut State, plural: &str, event: Value) {
        state.log.push((state.version, plural.to_owned(), event.clone()));
        let _ = self.0.events.send((plural.to_owned(), event));
    }

    pub(super) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.0.state.lock().expect("lock");
        state.objects.get(&(plural.into(), namespace.into(), name.into())).cloned()
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        if self.0.away.load(Ordering::SeqCst) {
            return status(StatusCode::SERVICE_UNAVAILABLE, "away");
        }
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let body = to_bytes(Body::new(body), 1 << 20).await.expect("body");
        let selected = query.replace("%3D", "=");
        let selected = selected.split(['&', '=']).collect::<Vec<_>>();
        if let Some((_, tried)) = self.0.forbidden.lock().expect("lock").iter_mut().find(|(name, _)| {
            path.rsplit('/').next() == Some(name.as_str()) || selected.contains(&name.as_str())
        }) {
            *tried += 1;
            return status(StatusCode::FORBIDDEN, "forbidden");
        }
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let rest = if segments[0] == "api" { &segments[2..] } else { &segments[3..] };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural, name @ ..] => (*namespace, *plural, name),
            [plural, name @ ..] => ("", *plural, name),
            [] => return status(StatusCode::NOT_FOUND, "path"),
        };
        let (name, is_status) = (name.first().copied(), name.get(1) == Some(&"status"));
        match (parts.method, name) {
            (Method::PATCH, Some(name)) if is_status => {
                let patch = serde_json::from_slice(&body).expect("JSON");
                self.patch_status((plural.to_owned(), namespace.to_owned(), name.to_owned()), patch)
            }
            (Method::GET, Some(name)) => match self.get(plural, namespace, name) {
                Some(object) => reply(StatusCode::OK, &object),
                None => status(StatusCode::NOT_FOUND, "not found"),
            },
            (Method::GET, None) if query.contains("watch=true") => self.watch(plural, &query),
            (Method::GET, None) => self.list(plural, &query),
            (Method::POST, None) => {
                let mut object: Value = serde_json::from_slice(&body).expect("JSON");
                if plural == "tokenreviews" {
                    return reply(StatusCode::CREATED, &review(&object));
                }
                if let Some(faster) = self.0.race.lock().expect("lock").take() {
                    self.put(plural, faster);
                }
                if let Some(code) = *self.0.creations.lock().expect("lock")
                    && plural == "configmaps"
                {
                    return status(code, "not now");
                }
                object["metadata"]["namespace"] = json!(namespace);
                let name = object["metadata"]["name"].as_str().expect("name");
                if self.get(plural, namespace, name).is_some() {
                    return status(StatusCode::CONFLICT, "already exists");
                }
                self.put(plural, object.clone());
                reply(StatusCode::CREATED, &object)
            }
            (Method::PATCH, Some(name)) => {
                let patch: Value = serde_json::from_slice(&body).expect("JSON");
                let Some(mut object) = self.get(plural, namespace, name) else {
                    return status(StatusCode::NOT_FOUND, "not found");
                };
                for (key, value) in patch["data"].as_object().expect("data") {
                    match value {
                        Value::Null => drop(object["data"].as_object_mut().expect("data").remove(key)),
                        value => object["data"][key] = value.clone(),
                    }
                }
                self.put(plural, object.clone());
                reply(StatusCode::OK, &object)
            }
            (Method::PUT, Some(name)) => {
                let object: Value = serde_json::from_slice(&body).expect("JSON");
                let Some(known) = self.get(plural, namespace, name) else {
                    return status(StatusCode::NOT_FOUND, "not found");
                };
                let wanted = &object["metadata"]["resourceVersion"];
                if !wanted.is_null() && *wanted != known["metadata"]["resourceVersion"] {
                    return status(StatusCode::CONFLICT, "the object has been modified");
                }
                self.put(plural, object.clone());
                reply(StatusCode::OK, &object)
            }
            (Method::DELETE, Some(name)) => {
                let Some(known) = self.get(plural, namespace, name) else {
                    return status(StatusCode::NOT_FOUND, "not found");
                };
                let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
                let wanted = &asked["preconditions"]["resourceVersion"];
                if !wanted.is_null() && *wanted != known["metadata"]["resourceVersion"] {
                    return status(StatusCode::CONFLICT, "the object has been modified");
                }
                self.delete(plural, namespace, name);
                reply(StatusCode::OK, &known)
            }
            (method, _) => status(StatusCode::METHOD_NOT_ALLOWED, method.as_str()),
        }
    }

    /// A merge patch of the status, which changes nothing else.
    fn patch_status(&self, (plural, namespace, name): Id, patch: Value) -> Response<Body> {
        let Some(mut object) = self.get(&plural, &namespace, &name) else {
            return status(StatusCode::NOT_FOUND, "not found");
        };
        let wanted = &patch["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
            return status(StatusCode::CONFLICT, "the object has been modified");
        }
        match &patch["status"] {
            Value::Null => drop(object.as_object_mut().expect("object").remove("status")),
            new => {
                for (key, value) in new.as_object().expect("status") {
                    object["status"][key] = value.clone();
                }
            }
        }
        self.0.status_writes.fetch_add(1, Ordering::SeqCst);
        self.put(&plural, object.clone());
        reply(StatusCode::OK, &object)
    }

    /// Watches that are open.
    pub(super) fn watchers(&self) -> usize {
        self.0.events.receiver_count()
    }

    /// How often a status was written.
    pub(super) fn status_writes(&self) -> usize {
        self.0.status_writes.load(Ordering::SeqCst)
    }

    /// All objects of a kind.
    pub(super) fn all(&self, plural: &str) -> Vec<Value> {
        let state = self.0.state.lock().expect("lock");
        state.objects.iter().filter(|(id, _)| id.0 == plural).map(|(_, object)| object.clone()).collect()
    }

    fn list(&self, plural: &str, query: &str) -> Response<Body> {
        let state = self.0.state.lock().expect("lock");
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(id, o)| id.0 == plural && selected(query, o))
            .map(|(_, o)| o)
            .collect();
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": state.version.to_string() },
            "items": items,
        });
        reply(StatusCode::OK, &list)
    }

    fn watch(&self, plural: &str, query: &str) -> Response<Body> {
        let (wanted, query) = (plural.to_owned(), query.to_owned());
        let since: u64 = query
            .split('&')
            .find_map(|p| p.strip_prefix("resourceVersion="))
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let state = self.0.state.lock().expect("lock");
        let missed: Vec<Value> = state
            .log
            .iter()
            .filter(|(version, plural, event)| {
                *version > since && *plural == wanted && selected(&query, &event["object"])
            })
            .map(|(_, _, event)| event.clone())
            .collect();
        let live = BroadcastStream::new(self.0.events.subscribe());
        drop(state);
        let live = live
            .take_while(|e| std::future::ready(e.as_ref().is_ok_and(|(plural, _)| plural != "end")))
            .filter_map(move |event| {
                let event = event.ok().filter(|(p, e)| *p == wanted && selected(&query, &e["object"]));
                std::future::ready(event.map(|(_, e)| e))
            });
        let lines = futures::stream::iter(missed).chain(live);
        let lines = lines.map(|event| Ok::<_, std::convert::Infallible>(format!("{event}\n")));
        Response::builder().body(Body::from_stream(lines)).expect("response")
    }
}

fn selected(query: &str, object: &Value) -> bool {
    !query.contains("metadata.name") || query.contains(object["metadata"]["name"].as_str().unwrap_or("?"))
}

fn id(plural: &str, object: &Value) -> Id {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (plural.to_owned(), text("namespace"), text("name"))
}

/// Tokens read `<namespace>:<account>`.
fn review(review: &Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let mut answer = review.clone();
    answer["status"] = match token.split_once(':') {
        Some((namespace, account)) => json!({
            "authenticated": true,
            "audiences": review["spec"]["audiences"],
            "user": {
                "username": format!("system:serviceaccount:{namespace}:{account}"),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}")],
            },
        }),
        None => json!({ "authenticated": false, "error": "no such token" }),
    };
    answer
}

fn reply(code: StatusCode, value: &Value) -> Response<Body> {
    let builder = Response::builder().status(code).header("content-type", "application/json");
    builder.body(Body::from(value.to_string())).expect("response")
}

fn status(code: StatusCode, message: &str) -> Response<Body> {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "AlreadyExists",
        _ => "InternalError",
    };
    let value = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    reply(code, &value)
}
