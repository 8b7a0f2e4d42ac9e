//! The pools of a worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;

use super::Pool;
use crate::balance::Busy;
use crate::connect::Upstream;
use crate::record::Called;

/// All pools of a worker.
#[derive(Default)]
pub(crate) struct Pools {
    /// Opaque connections, which are in no pool.
    pub(crate) busy: Busy,
    all: RefCell<HashMap<(Upstream, Version), Rc<Pool>, foldhash::fast::RandomState>>,
}

impl Pools {
    /// The pool of an upstream; `called` is asked only when the upstream is new.
    pub(crate) fn pool(
        &self,
        upstream: Upstream,
        version: Version,
        called: impl FnOnce() -> Option<Called>,
    ) -> Rc<Pool> {
        let mut all = self.all.borrow_mut();
        let key = (upstream, version);
        if let Some(pool) = all.get(&key) {
            return pool.clone();
        }
        let pool = Rc::new(Pool {
            upstream: key.0.clone(),
            version,
            called: called(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: tokio::sync::Mutex::new(()),
            failed: RefCell::default(),
            active: Cell::new(0),
            edge: RefCell::default(),
            is_single_until: Cell::default(),
            room: key.0.terms.is_some().then(Arc::default),
        });
        all.insert(key, pool.clone());
        pool
    }

    /// Forgets what nobody has used for `idle`, and connections of older certificates or trust.
    pub(crate) fn sweep(&self, idle: Duration, generation: u64) {
        self.all.borrow_mut().retain(|_, pool| pool.sweep(idle, generation) || Rc::strong_count(pool) > 1);
    }
}
