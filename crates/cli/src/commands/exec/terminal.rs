//! The user's terminal, while it belongs to a command somewhere else.

use std::io::{self, IsTerminal};

use kube::api::TerminalSize;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether people sit before standard input and output.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// Every key goes to the command, Ctrl-C too, until this is dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Takes the terminal of standard input.
    pub(super) fn take() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // What cannot be set cannot be said either: messages go to the same terminal.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// How large it is now.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some(TerminalSize { width: size.ws_col, height: size.ws_row })
}
