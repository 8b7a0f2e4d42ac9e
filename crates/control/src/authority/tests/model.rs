//! A control plane that may end at any moment, operators who do anything, and proxies that hear of it whenever they do.
//! Whatever happens, everybody who was never given up on can call everybody else.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::machine::{ask, in_force, next};
use super::super::wire::Phase;
use super::*;

/// Longest time between asking for a certificate and having it, and longest without a report.
const CALL_MS: u64 = 10_000;

#[derive(Debug, Clone)]
enum Happening {
    /// Time goes by.
    Wait(u64),
    /// The control plane looks; with `false` it ends after what comes before the write, with `true` after the write.
    Look,
    Die(bool),
    /// It looks and decides, but somebody else's write was first.
    LoseRace,
    /// A proxy takes over the trust that it was last told.
    Trust(usize),
    /// A proxy's file of roots is brought up to date.
    File(usize),
    /// A proxy asks for a certificate, and puts in use what it got.
    Call(usize),
    Install(usize),
    /// A proxy says what it uses.
    Report(usize),
    /// A proxy is not waited for any more.
    Proceed(usize),
    Rotate(usize),
    Rollback,
    /// An operator replaces a Secret.
    Replace(bool, usize),
}

/// What they are made of: a root, another, the first one renewed, an intermediate of the second, one with more trust.
const CAS: [&str; 5] = ["a1", "b", "a2", "i/b", "j/b+c"];

#[derive(Debug, Clone)]
struct Model {
    now: u64,
    books: Books,
    /// What the running control plane has in force: the signer, all trusted roots.
    signer: Ca,
    trusted: BTreeSet<String>,
    proxies: Vec<Peer>,
    given_up: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Peer {
    used: Ca,
    roots: BTreeSet<String>,
    file: BTreeSet<String>,
    /// Asked for, and when.
    called: Option<(Ca, u64)>,
    said: Option<Seen>,
}

impl Model {
    fn new() -> Self {
        let books = Books::of("a1");
        let peer = Peer { used: ca("a1"), roots: set(&["a1"]), file: set(&["a1"]), called: None, said: None };
        let mut model = Self {
            now: NOW,
            signer: ca("a1"),
            trusted: set(&["a1"]),
            books,
            proxies: vec![peer; 3],
            given_up: BTreeSet::new(),
        };
        model.start();
        model
    }

    /// Puts into force what is stored, as a control plane does when it starts and after each write.
    fn start(&mut self) {
        let force = in_force(self.books.state.phase);
        let target = self.books.target.as_ref();
        let signer = target.filter(|_| force.target_signs).unwrap_or(&self.books.current);
        self.trusted = signer.roots.keys().cloned().collect();
        if force.trusts_both {
            self.trusted.extend(self.books.current.roots.keys().cloned());
            self.trusted.extend(target.into_iter().flat_map(|target| target.roots.keys().cloned()));
        }
        self.signer = signer.clone();
    }

    fn live(&self) -> Vec<LiveProxy> {
        let live = self.proxies.iter().enumerate().map(|(n, peer)| LiveProxy {
            name: n.to_string(),
            uid: n.to_string(),
            seen: peer.said.clone(),
            holds: match peer.said {
                Some(_) => Holds::Until(self.now + DAY),
                None => Holds::Perhaps(self.now + DAY),
            },
        });
        live.collect()
    }

    fn decide(&self, action: Option<&Request>, offered: Option<&Ca>) -> Option<Step> {
        let live = self.live();
        let view = self.books.view(Some(&live), self.now);
        match action {
            Some(request) => Some(ask(&view, request, offered.ok_or_else(|| "nothing".to_owned()))),
            None => next(&view),
        }
    }

    fn take(&mut self, step: &Step, offered: Option<Ca>) {
        if let Some(rotation) = &step.state.rotation {
            self.given_up.extend(rotation.waived.iter().cloned());
        }
        self.books.take(step, offered);
        self.start();
    }

    fn happen(&mut self, happening: &Happening) {
        let count = self.proxies.len();
        match happening {
            Happening::Wait(ms) => self.now += ms,
            Happening::Look => {
                if let Some(step) = self.decide(None, None) {
                    self.take(&step, None);
                }
            }
            Happening::Die(written) => {
                if let Some(step) = self.decide(None, None) {
                    self.books.prepare(&step);
                    if *written {
                        self.books.write(&step, None);
                    }
                }
                // Nothing is remembered of what proxies said.
                self.proxies.iter_mut().for_each(|peer| peer.said = None);
                self.start();
            }
            Happening::LoseRace => {
                if let Some(step) = self.decide(None, None) {
                    self.books.prepare(&step);
                }
            }
            Happening::Trust(n) => self.proxies[n % count].roots = self.trusted.clone(),
            Happening::File(n) => self.proxies[n % count].file = self.trusted.clone(),
            Happening::Call(n) => self.proxies[n % count].called = Some((self.signer.clone(), self.now)),
            Happening::Install(n) => {
                let now = self.now;
                let peer = &mut self.proxies[n % count];
                if let Some((used, at)) = peer.called.take()
                    && now - at <= CALL_MS
                {
                    peer.used = used;
                }
            }
            Happening::Report(n) => {
                let now = self.now;
                let peer = &mut self.proxies[n % count];
                // Two roots of one key are told apart by nothing that they signed: the newest that it knows is named.
                let signer = match peer.used.signer.fingerprint.as_str() {
                    "a1" | "a2" if peer.roots.contains("a2") => "a2".to_owned(),
                    "a1" | "a2" => "a1".to_owned(),
                    other => other.to_owned(),
                };
                peer.said = Some(Seen {
                    at_ms: now,
                    signer,
                    roots: peer.roots.clone(),
                    control_roots: peer.file.clone(),
                    renewal_error: String::new(),
                });
            }
            Happening::Proceed(n) => {
                let past = vec![(n % count).to_string()];
                let request = Request { past, ..request(Action::Proceed) };
                let step = self.decide(Some(&request), None).expect("an answer");
                self.take(&step, None);
            }
            Happening::Rotate(n) => {
                let offered = ca(CAS[n % CAS.len()]);
                let request = Request { to: Offer::Stored, ..request(Action::Rotate) };
                let step = self.decide(Some(&request), Some(&offered)).expect("an answer");
                self.take(&step, Some(offered));
            }
            Happening::Rollback => {
                let step = self.decide(Some(&request(Action::Rollback)), None).expect("an answer");
                self.take(&step, None);
            }
            Happening::Replace(plugged_in, n) => {
                let home = if *plugged_in { Source::PluggedIn } else { Source::SelfSigned };
                *self.books.home(home) = match n % (CAS.len() + 2) {
                    0 => Home::Absent,
                    1 => Home::Bad("nonsense".to_owned()),
                    n => good(CAS[n - 2]),
                };
            }
        }
    }

    /// Verifies by one of these roots: the root itself, or another of its key.
    fn verifies(used: &Ca, roots: &BTreeSet<String>) -> bool {
        let key = |root: &str| root.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let anchors: BTreeSet<String> = match used.is_root {
            true => [key(&used.signer.fingerprint)].into(),
            // `i` and `j` are below `b`.
            false => ["b".to_owned()].into(),
        };
        roots.iter().any(|root| anchors.contains(&key(root)))
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(!self.trusted.is_empty());
        prop_assert!(Self::verifies(&self.signer, &self.trusted), "what signs is trusted");
        let is_kept = |n: &usize| !self.given_up.contains(&n.to_string());
        for n in (0..self.proxies.len()).filter(is_kept) {
            let one = &self.proxies[n];
            prop_assert!(Self::verifies(&one.used, &self.trusted), "the control plane knows {n}");
            prop_assert!(Self::verifies(&self.signer, &one.file), "{n} knows the control plane");
            for m in (0..self.proxies.len()).filter(is_kept) {
                let other = &self.proxies[m];
                prop_assert!(Self::verifies(&one.used, &other.roots), "{m} knows {n}: {self:#?}");
            }
        }
        Ok(())
    }

    /// Everybody does everything until nothing is left to do.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..60 {
            self.happen(&Happening::Wait(5000));
            for n in 0..self.proxies.len() {
                for happening in [
                    Happening::Trust(n),
                    Happening::File(n),
                    Happening::Call(n),
                    Happening::Install(n),
                    Happening::Report(n),
                ] {
                    self.happen(&happening);
                }
            }
            self.happen(&Happening::Look);
            self.check()?;
        }
        Ok(())
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let proxy = 0..3_usize;
    prop_oneof![
        6 => (0..6000_u64).prop_map(Happening::Wait),
        8 => Just(Happening::Look),
        1 => any::<bool>().prop_map(Happening::Die),
        1 => Just(Happening::LoseRace),
        4 => proxy.clone().prop_map(Happening::Trust),
        4 => proxy.clone().prop_map(Happening::File),
        4 => proxy.clone().prop_map(Happening::Call),
        4 => proxy.clone().prop_map(Happening::Install),
        8 => proxy.clone().prop_map(Happening::Report),
        1 => proxy.prop_map(Happening::Proceed),
        2 => (0..CAS.len()).prop_map(Happening::Rotate),
        2 => Just(Happening::Rollback),
        1 => (any::<bool>(), 0..CAS.len() + 2).prop_map(|(which, n)| Happening::Replace(which, n)),
    ]
}

/// Each is some seconds of work of an unoptimized build; `MAILLE_CASES` raises it.
fn cases() -> u32 {
    std::env::var("MAILLE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_ever_cut_off_and_it_always_comes_to_an_end(
        happenings in proptest::collection::vec(happening(), 1..400)
    ) {
        let mut model = Model::new();
        for happening in &happenings {
            model.happen(happening);
            model.check()?;
        }
        model.settle()?;
        prop_assert_eq!(model.books.state.phase, Phase::Idle, "{:#?}", model);
        prop_assert!(model.books.target.is_none(), "the other key is wiped");
        // All have come to what is in force, and to nothing besides.
        let roots: BTreeSet<String> = model.books.current.roots.keys().cloned().collect();
        for peer in &model.proxies {
            prop_assert_eq!(&peer.roots, &roots);
        }
        let counted: BTreeMap<_, _> = model.live().into_iter().map(|proxy| (proxy.name.clone(), proxy)).collect();
        prop_assert_eq!(counted.len(), 3);
    }

    /// From each crash point the same end is reached.
    #[test]
    fn a_control_plane_that_dies_at_any_step_comes_to_the_same_end(
        from in 0..CAS.len(), to in 0..CAS.len(), deaths in proptest::collection::vec(any::<Option<bool>>(), 8)
    ) {
        let run = |deaths: &[Option<bool>]| -> Result<Model, TestCaseError> {
            let mut model = Model::new();
            model.happen(&Happening::Rotate(from));
            model.settle()?;
            model.happen(&Happening::Rotate(to));
            for death in deaths {
                for n in 0..3 {
                    for happening in [Happening::Trust(n), Happening::File(n), Happening::Call(n), Happening::Install(n)] {
                        model.happen(&happening);
                    }
                }
                model.happen(&Happening::Wait(2000));
                (0..3).for_each(|n| model.happen(&Happening::Report(n)));
                model.happen(&death.map_or(Happening::Look, Happening::Die));
                model.check()?;
            }
            model.settle()?;
            Ok(model)
        };
        let (straight, broken) = (run(&[])?, run(&deaths)?);
        prop_assert_eq!(&straight.books.current, &broken.books.current);
        prop_assert_eq!(&straight.books.self_signed, &broken.books.self_signed);
        prop_assert_eq!(straight.books.state.phase, broken.books.state.phase);
    }
}
