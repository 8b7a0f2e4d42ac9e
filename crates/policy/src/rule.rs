//! Rules as trees of tests, and their form on TCP.

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

    /// The test with this id; ids come from the same arena.
    pub(crate) fn get(&self, id: TestId) -> Option<&Test> {
        self.all.get(id as usize)
    }

    /// Whether a test holds; an id of another arena fails.
    pub(crate) fn holds(&self, id: TestId, connection: &Connection, request: Option<&Request<'_>>) -> bool {
        self.get(id).is_some_and(|t| t.holds(connection, request))
    }

    /// Whether every test of `all` holds.
    pub(crate) fn all_hold(
        &self,
        all: &[TestId],
        connection: &Connection,
        request: Option<&Request<'_>>,
    ) -> bool {
        all.iter().all(|id| self.holds(*id, connection, request))
    }

    /// Whether one of the alternatives holds; no alternative is no demand.
    pub(crate) fn any_holds(
        &self,
        any: &[AllOf],
        connection: &Connection,
        request: Option<&Request<'_>>,
    ) -> bool {
        any.is_empty() || any.iter().any(|all| self.all_hold(all, connection, request))
    }

    fn http_only(&self, id: TestId) -> bool {
        self.get(id).is_some_and(Test::is_http_only)
    }
}

impl RuleTree {
    /// Whether the whole rule matches, evaluated plainly.
    pub(crate) fn matches(
        &self,
        tests: &Tests,
        connection: &Connection,
        request: Option<&Request<'_>>,
    ) -> bool {
        tests.any_holds(&self.sources, connection, request)
            && tests.any_holds(&self.operations, connection, request)
            && tests.all_hold(&self.when, connection, request)
    }

    fn ids(&self) -> impl Iterator<Item = TestId> + '_ {
        self.sources.iter().chain(&self.operations).flatten().chain(&self.when).copied()
    }

    /// The rule of an ALLOW policy on TCP: gone if it has any HTTP-only test (reference authorization 11).
    pub(crate) fn allow_on_tcp(&self, tests: &Tests) -> Option<Self> {
        (!self.ids().any(|id| tests.http_only(id))).then(|| self.clone())
    }

    /// The rule of a DENY policy on TCP: HTTP-only tests are removed, which makes it wider.
    pub(crate) fn deny_on_tcp(&self, tests: &Tests) -> Self {
        let keep =
            |all: &AllOf| -> AllOf { all.iter().copied().filter(|id| !tests.http_only(*id)).collect() };
        Self {
            sources: self.sources.iter().map(keep).collect(),
            operations: self.operations.iter().map(keep).collect(),
            when: keep(&self.when),
        }
    }
}
