//! Choices that the input makes, in the place of a random number generator.

/// The same questions as the generator of the differential tests asks; when the input ends, the answers are the first.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    input: Vec<u8>,
    at: usize,
}

impl Random {
    pub(crate) fn new(input: &[u8]) -> Self {
        Self { input: input.to_vec(), at: 0 }
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let mut next = || {
            let byte = self.input.get(self.at).copied().unwrap_or_default();
            self.at += 1;
            usize::from(byte)
        };
        let number = if bound > 256 { next() << 8 | next() } else { next() };
        number % bound.max(1)
    }

    /// True once in `n`.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    /// An element of a list that is not empty.
    pub(crate) fn one<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
