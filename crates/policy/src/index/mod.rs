//! From attributes to the things (rules, parts of rules) that they could satisfy.

mod affix;
mod claims;
pub(crate) mod key;
pub(crate) mod pairs;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;

use crate::address::{self, Block};
use crate::test::{Connection, Request};
use affix::{AffixMap, End};
use claims::ClaimIndex;
use key::{Attribute, Key, KeyValue};

/// The values of one attribute, each with its list.
type Values<'k, T> = Vec<(&'k KeyValue, Vec<T>)>;

/// Everything that registered under a key that the facts hit; may say too much, never too little.
#[derive(Debug)]
pub(crate) struct Index<T> {
    texts: Vec<(Attribute, TextIndex<T>)>,
    claims: ClaimIndex<T>,
    addresses: Vec<(Attribute, AddressIndex<T>)>,
    ports: HashMap<u16, Box<[T]>, RandomState>,
}

impl<T> Index<T> {
    /// An index of keys, each with its list.
    pub(crate) fn new<'k>(keys: impl Iterator<Item = (&'k Key, Vec<T>)>) -> Self {
        let mut by_attribute: Vec<(Attribute, Values<'k, T>)> = Vec::new();
        let mut places: HashMap<&Attribute, usize, RandomState> = HashMap::default();
        for ((attribute, value), list) in keys {
            let place = *places.entry(attribute).or_insert_with(|| {
                by_attribute.push((attribute.clone(), Vec::new()));
                by_attribute.len() - 1
            });
            if let Some((_, values)) = by_attribute.get_mut(place) {
                values.push((value, list));
            }
        }
        let mut index = Self {
            texts: Vec::new(),
            claims: ClaimIndex::default(),
            addresses: Vec::new(),
            ports: HashMap::default(),
        };
        for (attribute, values) in by_attribute {
            match attribute {
                Attribute::Port => {
                    index.ports.extend(values.into_iter().filter_map(|(value, list)| match value {
                        KeyValue::Port(port) => Some((*port, list.into_boxed_slice())),
                        _ => None,
                    }));
                }
                Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
                    index.addresses.push((attribute, AddressIndex::new(values)));
                }
                Attribute::Claim(path) => index.claims.insert(&path, values),
                _ => index.texts.push((attribute, TextIndex::new(values))),
            }
        }
        index
    }

    /// Whether nothing is registered.
    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.claims.is_empty() && self.addresses.is_empty() && self.ports.is_empty()
    }

    /// Calls `visit` with each list that the facts hit.
    pub(crate) fn visit(
        &self,
        connection: &Connection,
        request: Option<&Request<'_>>,
        visit: &mut dyn FnMut(&[T]),
    ) {
        for (attribute, index) in &self.texts {
            attribute.visit_texts(connection, request, &mut |text| index.visit(text, visit));
        }
        if !self.claims.is_empty()
            && let Some(claims) = request.and_then(|r| r.attributes.claims)
        {
            self.claims.visit(claims.as_map(), visit);
        }
        for (attribute, index) in &self.addresses {
            if let Some(address) = attribute.address(connection, request) {
                index.visit(address, visit);
            }
        }
        if let Some(list) = self.ports.get(&connection.destination_port) {
            visit(list);
        }
    }
}

/// Text patterns of one attribute.
#[derive(Debug)]
struct TextIndex<T> {
    present: Box<[T]>,
    exact: HashMap<Box<[u8]>, Box<[T]>, RandomState>,
    // Boxed, since there may be thousands of small indices, and caches are small.
    prefixes: Option<Box<AffixMap<T>>>,
    suffixes: Option<Box<AffixMap<T>>>,
}

impl<T> TextIndex<T> {
    fn new(values: Values<'_, T>) -> Self {
        let mut present = Vec::new();
        let mut exact: HashMap<Box<[u8]>, Box<[T]>, RandomState> = HashMap::default();
        let (mut prefixes, mut suffixes) = (Vec::new(), Vec::new());
        for (value, list) in values {
            match value {
                KeyValue::Present => present = list,
                KeyValue::Exact(text) => {
                    exact.insert(text.clone(), list.into());
                }
                KeyValue::Prefix(text) => prefixes.push((text.clone(), list)),
                KeyValue::Suffix(text) => suffixes.push((text.clone(), list)),
                KeyValue::Block(_) | KeyValue::Port(_) => {}
            }
        }
        Self {
            present: present.into(),
            exact,
            prefixes: (!prefixes.is_empty()).then(|| Box::new(AffixMap::new(End::Start, prefixes))),
            suffixes: (!suffixes.is_empty()).then(|| Box::new(AffixMap::new(End::Finish, suffixes))),
        }
    }

    fn visit(&self, text: &[u8], visit: &mut dyn FnMut(&[T])) {
        if !self.present.is_empty() {
            visit(&self.present);
        }
        if !self.exact.is_empty()
            && let Some(list) = self.exact.get(text)
        {
            visit(list);
        }
        for affixes in [&self.prefixes, &self.suffixes].into_iter().flatten() {
            affixes.visit(text, visit);
        }
    }
}

/// Blocks of one attribute: a hash map per network mask that occurs (33 and 129 at most).
#[derive(Debug)]
struct AddressIndex<T> {
    v4: BTreeMap<u32, ByNetwork<u32, T>>,
    v6: BTreeMap<u128, ByNetwork<u128, T>>,
}

/// Lists by network address.
type ByNetwork<N, T> = HashMap<N, Box<[T]>, RandomState>;

impl<T> AddressIndex<T> {
    fn new(values: Values<'_, T>) -> Self {
        let mut index = Self { v4: BTreeMap::new(), v6: BTreeMap::new() };
        for (value, list) in values {
            match value {
                KeyValue::Block(Block::V4(network, length)) => {
                    if let Some(mask) = address::mask_v4(*length) {
                        index.v4.entry(mask).or_default().insert(*network, list.into());
                    }
                }
                KeyValue::Block(Block::V6(network, length)) => {
                    if let Some(mask) = address::mask_v6(*length) {
                        index.v6.entry(mask).or_default().insert(*network, list.into());
                    }
                }
                _ => {}
            }
        }
        index
    }

    fn visit(&self, address: IpAddr, visit: &mut dyn FnMut(&[T])) {
        match address {
            IpAddr::V4(a) => {
                let lists = self.v4.iter().filter_map(|(mask, lists)| lists.get(&(u32::from(a) & mask)));
                lists.for_each(|list| visit(list));
            }
            IpAddr::V6(a) => {
                let lists = self.v6.iter().filter_map(|(mask, lists)| lists.get(&(u128::from(a) & mask)));
                lists.for_each(|list| visit(list));
            }
        }
    }
}
