use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;
use serde_json::json;

use super::*;

fn put(name: &str, value: u64) -> Change {
    Change::Put(
        Key::new("configmaps", "a", name),
        json!({"metadata": {"name": name, "namespace": "a"}, "value": value}),
    )
}

fn commit(store: &Store, changes: Vec<Change>) -> ApiResult<Vec<Arc<Value>>> {
    store.commit(|_| Ok((changes, ()))).map(|(objects, ())| objects)
}

fn names(store: &Store) -> Vec<String> {
    store.read(|s| s.list("configmaps", Some("a")).map(|o| json::name(o).to_owned()).collect())
}

#[test]
fn what_was_committed_is_there_after_reopening_and_revisions_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    let last = {
        let store = Store::open(&path, RingLimits::default()).expect("opened");
        commit(&store, vec![put("x", 1), put("y", 1)]).expect("committed");
        commit(&store, vec![put("x", 2), Change::Delete(Key::new("configmaps", "a", "y"))])
            .expect("committed");
        store.read(State::revision)
    };
    let store = Store::open(&path, RingLimits::default()).expect("opened again");
    assert_eq!(names(&store), ["x"]);
    assert_eq!(store.read(State::revision), last);
    let object = store.read(|s| s.get("configmaps", "a", "x").cloned()).expect("there");
    assert_eq!(object["value"], 2);
    assert_eq!(object["metadata"]["resourceVersion"], "3");
    // Changes from before are forgotten: who watched must list again.
    assert!(store.read(|s| s.events_after(1, |_| true)).is_err());
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).expect("a file"));
    assert_eq!(mode & 0o777, 0o600, "keys are in it");
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    let _first = Store::open(&path, RingLimits::default()).expect("opened");
    let error = Store::open(&path, RingLimits::default()).err().expect("refused");
    assert!(matches!(error, StoreError::AlreadyOpen(_)), "{error}");
    assert!(error.to_string().contains("maille down"), "{error}");
}

/// A file that can be made to refuse writes, as a full disk does.
#[derive(Debug)]
struct Failing(FileBackend, Arc<AtomicBool>);

impl Failing {
    fn gate(&self) -> Result<(), std::io::Error> {
        if self.1.load(Ordering::SeqCst) { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.gate()?;
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.gate()?;
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.gate()?;
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), std::io::Error> {
        self.0.close()
    }
}

#[test]
fn a_full_disk_refuses_the_change_keeps_the_rest_and_heals() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    let full = Arc::new(AtomicBool::new(false));
    let (file, gate) = (path.clone(), full.clone());
    let opener: disk::Opener = Box::new(move || {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file)?;
        redb::Builder::new().create_with_backend(Failing(FileBackend::new(file)?, gate.clone()))
    });
    let disk = Disk::with_opener(&path, opener).expect("opened");
    let store = Store::load(&path, disk, RingLimits::default()).expect("loaded");
    commit(&store, vec![put("x", 1)]).expect("committed");
    let revision = store.read(State::revision);
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = commit(&store, vec![put("x", 2), put("y", 2)]).expect_err("the disk is full");
        assert_eq!(error.code, 500);
    }
    // Readers see what was there, and nothing of what failed.
    assert_eq!(names(&store), ["x"]);
    assert_eq!(store.read(State::revision), revision);
    full.store(false, Ordering::SeqCst);
    let objects = commit(&store, vec![put("x", 3)]).expect("there is room again");
    assert_eq!(objects[0]["metadata"]["resourceVersion"], (revision + 1).to_string());
    drop(store);
    let store = Store::open(&path, RingLimits::default()).expect("opened again");
    assert_eq!(store.read(|s| s.get("configmaps", "a", "x").cloned()).expect("there")["value"], 3);
    assert_eq!(names(&store), ["x"]);
}

#[test]
fn the_ring_is_bounded_in_number_and_size_and_shows_the_past() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = RingLimits { events: 4, bytes: 1 << 20 };
    let store = Store::open(&dir.path().join("s"), limits).expect("opened");
    for i in 0..6 {
        commit(&store, vec![put(&format!("m{i}"), i)]).expect("committed");
    }
    assert_eq!(store.read(|s| s.events_after(1, |_| true)).expect_err("forgotten"), 2);
    let events = store.read(|s| s.events_after(2, |_| true)).expect("remembered");
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [3, 4, 5, 6]);
    commit(&store, vec![Change::Delete(Key::new("configmaps", "a", "m0"))]).expect("deleted");
    let past = store.read(|s| s.list_at("configmaps", Some("a"), 5)).expect("remembered");
    assert_eq!(past.iter().map(|o| json::name(o)).collect::<Vec<_>>(), ["m0", "m1", "m2", "m3", "m4"]);
    let small = RingLimits { events: 100, bytes: 300 };
    let store = Store::open(&dir.path().join("t"), small).expect("opened");
    for i in 0..20 {
        commit(&store, vec![put("x", i)]).expect("committed");
    }
    assert!(store.read(|s| s.events_after(1, |_| true)).is_err());
}
