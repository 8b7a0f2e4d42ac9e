//! Rules as trees of tests: their form on TCP, and what of them is fixed for a connection.

use crate::test::{Connection, Request, Test};

/// Index of a test in its arena.
pub(crate) type TestId = u32;

/// Tests that must all hold; none always holds.
pub(crate) type AllOf = Vec<TestId>;

/// `(any source) and (any operation) and (every condition)`; an empty list of alternatives demands nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct RuleTree {
    pub(crate) sources: Vec<AllOf>,
    pub(crate) operations: Vec<AllOf>,
    pub(crate) when: AllOf,
}

/// All tests of a policy set, each once.
#[derive(Debug, Default)]
pub(crate) struct Tests {
    all: Vec<Test>,
}

impl Tests {
    pub(crate) fn new(all: Vec<Test>) -> Self {
        Self { all }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Test> {
        self.all.iter()
    }

    /// The test with this id; ids come from the same arena.
    pub(crate) fn get(&self, id: TestId) -> Option<&Test> {
        self.all.get(id as usize)
    }

    pub(crate) fn is_http_only(&self, id: TestId) -> bool {
        self.get(id).is_some_and(Test::is_http_only)
    }

    pub(crate) fn is_per_request(&self, id: TestId) -> bool {
        self.get(id).is_some_and(Test::is_per_request)
    }

    /// Whether a test holds; an id of another arena fails.
    pub(crate) fn holds(&self, id: TestId, connection: &Connection, request: Option<&Request<'_>>) -> bool {
        self.get(id).is_some_and(|t| t.holds(connection, request))
    }

    fn all_hold(&self, all: &[TestId], connection: &Connection, request: Option<&Request<'_>>) -> bool {
        all.iter().all(|id| self.holds(*id, connection, request))
    }

    fn any_holds(&self, any: &[AllOf], connection: &Connection, request: Option<&Request<'_>>) -> bool {
        any.is_empty() || any.iter().any(|all| self.all_hold(all, connection, request))
    }
}

impl RuleTree {
    /// Whether it matches.
    pub(crate) fn matches(
        &self,
        tests: &Tests,
        connection: &Connection,
        request: Option<&Request<'_>>,
    ) -> bool {
        tests.all_hold(&self.when, connection, request)
            && tests.any_holds(&self.operations, connection, request)
            && tests.any_holds(&self.sources, connection, request)
    }

    /// Whether it matches whatever comes.
    pub(crate) fn demands_nothing(&self) -> bool {
        self.sources.is_empty() && self.operations.is_empty() && self.when.is_empty()
    }

    /// All tests, in the order of the policy's text.
    pub(crate) fn ids(&self) -> impl Iterator<Item = TestId> + '_ {
        self.sources.iter().chain(&self.operations).flatten().chain(&self.when).copied()
    }

    /// Tests that must hold whatever else does: conditions, and those of an only alternative.
    pub(crate) fn certain(&self) -> impl Iterator<Item = TestId> + '_ {
        let only = [&self.operations, &self.sources].into_iter().filter(|any| any.len() == 1);
        only.flatten().flatten().chain(&self.when).copied()
    }

    /// What is left to test once these, of [`Self::certain`], are known to hold.
    pub(crate) fn without(&self, settled: &[TestId]) -> Self {
        let rest =
            |all: &AllOf| -> AllOf { all.iter().copied().filter(|id| !settled.contains(id)).collect() };
        let alternatives = |any: &Vec<AllOf>| match any.as_slice() {
            [only] => vec![rest(only)],
            _ => any.clone(),
        };
        Self {
            sources: alternatives(&self.sources),
            operations: alternatives(&self.operations),
            when: rest(&self.when),
        }
        .tidied()
    }

    /// The rule of an ALLOW policy on TCP: gone if it has any HTTP-only test (reference authorization 11).
    pub(crate) fn allow_on_tcp(&self, tests: &Tests) -> Option<Self> {
        (!self.ids().any(|id| tests.is_http_only(id))).then(|| self.clone().tidied())
    }

    /// The rule of a DENY policy on TCP: HTTP-only tests are removed, which makes it wider.
    pub(crate) fn deny_on_tcp(&self, tests: &Tests) -> Self {
        self.keeping(&|id| !tests.is_http_only(id))
    }

    /// Splits into what is fixed for a connection and what each request decides: an HTTP request matches
    /// the rule exactly if its connection matches the first and the request the second.
    pub(crate) fn split(&self, tests: &Tests) -> (Self, Self) {
        let fixed = self.keeping(&|id| !tests.is_per_request(id));
        // Alternatives that mix both kinds must be judged together when there are several: which one the connection
        // satisfied matters. A single one is a plain AND and falls apart cleanly.
        let rest = |any: &[AllOf]| match any {
            [only] => vec![only.iter().copied().filter(|id| tests.is_per_request(*id)).collect()],
            several if several.iter().flatten().any(|id| tests.is_per_request(*id)) => several.to_vec(),
            _ => Vec::new(),
        };
        let per_request = Self {
            sources: rest(&self.sources),
            operations: rest(&self.operations),
            when: self.when.iter().copied().filter(|id| tests.is_per_request(*id)).collect(),
        };
        (fixed, per_request.tidied())
    }

    /// The rule without the other tests; it matches at least what the whole rule matches.
    fn keeping(&self, keep: &dyn Fn(TestId) -> bool) -> Self {
        let kept = |all: &AllOf| -> AllOf { all.iter().copied().filter(|id| keep(*id)).collect() };
        Self {
            sources: self.sources.iter().map(kept).collect(),
            operations: self.operations.iter().map(kept).collect(),
            when: kept(&self.when),
        }
        .tidied()
    }

    /// One form for trees that mean the same, as far as that is cheap: sorted, without repetition, and
    /// alternatives of which one always holds are no demand.
    fn tidied(mut self) -> Self {
        for any in [&mut self.sources, &mut self.operations] {
            if any.iter().any(Vec::is_empty) {
                any.clear();
            }
            for all in any.iter_mut() {
                all.sort_unstable();
                all.dedup();
            }
            any.sort_unstable();
            any.dedup();
        }
        self.when.sort_unstable();
        self.when.dedup();
        self
    }
}
