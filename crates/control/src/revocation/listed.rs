//! The mesh's own list: what comes of it when it changes, and how what is in force outlives the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maille_core::Identity;
use serde::{Deserialize, Serialize};

use super::{Entry, KEY, MAX_ENTRIES, Revoked, normal_serial};

/// Problems that are told one by one.
const MAX_PROBLEMS: usize = 16;

/// What became of the ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listing {
    /// It is not there.
    Absent,
    /// It has no such key.
    NoKey,
    /// What the key holds.
    Text(String),
}

/// What the list revokes, and what of it could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    serials: BTreeSet<String>,
    identities: BTreeMap<Identity, Option<SystemTime>>,
    problems: Vec<String>,
}

/// As it is stored: no longer than the shortest list that says the same, so that what one object holds fits into another.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    serials: BTreeSet<String>,
    /// With a moment, in Unix seconds: only certificates issued before it.
    identities: BTreeMap<String, Option<u64>>,
}

impl Listed {
    /// What a list says by itself.
    pub fn of(listing: &Listing) -> Self {
        Self::default().next(listing)
    }

    /// What follows after the ConfigMap became `listing`.
    pub fn next(&self, listing: &Listing) -> Self {
        let whole = match listing {
            Listing::Absent => return Self::default(),
            Listing::NoKey => Err(format!("key {KEY} is not there; write {KEY}: \"[]\" to revoke nothing")),
            Listing::Text(text) => serde_json::from_str::<Vec<serde_json::Value>>(text)
                .map_err(|e| format!("{KEY} is no JSON array of revocations: {e}")),
        };
        let mut problems = Vec::new();
        let entries = whole.unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        if entries.len() > MAX_ENTRIES {
            problems.push(format!(
                "{KEY} has {} entries, of which the first {MAX_ENTRIES} are in force",
                entries.len()
            ));
        }
        let mut read = Vec::new();
        for (number, value) in entries.into_iter().take(MAX_ENTRIES).enumerate() {
            let entry =
                serde_json::from_value::<Entry>(value).map_err(|e| e.to_string()).and_then(|e| e.read());
            match entry {
                Ok(revoked) => read.push(revoked),
                Err(problem) => problems.push(format!("{KEY}[{number}]: {problem}")),
            }
        }
        // What cannot be read may be any of those that could be read before.
        let mut next = match problems.is_empty() {
            true => Self::default(),
            false => Self { problems: Vec::new(), ..self.clone() },
        };
        let left_out = read.into_iter().filter(|revoked| !next.add(revoked)).count();
        if left_out > 0 {
            problems.push(format!(
                "{left_out} entries are not in force: beside what was revoked before, there is room for {MAX_ENTRIES}"
            ));
        }
        if problems.len() > MAX_PROBLEMS {
            let more = problems.len() - MAX_PROBLEMS;
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {more} more"));
        }
        next.problems = problems;
        next
    }

    /// The same with one more thing that is wrong.
    pub fn with_problem(mut self, problem: String) -> Self {
        self.problems.push(problem);
        self
    }

    /// Whether there was room for it.
    fn add(&mut self, revoked: &Revoked) -> bool {
        match revoked {
            Revoked::Serial(serial) => {
                let fits = self.serials.len() < MAX_ENTRIES || self.serials.contains(serial);
                if fits {
                    self.serials.insert(serial.clone());
                }
                fits
            }
            Revoked::Identity(identity, before) => {
                let fits = self.identities.len() < MAX_ENTRIES || self.identities.contains_key(identity);
                if fits {
                    let known = self.identities.entry(identity.clone()).or_insert(*before);
                    // Of two, the one that revokes more: none is for ever.
                    *known = known.zip(*before).map(|(a, b)| a.max(b));
                }
                fits
            }
        }
    }

    /// Serial numbers of revoked leaf certificates: lower case, without leading zeros.
    pub fn serials(&self) -> &BTreeSet<String> {
        &self.serials
    }

    /// Revoked identities; with a moment, only the certificates issued before it.
    pub fn identities(&self) -> &BTreeMap<Identity, Option<SystemTime>> {
        &self.identities
    }

    /// What is wrong with the list, for people. None: it could be read in full.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Whether nobody is revoked.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty() && self.identities.is_empty()
    }

    /// What is in force, for [`Listed::from_stored`]. What is wrong is not part of it.
    pub fn to_stored(&self) -> Result<String, String> {
        let seconds = |time: &SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let identities = self.identities.iter();
        let stored = Stored {
            serials: self.serials.clone(),
            identities: identities.map(|(id, before)| (id.uri(), before.as_ref().map(seconds))).collect(),
        };
        serde_json::to_string(&stored).map_err(|e| e.to_string())
    }

    /// What was in force. Half of it would be somebody's revocation taken back, so that anything that cannot be read is an
    /// error.
    pub fn from_stored(text: &str) -> Result<Self, String> {
        let stored: Stored = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let mut listed = Self::default();
        for serial in stored.serials {
            listed.serials.insert(normal_serial(&serial)?);
        }
        for (uri, before) in stored.identities {
            let identity = Identity::parse_uri(&uri).map_err(|e| format!("identity '{uri}': {e}"))?;
            let moment = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            let before = before.map(|seconds| moment(seconds).ok_or(format!("no moment: {seconds}")));
            listed.identities.insert(identity, before.transpose()?);
        }
        Ok(listed)
    }
}
