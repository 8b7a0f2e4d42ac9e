//! A tiny backtracking matcher, for the reference's regular expressions.

/// One token of an expression; the whole text must match.
#[derive(Debug, Clone)]
pub(crate) enum Token {
    /// This text.
    Literal(String),
    /// At least `min` characters that `of` accepts.
    Run {
        /// How many at least.
        min: usize,
        /// Which.
        of: fn(char) -> bool,
    },
}

/// `.*`
pub(crate) fn anything() -> Token {
    Token::Run { min: 0, of: |_| true }
}

/// `.+`
pub(crate) fn something() -> Token {
    Token::Run { min: 1, of: |_| true }
}

/// A literal.
pub(crate) fn literal(text: impl Into<String>) -> Token {
    Token::Literal(text.into())
}

/// Whether the tokens match the whole text.
pub(crate) fn matches(tokens: &[Token], text: &str) -> bool {
    match tokens.split_first() {
        None => text.is_empty(),
        Some((Token::Literal(start), rest)) => {
            text.strip_prefix(start.as_str()).is_some_and(|after| matches(rest, after))
        }
        Some((Token::Run { min, of }, rest)) => {
            let ends = std::iter::once(0).chain(text.char_indices().map(|(at, c)| at + c.len_utf8()));
            ends.enumerate().any(|(count, end)| {
                let (run, after) = text.split_at(end);
                count >= *min && run.chars().all(of) && matches(rest, after)
            })
        }
    }
}
