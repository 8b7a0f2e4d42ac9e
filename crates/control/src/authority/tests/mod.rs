//! The machine by tables, and by a mesh of proxies that hear of things whenever they do.

mod model;
mod table;

use std::collections::BTreeSet;

use super::holders::Holds;
use super::machine::{Move, Step};
use super::state::{Ca, Home, LiveProxy, Seen, Source, State, View};
use super::wire::{Action, CertificateStatus, Offer, Request};

/// A day in milliseconds.
const DAY: u64 = 86_400_000;
/// When tests happen: the certificates' lives are from 0 to 100 days.
const NOW: u64 = 10 * DAY;

fn certificate(name: &str) -> CertificateStatus {
    CertificateStatus {
        fingerprint: name.to_owned(),
        subject: format!("CN={name}"),
        serial: "1".to_owned(),
        not_before_ms: 0,
        not_after_ms: 100 * DAY,
    }
}

/// A CA that is named by its signer and roots, such as `a` (a root signs) or `i/a+b` (below roots). The key has the name of
/// the signer without digits: `a1` and `a2` are of one key.
fn ca(name: &str) -> Ca {
    let (signer, roots) = name.split_once('/').unwrap_or((name, name));
    let roots = roots.split('+').map(|root| (root.to_owned(), certificate(root)));
    let key = signer.trim_end_matches(|c: char| c.is_ascii_digit());
    Ca {
        signer: certificate(signer),
        key: key.as_bytes().to_vec(),
        ends_ms: 100 * DAY,
        is_root: !name.contains('/'),
        roots: roots.collect(),
        files: name.to_owned(),
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A proxy of that name that has said so just now.
fn proxy(name: &str, signer: &str, roots: &[&str], control_roots: &[&str]) -> LiveProxy {
    let seen = Seen {
        at_ms: NOW,
        signer: signer.to_owned(),
        roots: set(roots),
        control_roots: set(control_roots),
        renewal_error: String::new(),
    };
    let holds = Holds::Until(NOW + DAY);
    LiveProxy { name: name.to_owned(), uid: format!("uid-{name}"), seen: Some(seen), holds }
}

fn good(name: &str) -> Home {
    Home::Good(Box::new(ca(name)))
}

/// What is stored.
#[derive(Debug, Clone)]
struct Books {
    state: State,
    current: Ca,
    target: Option<Ca>,
    self_signed: Home,
    plugged_in: Home,
}

impl Books {
    /// A self-signed CA in force.
    fn of(name: &str) -> Self {
        let (state, current) = (State::default(), ca(name));
        Self { state, current, target: None, self_signed: good(name), plugged_in: Home::Absent }
    }

    /// A plugged-in CA in force.
    fn plugged(name: &str) -> Self {
        let state = State { source: Source::PluggedIn, ..State::default() };
        Self { state, current: ca(name), target: None, self_signed: Home::Absent, plugged_in: good(name) }
    }

    fn view<'a>(&'a self, proxies: Option<&'a [LiveProxy]>, now_ms: u64) -> View<'a> {
        View {
            state: &self.state,
            current: &self.current,
            target: self.target.as_ref(),
            self_signed: &self.self_signed,
            plugged_in: &self.plugged_in,
            proxies,
            bundle_is_read: false,
            now_ms,
        }
    }

    fn home(&mut self, source: Source) -> &mut Home {
        match source {
            Source::SelfSigned => &mut self.self_signed,
            Source::PluggedIn => &mut self.plugged_in,
        }
    }

    /// What comes before the write.
    fn prepare(&mut self, step: &Step) {
        use super::machine::Before;
        for before in &step.before {
            let (source, home) = match before {
                Before::WriteCurrent => (self.state.source, Home::Good(Box::new(self.current.clone()))),
                Before::WriteTarget => {
                    let source = self.state.rotation.as_ref().expect("a rotation").source;
                    (source, Home::Good(Box::new(self.target.clone().expect("a target"))))
                }
                Before::Delete(source) => (*source, Home::Absent),
            };
            *self.home(source) = home;
        }
    }

    /// The write.
    fn write(&mut self, step: &Step, offered: Option<Ca>) {
        let from_home = |books: &mut Self, source| match books.home(source) {
            Home::Good(ca) => (**ca).clone(),
            other => panic!("nothing to take: {other:?}"),
        };
        match step.material {
            Move::Nothing => {}
            Move::Begin => self.target = Some(offered.expect("an offer")),
            Move::BeginFrom(source) => self.target = Some(from_home(self, source)),
            Move::Exchange => {
                let target = self.target.take().expect("a target");
                self.target = Some(std::mem::replace(&mut self.current, target));
            }
            Move::Adopt => self.current = self.target.take().expect("a target"),
            Move::Refresh(source) => self.current = from_home(self, source),
        }
        self.state = step.state.clone();
    }

    fn take(&mut self, step: &Step, offered: Option<Ca>) {
        self.prepare(step);
        self.write(step, offered);
    }
}

fn request(action: Action) -> Request {
    let to = Offer::Generated;
    Request { id: "r".to_owned(), action, to, dry_run: false, phase: None, past: Vec::new() }
}
