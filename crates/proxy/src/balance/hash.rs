//! Consistent hashing that agrees with Envoy's: a sidecar of either kind sends equal keys to equal endpoints.
//!
//! The hash is xxHash64 (xxhash.com, specification 0.1.1); ring and table are built as Envoy 1.40 builds them
//! (`ring_hash_lb.cc`, `maglev_lb.cc`).

/// Places of a ring at most; Envoy's own bound is eight times as large, and so is what it would hold.
const MAX_RING: u64 = 1 << 20;
/// Places of Maglev's table at most: Envoy's own bound.
const MAX_TABLE: u64 = 5_000_011;

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// xxHash64 of `data`.
pub(crate) fn xxh64(data: &[u8], seed: u64) -> u64 {
    let (stripes, rest) = data.as_chunks::<32>();
    let mut hash = if stripes.is_empty() {
        seed.wrapping_add(P5)
    } else {
        let mut lanes =
            [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let [a, b, c, d] = lanes;
        let mut hash = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
        }
        hash
    };
    hash = hash.wrapping_add(data.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(P5);
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

/// Where keys lie. Holds indices of endpoints.
#[derive(Debug)]
pub(crate) enum Table {
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

/// An endpoint as a table is made of it: its `address:port`, and its weight.
pub(crate) type Place<'a> = (&'a str, u32);

/// What part of all weight an endpoint has. Divided as Envoy divides: otherwise rounding would tell apart what is equal.
fn shares(places: &[Place<'_>]) -> impl Fn(&Place<'_>) -> f64 + use<> {
    let total: f64 = places.iter().map(|(_, weight)| f64::from(*weight)).sum();
    move |(_, weight)| f64::from(*weight) / total
}

impl Table {
    pub(crate) fn ring(places: &[Place<'_>], minimum: u64) -> Self {
        let share = shares(places);
        let least = places.iter().map(&share).fold(1.0, f64::min);
        let minimum = minimum.clamp(1, MAX_RING) as f64;
        // The lightest endpoint gets a whole number of places, and the others in proportion.
        let scale = ((least * minimum).ceil() / least).min(MAX_RING as f64);
        let mut ring = Vec::new();
        let (mut current, mut target) = (0.0, 0.0);
        let mut key = String::new();
        for (index, place) in places.iter().enumerate() {
            target += scale * share(place);
            let mut number: u64 = 0;
            while current < target {
                key.clear();
                key.push_str(place.0);
                key.push('_');
                key.push_str(&number.to_string());
                ring.push((xxh64(key.as_bytes(), 0), index as u32));
                number += 1;
                current += 1.0;
            }
        }
        ring.sort_unstable();
        Self::Ring(ring.into())
    }

    pub(crate) fn maglev(places: &[Place<'_>], size: u64) -> Self {
        let size = size.clamp(2, MAX_TABLE);
        let share = shares(places);
        let heaviest = places.iter().map(&share).fold(0.0, f64::max);
        // In the order of their names: whoever was told of the same endpoints in another order finds the same.
        let mut sorted: Vec<_> = (0_u32..).zip(places).collect();
        sorted.sort_unstable_by_key(|(_, (name, _))| *name);
        let mut builders: Vec<_> = sorted
            .into_iter()
            .map(|(index, place)| {
                let offset = xxh64(place.0.as_bytes(), 0) % size;
                let skip = xxh64(place.0.as_bytes(), 1) % (size - 1) + 1;
                (index, offset, skip, share(place), 0.0_f64, 0_u64)
            })
            .collect();
        let mut table = vec![u32::MAX; usize::try_from(size).unwrap_or_default()];
        let mut left = if builders.is_empty() { 0 } else { table.len() };
        let mut turn = 0.0;
        while left > 0 {
            turn += 1.0;
            for (index, offset, skip, share, target, next) in &mut builders {
                if left == 0 {
                    break;
                }
                // A lighter endpoint misses turns.
                if turn * *share < *target {
                    continue;
                }
                *target += heaviest;
                // A size that is no prime might never offer this endpoint a free place.
                for _ in 0..size {
                    let at = (*offset + *skip * *next) % size;
                    *next += 1;
                    if let Some(free) = table.get_mut(at as usize).filter(|place| **place == u32::MAX) {
                        *free = *index;
                        left -= 1;
                        break;
                    }
                }
            }
            // Every endpoint was offered every place in vain.
            if turn > size as f64 {
                break;
            }
        }
        if let Some((index, ..)) = builders.last() {
            table.iter_mut().filter(|place| **place == u32::MAX).for_each(|place| *place = *index);
        }
        Self::Maglev(table.into())
    }

    /// The endpoint for a key at the `attempt`-th look.
    pub(crate) fn find(&self, hash: u64, attempt: usize) -> Option<usize> {
        let index = match self {
            Self::Ring(ring) => {
                let first = ring.partition_point(|(place, _)| *place < hash);
                ring.get((first + attempt) % ring.len().max(1)).map(|(_, index)| *index)
            }
            Self::Maglev(table) => {
                let hash = match attempt as u64 {
                    0 => hash,
                    attempt => hash ^ (u64::MAX - attempt + 1),
                };
                let at = hash.checked_rem(table.len() as u64)?;
                table.get(usize::try_from(at).ok()?).copied()
            }
        };
        index.filter(|index| *index != u32::MAX).map(|index| index as usize)
    }

    /// How many places there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.len(),
            Self::Maglev(table) => table.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_xxhash64() {
        // Values of the reference implementation.
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a", 0), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xFBCE_A83C_8A37_8BF1);
    }

    fn share(table: &Table, wanted: usize) -> usize {
        (0..10_000_u32).filter(|n| table.find(xxh64(&n.to_le_bytes(), 0), 0) == Some(wanted)).count()
    }

    #[test]
    fn equal_keys_find_equal_endpoints_and_weights_are_kept() {
        let places = [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.3:80", 2)];
        for table in [Table::ring(&places, 4096), Table::maglev(&places, 65_537)] {
            let shares = [share(&table, 0), share(&table, 1), share(&table, 2)];
            assert!(shares[0] + shares[1] + shares[2] == 10_000, "{shares:?}");
            assert!((4_500..5_500).contains(&shares[2]), "{shares:?}");
            assert_eq!(table.find(7, 0), table.find(7, 0));
        }
    }

    #[test]
    fn the_order_in_which_endpoints_are_told_changes_nothing_where_shares_are_whole() {
        // Of a ring with others, the order decides who gets the place that is left, as in Envoy.
        let places = [("10.0.0.3:80", 1), ("10.0.0.1:80", 3), ("10.0.0.2:80", 1)];
        let mut others = places;
        others.reverse();
        let pairs = [
            (Table::ring(&places, 1024), Table::ring(&others, 1024)),
            (Table::maglev(&places, 1009), Table::maglev(&others, 1009)),
        ];
        for (first, second) in pairs {
            for n in 0..1_000_u32 {
                let hash = xxh64(&n.to_le_bytes(), 0);
                let found = first.find(hash, 0).map(|index| places[index]);
                assert_eq!(second.find(hash, 0).map(|index| others[index]), found);
            }
        }
    }

    #[test]
    fn a_lost_endpoint_moves_only_its_own_keys() {
        let all = [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];
        let [first, second, _] = all;
        let name = |table: &Table, places: &[Place<'_>], hash| {
            table.find(hash, 0).and_then(|index| places.get(index)).map(|place| place.0.to_owned())
        };
        let (before, after) = (Table::ring(&all, 999), Table::ring(&[first, second], 666));
        for n in 0..1_000_u32 {
            let hash = xxh64(&n.to_le_bytes(), 0);
            let was = name(&before, &all, hash);
            if was.as_deref() != Some("10.0.0.3:80") {
                assert_eq!(name(&after, &[first, second], hash), was);
            }
        }
    }

    #[test]
    fn odd_tables_end_and_empty_ones_hold_nobody() {
        let places = [("10.0.0.1:80", 1), ("10.0.0.2:80", 1)];
        for size in [0, 1, 2, 4, 6, 8] {
            let table = Table::maglev(&places, size);
            assert!((0..20).all(|hash| table.find(hash, 0).is_some_and(|index| index < 2)), "{size}");
        }
        assert_eq!(Table::ring(&[], 1024).find(1, 0), None);
        assert_eq!(Table::maglev(&[], 7).find(1, 0), None);
    }
}
