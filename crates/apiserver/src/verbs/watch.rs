//! `watch`: a stream of changes, served from the store's ring.
//!
//! A watcher holds no queue of its own: it reads the ring at its own pace, and one that falls out
//! of it is told 410 and cut. Source: API concepts, "Efficient detection of changes", "Streaming lists".

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::convert;
use crate::json;
use crate::negotiate::Shape;
use crate::request::{Query, Target};
use crate::status::{ApiError, ApiResult};
use crate::store::{ChangeKind, Event, Store};
use crate::table;
use crate::verbs::read::{self, Selection};

/// How often a quiet watcher that asked for bookmarks learns the current revision.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// How long a watch lasts unless `timeoutSeconds` says otherwise; clients resume.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
/// A change of many objects is sent in pieces of about this size.
const CHUNK_BYTES: usize = 64 << 10;

/// The annotation of the bookmark that ends the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One watch.
pub(crate) struct Watch {
    store: Arc<Store>,
    target: Target,
    selection: Selection,
    query: Query,
    shape: Shape,
    position: u64,
    initial: Vec<Arc<Value>>,
    mark_end: bool,
    bookmarks: bool,
    deadline: Instant,
    columns_sent: bool,
}

impl Watch {
    /// Checks the parameters and fixes the starting point.
    pub(crate) fn new(store: Arc<Store>, target: Target, query: Query, shape: Shape) -> ApiResult<Self> {
        let selection = Selection::new(&target, &query)?;
        let wanted = read::revision(&query)?;
        let bookmarks = query.flag("allowWatchBookmarks");
        let send_initial = query.text("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        match (send_initial, query.text("resourceVersionMatch")) {
            (Some(_), Some("NotOlderThan")) | (None, None) => {}
            (Some(_), _) => {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            (None, Some(_)) => {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
        }
        let timeout = query.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        let timeout = timeout.map_or(DEFAULT_TIMEOUT, |s| Duration::from_secs(s).min(DEFAULT_TIMEOUT * 24));
        let from_state = send_initial.unwrap_or(matches!(wanted, None | Some(0)));
        let (initial, position) = store.read(|state| {
            let now = state.revision();
            match wanted {
                // Only a store that was made anew, or restored, is behind its clients: they must list again.
                Some(revision) if revision > now => {
                    Err(ApiError::expired(format!("too large resource version: {revision} (current: {now})")))
                }
                _ if from_state => Ok((selection.of(state, &target.resource.store).cloned().collect(), now)),
                Some(revision) if revision > 0 => Ok((Vec::new(), revision)),
                _ => Ok((Vec::new(), now)),
            }
        })?;
        Ok(Self {
            store,
            target,
            selection,
            query,
            shape,
            position,
            initial,
            mark_end: send_initial == Some(true) && bookmarks,
            bookmarks,
            deadline: Instant::now() + timeout,
            columns_sent: false,
        })
    }

    /// Sends until the client leaves, the time is over, or it is too slow.
    pub(crate) async fn run(mut self, out: mpsc::Sender<Bytes>) {
        let deadline = self.deadline;
        tokio::select! {
            _ = self.stream(&out) => {}
            _ = out.closed() => return,
            _ = tokio::time::sleep_until(deadline) => {}
        }
        if self.bookmarks && Instant::now() >= deadline {
            let bookmark = self.bookmark(false);
            let _ = out.try_send(line("BOOKMARK", &bookmark));
        }
    }

    /// Ends (with `None`) when the client is gone or was cut off.
    async fn stream(&mut self, out: &mpsc::Sender<Bytes>) -> Option<()> {
        let mut revisions = self.store.subscribe();
        let mut buffer = Vec::new();
        for object in std::mem::take(&mut self.initial) {
            let shown = self.show(&object);
            buffer.extend_from_slice(&line("ADDED", &shown));
            flush(&mut buffer, out, CHUNK_BYTES).await?;
        }
        if self.mark_end {
            let bookmark = self.bookmark(true);
            buffer.extend_from_slice(&line("BOOKMARK", &bookmark));
        }
        flush(&mut buffer, out, 0).await?;
        let mut next_bookmark = Instant::now() + BOOKMARK_EVERY;
        loop {
            let latest = *revisions.borrow_and_update();
            let (store, selection) = (self.target.resource.store.as_str(), &self.selection);
            let events = self.store.read(|state| {
                state.events_after(self.position, |key| {
                    *key.store == *store && selection.covers(&key.namespace, &key.name)
                })
            });
            match events {
                Ok(events) => {
                    for event in events {
                        self.position = event.revision;
                        if let Some((kind, object)) = self.judge(&event) {
                            let shown = self.show(&object);
                            buffer.extend_from_slice(&line(kind, &shown));
                        }
                        flush(&mut buffer, out, CHUNK_BYTES).await?;
                    }
                    flush(&mut buffer, out, 0).await?;
                    self.position = self.position.max(latest);
                }
                Err(oldest) => {
                    let message = format!("too old resource version: {} ({oldest})", self.position);
                    out.send(line("ERROR", &ApiError::expired(message).to_value())).await.ok()?;
                    return None;
                }
            }
            tokio::select! {
                changed = revisions.changed() => changed.ok()?,
                _ = tokio::time::sleep_until(next_bookmark), if self.bookmarks => {
                    let bookmark = self.bookmark(false);
                    out.send(line("BOOKMARK", &bookmark)).await.ok()?;
                    next_bookmark = Instant::now() + BOOKMARK_EVERY;
                }
            }
        }
    }

    /// What a change means for this watcher: an object may enter or leave its selection.
    fn judge(&self, event: &Event) -> Option<(&'static str, Arc<Value>)> {
        let before = event.previous.as_ref().is_some_and(|o| self.selection.matches(o));
        let after = event.kind != ChangeKind::Deleted && self.selection.matches(&event.object);
        match (before, after) {
            (false, true) => Some(("ADDED", event.object.clone())),
            (true, true) => Some(("MODIFIED", event.object.clone())),
            (true, false) if event.kind == ChangeKind::Deleted => Some(("DELETED", event.object.clone())),
            (true, false) => {
                // The watcher sees the object as it last was for it, at the revision of leaving.
                let mut last = Value::clone(event.previous.as_deref()?);
                json::metadata_mut(&mut last)
                    .insert("resourceVersion".into(), event.revision.to_string().into());
                Some(("DELETED", Arc::new(last)))
            }
            (false, false) => None,
        }
    }

    fn show(&mut self, object: &Value) -> Value {
        let served = convert::to_served(self.target.resource, self.target.version, object);
        match self.shape {
            Shape::Table => {
                let version = json::text(object, &["metadata", "resourceVersion"]).to_owned();
                let metadata = json!({ "resourceVersion": version });
                let mut table = table::render(self.target.resource, [&*served], &metadata, &self.query);
                // Columns are sent once.
                if std::mem::replace(&mut self.columns_sent, true)
                    && let Some(map) = table.as_object_mut()
                {
                    map.insert("columnDefinitions".into(), json!([]));
                }
                table
            }
            Shape::Metadata => read::metadata_only(&served),
            Shape::Plain | Shape::AggregatedDiscovery => served.into_owned(),
        }
    }

    fn bookmark(&self, ends_initial: bool) -> Value {
        let resource = self.target.resource;
        let mut metadata = json!({ "resourceVersion": self.position.to_string(), "creationTimestamp": null });
        if ends_initial && let Some(map) = metadata.as_object_mut() {
            map.insert("annotations".into(), json!({ INITIAL_EVENTS_END: "true" }));
        }
        let kind = match self.shape {
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            Shape::Table => {
                return json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [],
                    "metadata": metadata, "rows": [{
                        "cells": [],
                        "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata },
                    }],
                });
            }
            _ => (resource.kind, resource.api_version(self.target.version)),
        };
        json!({ "kind": kind.0, "apiVersion": kind.1, "metadata": metadata })
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut out = serde_json::to_vec(&json!({ "type": kind, "object": object })).unwrap_or_default();
    out.push(b'\n');
    out.into()
}

/// Sends the buffer when it is larger than `threshold`.
async fn flush(buffer: &mut Vec<u8>, out: &mpsc::Sender<Bytes>, threshold: usize) -> Option<()> {
    if buffer.len() > threshold {
        out.send(std::mem::take(buffer).into()).await.ok()?;
    }
    Some(())
}
