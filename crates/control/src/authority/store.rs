//! Where an authority's material and the state of its rotation are kept, and what is read from there.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;
use maille_pki::Authority;
use zeroize::Zeroizing;

use super::OFFER_PREFIX;
use super::state::{Ca, Home, Source, State};

/// The entry of the rotation's Secret that holds its state.
const STATE: &str = "state.json";
/// Before the names of the entries of what is in force, or what the rotation leads away from.
const CURRENT: &str = "current-";
/// Before those of what it leads to.
const TARGET: &str = "target-";
/// Entries of an authority that are kept (reference mtls 5.5).
const ENTRIES: [&str; 8] = [
    "ca-cert.pem",
    "ca-key.pem",
    "root-cert.pem",
    "cert-chain.pem",
    "ca-crl.pem",
    "tls.crt",
    "tls.key",
    "ca.crt",
];

/// The entries of a Secret; wiped when dropped.
pub type Entries = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// A Secret as it is stored.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// Changes with every write.
    pub version: String,
    /// Its entries.
    pub entries: Entries,
    /// The annotation that asks for something, if there is one.
    pub request: Option<String>,
    /// The annotation that says what is wrong with the files of a CA, if there is one.
    pub files_problem: Option<String>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.entries.keys().collect();
        f.debug_struct("Object")
            .field("version", &self.version)
            .field("entries", &names)
            .finish_non_exhaustive()
    }
}

/// All that is stored, each part as it was at some moment; writes say which version they replace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Secret `istio-ca-rotation`.
    pub rotation: Option<Object>,
    /// Secret `istio-ca-secret`.
    pub self_signed: Option<Object>,
    /// Secret `cacerts`.
    pub plugged_in: Option<Object>,
}

impl Stored {
    pub(crate) fn home(&self, source: Source) -> Option<&Object> {
        match source {
            Source::SelfSigned => self.self_signed.as_ref(),
            Source::PluggedIn => self.plugged_in.as_ref(),
        }
    }
}

/// Why something could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has written meanwhile: read again and decide anew.
    #[error("{0} has been written by somebody else meanwhile")]
    Conflict(String),
    /// Anything else; trying again may help.
    #[error("{0}")]
    Failed(String),
}

/// Where authorities are kept. Several control planes may share one: a write is done only if what it replaces is still what
/// was read, so that one of them acts and the others follow.
pub trait Store: Send + Sync + 'static {
    /// Reads all there is.
    fn read(&self) -> BoxFuture<'_, Result<Stored, StoreError>>;

    /// Replaces the entries of the rotation's Secret and takes its request away. `replaces` is the version read; `None`
    /// makes the Secret.
    fn write_rotation<'a>(
        &'a self,
        entries: &'a Entries,
        replaces: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Replaces the entries of an authority's Secret; `None` makes it.
    fn write_home<'a>(
        &'a self,
        source: Source,
        entries: &'a Entries,
        replaces: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes an authority's Secret.
    fn delete_home<'a>(&'a self, source: Source, replaces: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// What the control planes of the mesh have told each other, by their names. It is no secret. One that is alone has
    /// nobody to tell.
    fn shared(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        Box::pin(async { Ok(BTreeMap::new()) })
    }

    /// Tells the others something in place of what was told before; `None` wipes it.
    fn share<'a>(&'a self, news: BTreeMap<String, Option<String>>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            drop(news);
            Ok(())
        })
    }

    /// Waits until any of them may have changed since the last call.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// An authority with the entries it was read from.
#[derive(Clone)]
pub(crate) struct Material {
    pub(crate) entries: Entries,
    pub(crate) authority: Authority,
    pub(crate) ca: Ca,
}

impl Material {
    /// Reads the entries whose names begin so.
    pub(crate) fn read(entries: &Entries, prefix: &str) -> Result<Self, String> {
        let mut own = Entries::new();
        for name in ENTRIES {
            if let Some(value) = entries.get(&format!("{prefix}{name}")) {
                own.insert(name.to_owned(), value.clone());
            }
        }
        let authority = Authority::from_secret(|name| own.get(name).map(|value| value.as_slice()))
            .map_err(|error| error.to_string())?;
        Self::with(authority, own)
    }

    /// Of an authority that was made here.
    pub(crate) fn made(authority: Authority) -> Result<Self, String> {
        let entries = authority.to_secret().into_iter();
        let entries = entries.filter(|(name, _)| ENTRIES.contains(name));
        let entries = entries.map(|(name, text)| (name.to_owned(), Zeroizing::new(text.as_bytes().to_vec())));
        let entries = entries.collect();
        Self::with(authority, entries)
    }

    fn with(authority: Authority, entries: Entries) -> Result<Self, String> {
        let ca = Ca::of(&authority, digest(&entries)).map_err(|error| error.to_string())?;
        Ok(Self { entries, authority, ca })
    }

    fn put(&self, entries: &mut Entries, prefix: &str) {
        for (name, value) in &self.entries {
            entries.insert(format!("{prefix}{name}"), value.clone());
        }
    }

    /// As Istio's CA has it in its Secret (reference mtls 5.5).
    pub(crate) fn home_entries(&self, source: Source) -> Entries {
        let mut entries = self.entries.clone();
        if source == Source::SelfSigned {
            for name in ["cert-chain.pem", "key.pem"] {
                entries.entry(name.to_owned()).or_default();
            }
        }
        entries
    }
}

/// What is in a Secret of an authority; a Secret whose entries begin with nothing.
pub(crate) fn home(object: Option<&Object>) -> Home {
    match object.map(|object| Material::read(&object.entries, "")) {
        None => Home::Absent,
        Some(Ok(material)) => Home::Good(Box::new(material.ca)),
        Some(Err(reason)) => Home::Bad(reason),
    }
}

/// What somebody offers with a request.
pub(crate) fn offered(object: &Object) -> Result<Material, String> {
    Material::read(&object.entries, OFFER_PREFIX)
        .map_err(|reason| format!("the offered CA cannot be used: {reason}"))
}

/// What the rotation's Secret says.
pub(crate) struct Record {
    pub(crate) state: State,
    pub(crate) current: Material,
    pub(crate) target: Option<Material>,
}

impl Record {
    pub(crate) fn read(object: &Object) -> Result<Self, String> {
        let state = object.entries.get(STATE).ok_or("it has no entry state.json")?;
        let state: State = serde_json::from_slice(state).map_err(|error| format!("state.json: {error}"))?;
        let current = Material::read(&object.entries, CURRENT).map_err(|e| format!("{CURRENT}*: {e}"))?;
        let target = match state.rotation.is_some() {
            true => Some(Material::read(&object.entries, TARGET).map_err(|e| format!("{TARGET}*: {e}"))?),
            false => None,
        };
        if state.rotation.is_some() == (state.phase == super::Phase::Idle) {
            return Err("state.json: a rotation and its phase do not agree".to_owned());
        }
        Ok(Self { state, current, target })
    }

    /// The Secret's entries. What is offered, and what was wiped, is not in it any more.
    pub(crate) fn entries(&self) -> Result<Entries, String> {
        let mut entries = Entries::new();
        let state = serde_json::to_vec(&self.state).map_err(|error| error.to_string())?;
        entries.insert(STATE.to_owned(), Zeroizing::new(state));
        self.current.put(&mut entries, CURRENT);
        if let Some(target) = &self.target {
            target.put(&mut entries, TARGET);
        }
        Ok(entries)
    }

    /// Whether a Secret holds entries of a rotation at all; one that was made for a request does not.
    pub(crate) fn is_in(object: &Object) -> bool {
        object.entries.contains_key(STATE)
    }
}

fn digest(entries: &Entries) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_empty()) {
        for part in [name.as_bytes(), value.as_slice()] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
