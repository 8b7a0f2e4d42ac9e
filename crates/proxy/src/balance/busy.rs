//! How many opaque connections each endpoint carries for this worker: what the less busy of two is told by.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Busy(RefCell<HashMap<SocketAddr, Rc<Cell<usize>>, foldhash::fast::RandomState>>);

/// One connection, while it is open.
#[derive(Debug)]
pub(crate) struct Engaged<'a> {
    busy: &'a Busy,
    address: SocketAddr,
    count: Rc<Cell<usize>>,
}

impl Busy {
    /// Connections to an endpoint.
    pub(crate) fn with(&self, address: SocketAddr) -> usize {
        self.0.borrow().get(&address).map_or(0, |count| count.get())
    }

    /// One more.
    pub(crate) fn engage(&self, address: SocketAddr) -> Engaged<'_> {
        let count = self.0.borrow_mut().entry(address).or_default().clone();
        count.set(count.get() + 1);
        Engaged { busy: self, address, count }
    }
}

impl Drop for Engaged<'_> {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
        if self.count.get() == 0 {
            self.busy.0.borrow_mut().remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_while_they_are_open_and_leave_nothing_behind() {
        let (busy, address) = (Busy::default(), SocketAddr::from(([10, 0, 0, 1], 80)));
        let (one, two) = (busy.engage(address), busy.engage(address));
        assert_eq!(busy.with(address), 2);
        drop(one);
        assert_eq!(busy.with(address), 1);
        drop(two);
        assert!(busy.0.borrow().is_empty());
    }
}
