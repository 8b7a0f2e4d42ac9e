//! How many connections one address may have open: the whole is bounded, and no Pod may have it all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections of one Pod: a client has a few, even one with many watches over HTTP/1.1.
const EACH: usize = 64;
/// Connections from this machine, where the supervisor and people are.
const LOCAL: usize = 512;

/// Who has how many.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// Takes one; `None` if the address has none left.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let most = if address.is_loopback() { LOCAL } else { EACH };
        let mut taken = self.0.lock();
        let count = taken.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
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
    fn one_pod_cannot_take_every_place() {
        let places = Places::default();
        let (greedy, other) = (IpAddr::from([10, 244, 1, 2]), IpAddr::from([10, 244, 1, 3]));
        let held: Vec<_> = std::iter::from_fn(|| places.take(greedy)).collect();
        assert_eq!(held.len(), EACH);
        assert!(places.take(other).is_some() && places.take([127, 0, 0, 1].into()).is_some());
        drop(held);
        assert!(places.take(greedy).is_some() && places.0.lock().is_empty());
    }
}
