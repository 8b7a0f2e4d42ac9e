//! The access log of a proxy, read while it is written.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::lab::Lab;

pub(crate) struct Log(PathBuf);

impl Log {
    pub(crate) fn at(lab: &Lab) -> Self {
        Self(lab.path("access.log"))
    }

    /// The line of a server's file that orders it.
    pub(crate) fn yaml(&self) -> String {
        format!("accessLogFile: {}\n", self.0.display())
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }

    /// What is in it once `is_enough`.
    pub(crate) fn until(&self, patience: Duration, is_enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + patience;
        loop {
            let text = self.text();
            if is_enough(&text) && text.ends_with('\n') {
                return text;
            }
            assert!(Instant::now() < deadline, "not yet in the log: {text}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
