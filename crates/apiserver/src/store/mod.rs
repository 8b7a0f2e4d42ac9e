//! Objects: in memory for reading, in one redb file for keeping.
//!
//! One writer at a time decides on the state it sees, writes one transaction to disk, and only then
//! changes what readers see. So what was answered survives a crash, and what failed never happened.

mod disk;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::watch;

pub(crate) use disk::Disk;
pub(crate) use ring::{ChangeKind, Event, RingLimits};

use crate::json;
use crate::status::{ApiError, ApiResult};

/// What the store can fail with.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{} is open already: another Maille runs on this data directory; stop it with `maille down`, or choose another --data-dir", .0.display())]
    AlreadyOpen(PathBuf),
    /// Written by a later version.
    #[error("{} has format {found}, and this version knows formats up to {known}: use the newer maille that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The highest known.
        known: u64,
    },
    /// A row that is no object.
    #[error("{}: row '{key}' cannot be read: {why}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file system or the database failed.
    #[error("cannot use {}: {}", .0.display(), explain(.1))]
    Disk(PathBuf, Box<redb::Error>),
}

/// The likely cause in people's words.
fn explain(error: &redb::Error) -> String {
    match error {
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::QuotaExceeded => {
            "the disk quota is used up".to_owned()
        }
        other => other.to_string(),
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed; nothing was changed");
        ApiError::internal(error)
    }
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// [`crate::resources::Resource::store`].
    pub(crate) store: Arc<str>,
    /// Empty for what is in no namespace.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(store: &str, namespace: &str, name: &str) -> Self {
        Self { store: store.into(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn row(&self) -> String {
        format!("{}\0{}\0{}", self.store, self.namespace, self.name)
    }

    fn parse(row: &str) -> Option<Self> {
        let mut parts = row.split('\0');
        let key = Self::new(parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some(key)
    }
}

type Place = (String, String);

/// What readers see: a consistent state at one revision.
pub(crate) struct State {
    objects: HashMap<Arc<str>, BTreeMap<Place, Arc<Value>>>,
    revision: u64,
    ring: ring::Ring,
}

impl State {
    /// The revision of the last change.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// One object.
    pub(crate) fn get(&self, store: &str, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(store)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Objects of a store in one namespace, or in all when it is `None`, ordered by namespace and name.
    pub(crate) fn list<'a>(
        &'a self,
        store: &str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Value>> {
        let start = match namespace {
            Some(ns) => Bound::Included((ns.to_owned(), String::new())),
            None => Bound::Unbounded,
        };
        self.objects
            .get(store)
            .into_iter()
            .flat_map(move |objects| objects.range((start.clone(), Bound::Unbounded)))
            .take_while(move |((ns, _), _)| namespace.is_none_or(|wanted| wanted == ns))
            .map(|(_, object)| object)
    }

    /// Every object of every store.
    pub(crate) fn everything(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Value>)> {
        self.objects.iter().flat_map(|(store, objects)| objects.values().map(move |o| (store, o)))
    }

    /// Objects of a store as they were at `revision`; `None` when that is forgotten.
    pub(crate) fn list_at(
        &self,
        store: &str,
        namespace: Option<&str>,
        revision: u64,
    ) -> Option<Vec<Arc<Value>>> {
        let inside = |key: &Key| *key.store == *store && namespace.is_none_or(|ns| ns == key.namespace);
        let mut objects: BTreeMap<Place, Arc<Value>> = self
            .list(store, namespace)
            .map(|o| ((json::namespace(o).to_owned(), json::name(o).to_owned()), o.clone()))
            .collect();
        for event in self.ring.after(revision)?.rev().filter(|e| inside(&e.key)) {
            let place = (event.key.namespace.clone(), event.key.name.clone());
            match &event.previous {
                Some(before) => objects.insert(place, before.clone()),
                None => objects.remove(&place),
            };
        }
        Some(objects.into_values().collect())
    }

    /// Changes after `revision` that `wanted` picks, or the oldest revision one can go on from.
    pub(crate) fn events_after(
        &self,
        revision: u64,
        wanted: impl Fn(&Key) -> bool,
    ) -> Result<Vec<Arc<Event>>, u64> {
        match self.ring.after(revision) {
            Some(events) => Ok(events.filter(|e| wanted(&e.key)).cloned().collect()),
            None => Err(self.ring.oldest()),
        }
    }
}

/// A change that a writer asks for. `resourceVersion` is set by the commit.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Key, Value),
    Delete(Key),
}

/// The store; cheap to share.
pub(crate) struct Store {
    disk: Mutex<Disk>,
    path: PathBuf,
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

impl Store {
    /// Opens the store in `path`, and reads it whole.
    pub(crate) fn open(path: &Path, limits: RingLimits) -> Result<Self, StoreError> {
        Self::load(path, Disk::open(path)?, limits)
    }

    pub(crate) fn load(path: &Path, mut disk: Disk, limits: RingLimits) -> Result<Self, StoreError> {
        let loaded = disk.load()?;
        let mut objects: HashMap<Arc<str>, BTreeMap<Place, Arc<Value>>> = HashMap::new();
        for (row, bytes) in loaded.rows {
            let bad =
                |why: String| StoreError::Row { path: path.to_owned(), key: row.replace('\0', "/"), why };
            let key = Key::parse(&row).ok_or_else(|| bad("not of the form store/namespace/name".into()))?;
            let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
            objects.entry(key.store).or_default().insert((key.namespace, key.name), Arc::new(value));
        }
        let revision = loaded.revision;
        let state = State { objects, revision, ring: ring::Ring::new(revision, limits) };
        Ok(Self {
            disk: Mutex::new(disk),
            path: path.to_owned(),
            state: RwLock::new(state),
            revision: watch::Sender::new(revision),
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the current state; keep it short.
    pub(crate) fn read<T>(&self, reader: impl FnOnce(&State) -> T) -> T {
        reader(&self.state.read())
    }

    /// Told the latest revision after each commit.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Lets `decide` see the state and ask for changes, and makes them durable and visible together.
    ///
    /// Writers come one after the other, so nothing changes between the decision and the commit.
    /// Answers the objects as committed, in the order of the changes (for a deletion: its last state).
    /// Blocks on the disk: call it where blocking is allowed.
    pub(crate) fn commit<T>(
        &self,
        decide: impl FnOnce(&State) -> ApiResult<(Vec<Change>, T)>,
    ) -> ApiResult<(Vec<Arc<Value>>, T)> {
        let mut disk = self.disk.lock();
        let (changes, answer) = decide(&self.state.read())?;
        if changes.is_empty() {
            return Ok((Vec::new(), answer));
        }
        let (events, rows, revision) = self.plan(changes)?;
        disk.commit(revision, &rows)?;
        let mut objects = Vec::with_capacity(events.len());
        {
            let mut state = self.state.write();
            for event in events {
                let place = (event.key.namespace.clone(), event.key.name.clone());
                let store = state.objects.entry(event.key.store.clone()).or_default();
                match event.kind {
                    ChangeKind::Deleted => store.remove(&place),
                    _ => store.insert(place, event.object.clone()),
                };
                objects.push(event.object.clone());
                state.ring.push(Arc::new(event));
            }
            state.revision = revision;
        }
        drop(disk);
        self.revision.send_replace(revision);
        Ok((objects, answer))
    }

    /// Numbers the changes and writes them out as rows.
    fn plan(&self, changes: Vec<Change>) -> ApiResult<(Vec<Event>, Vec<disk::Row>, u64)> {
        let state = self.state.read();
        let mut revision = state.revision;
        let mut rows = Vec::with_capacity(changes.len());
        let mut events: Vec<Event> = Vec::with_capacity(changes.len());
        for change in changes {
            let (key, value) = match change {
                Change::Put(key, value) => (key, Some(value)),
                Change::Delete(key) => (key, None),
            };
            let earlier = events.iter().rev().find(|e| e.key == key);
            let previous = match earlier {
                Some(event) if event.kind == ChangeKind::Deleted => None,
                Some(event) => Some(event.object.clone()),
                None => state.get(&key.store, &key.namespace, &key.name).cloned(),
            };
            let kind = match (&value, &previous) {
                (None, None) => continue,
                (None, Some(_)) => ChangeKind::Deleted,
                (Some(_), None) => ChangeKind::Added,
                (Some(_), Some(_)) => ChangeKind::Modified,
            };
            revision += 1;
            let mut object = match (value, &previous) {
                (Some(value), _) => value,
                (None, Some(previous)) => Value::clone(previous),
                (None, None) => continue,
            };
            json::metadata_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
            let bytes = serde_json::to_vec(&object).map_err(ApiError::internal)?;
            let size = bytes.len();
            rows.push((key.row(), (kind != ChangeKind::Deleted).then_some(bytes)));
            events.push(Event::new(revision, kind, key, Arc::new(object), previous, size));
        }
        Ok((events, rows, revision))
    }

    /// A value of the server itself, made by `make` the first time.
    pub(crate) fn setting<E: From<StoreError>>(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let mut disk = self.disk.lock();
        if let Some(found) = disk.setting(name)? {
            return Ok(found);
        }
        let made = make()?;
        disk.set_setting(name, &made)?;
        Ok(made)
    }
}
