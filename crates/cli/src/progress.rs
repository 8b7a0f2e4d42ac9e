//! What a command that takes its time tells people meanwhile, on standard error.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// One line that changes on a terminal; elsewhere a line for each step that is done.
pub(crate) struct Progress {
    started: Instant,
    terminal: bool,
    shown: String,
}

impl Progress {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal(), shown: String::new() }
    }

    /// What is going on.
    pub(crate) fn show(&mut self, what: &str) {
        if self.terminal && what != self.shown {
            eprint!("\r\x1b[K  … {}", short(what));
            let _ = std::io::stderr().flush();
            what.clone_into(&mut self.shown);
        }
    }

    /// What has been reached.
    pub(crate) fn done(&mut self, what: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}  {:>5.1} s  {what}", self.started.elapsed().as_secs_f32());
        self.shown.clear();
    }
}

/// A line that does not wrap, so that it can be overwritten.
fn short(text: &str) -> String {
    match text.char_indices().nth(96) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
