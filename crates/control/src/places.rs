//! How many connections one address may have open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The places of every address.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    each: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place {
    address: IpAddr,
    places: Places,
}

impl Places {
    /// So many for each address.
    pub(crate) fn new(each: usize) -> Self {
        Self { each, taken: Arc::default() }
    }

    /// Takes one; `None` if the address has none left.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock();
        let count = taken.entry(address).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Place { address, places: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_per_address_and_freed() {
        let places = Places::new(2);
        let (a, b) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = places.take(a).expect("free");
        let _second = places.take(a).expect("free");
        assert!(places.take(a).is_none());
        assert!(places.take(b).is_some(), "another address is not concerned");
        drop(first);
        assert!(places.take(a).is_some());
        assert_eq!(places.taken.lock().len(), 1, "addresses without connections are forgotten");
    }
}
