//! Address blocks (reference authorization 13).

use std::net::IpAddr;

/// An inclusive range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Block {
    /// IPv4: network and prefix length.
    V4(u32, u8),
    /// IPv6: network and prefix length.
    V6(u128, u8),
}

impl Block {
    /// Reads an address or a CIDR; host bits are ignored.
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        let (address, length) = match value.split_once('/') {
            Some((address, length)) => {
                let digits = (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
                let length = length
                    .parse::<u8>()
                    .ok()
                    .filter(|_| digits && (length.len() == 1 || !length.starts_with('0')));
                (address, Some(length.ok_or_else(|| format!("'{value}' is no CIDR range"))?))
            }
            None => (value, None),
        };
        let kind = if length.is_some() { "CIDR range" } else { "IP address" };
        let address: IpAddr = address.parse().map_err(|_| format!("'{value}' is no {kind}"))?;
        match address {
            IpAddr::V4(a) => {
                let length = length.unwrap_or(32);
                let mask = mask_v4(length).ok_or_else(|| format!("'{value}' is no CIDR range"))?;
                Ok(Self::V4(u32::from(a) & mask, length))
            }
            IpAddr::V6(a) => {
                let length = length.unwrap_or(128);
                let mask = mask_v6(length).ok_or_else(|| format!("'{value}' is no CIDR range"))?;
                Ok(Self::V6(u128::from(a) & mask, length))
            }
        }
    }
}

/// The network mask of a prefix length, if it fits the family.
pub(crate) fn mask_v4(length: u8) -> Option<u32> {
    match length {
        0 => Some(0),
        1..=32 => Some(u32::MAX << (32 - length)),
        _ => None,
    }
}

/// The network mask of a prefix length, if it fits the family.
pub(crate) fn mask_v6(length: u8) -> Option<u128> {
    match length {
        0 => Some(0),
        1..=128 => Some(u128::MAX << (128 - length)),
        _ => None,
    }
}

/// Addresses of which one block must hold the tested one; searched in logarithmic time. The families never meet, not
/// even for IPv4-mapped addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct AddressSet {
    // INVARIANT: both sorted by first address, ranges disjoint.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressSet {
    /// The union of the blocks.
    pub(crate) fn new(blocks: &[Block]) -> Self {
        let mut set = Self::default();
        for block in blocks {
            match *block {
                Block::V4(net, length) => set.v4.push((net, net | !mask_v4(length).unwrap_or(u32::MAX))),
                Block::V6(net, length) => set.v6.push((net, net | !mask_v6(length).unwrap_or(u128::MAX))),
            }
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
    }

    /// The blocks it is made of.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        // Blocks were only dropped, never joined: each range is still one, and its length is the number of
        // leading bits that both ends share.
        let v4 = self.v4.iter().map(|(first, last)| Block::V4(*first, (first ^ last).leading_zeros() as u8));
        let v6 = self.v6.iter().map(|(first, last)| Block::V6(*first, (first ^ last).leading_zeros() as u8));
        v4.chain(v6).collect()
    }

    /// Whether the address lies in a block.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => within(&self.v4, u32::from(a)),
            IpAddr::V6(a) => within(&self.v6, u128::from(a)),
        }
    }
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let above = ranges.partition_point(|(first, _)| *first <= value);
    above.checked_sub(1).and_then(|i| ranges.get(i)).is_some_and(|(_, last)| value <= *last)
}

/// Blocks nest or are disjoint: it is enough to drop those inside another.
fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    ranges.dedup_by(|later, earlier| later.1 <= earlier.1);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference authorization 13, last paragraph but one.
    #[test]
    fn blocks_hold_addresses_of_their_family() {
        let cases = [
            ("10.0.0.0/8", "10.9.9.9", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3/8", "10.200.0.1", true),
            ("1.2.3.4", "1.2.3.4", true),
            ("1.2.3.4", "1.2.3.5", false),
            ("0.0.0.0/0", "255.1.1.1", true),
            ("0.0.0.0/0", "::1", false),
            ("0.0.0.0/0", "::ffff:1.2.3.4", false),
            ("1.2.3.4", "::ffff:1.2.3.4", false),
            ("::/0", "1.2.3.4", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::1", "2001:db8::1", true),
        ];
        for (block, address, expected) in cases {
            let set = AddressSet::new(&[Block::parse(block).expect(block)]);
            assert_eq!(set.contains(address.parse().expect(address)), expected, "{block} {address}");
        }
    }

    #[test]
    fn texts_that_are_no_block_are_refused() {
        for bad in [
            "",
            "1.2.3",
            "1.2.3.4/33",
            "1.2.3.4/",
            "1.2.3.4/+8",
            "1.2.3.4/08",
            "01.2.3.4",
            "fe80::1%eth0",
            "::/129",
            "a",
        ] {
            assert!(Block::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nested_and_adjacent_blocks_are_a_union() {
        let blocks: Vec<_> =
            ["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "9.0.0.1"].map(|b| Block::parse(b).expect(b)).into();
        let set = AddressSet::new(&blocks);
        for (address, expected) in [
            ("10.1.2.3", true),
            ("10.2.0.0", true),
            ("11.255.255.255", true),
            ("9.0.0.1", true),
            ("9.0.0.2", false),
        ] {
            assert_eq!(set.contains(address.parse().expect(address)), expected, "{address}");
        }
    }
}
