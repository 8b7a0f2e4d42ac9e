use std::path::PathBuf;

/// What the kernel or one of its tools refused.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The tool is not installed.
    #[error("cannot run `{program}`: {source}; install it (Debian: apt install iproute2 nftables)")]
    Missing {
        /// `ip` or `nft`.
        program: String,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// The tool ran and failed.
    #[error("`{command}` failed: {message}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote to standard error.
        message: String,
    },
    /// A namespace that should exist cannot be opened or entered.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another operation on the kernel.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An argument that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl NetError {
    /// Says what was being done when the kernel refused.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> NetError {
        let what = what.into();
        move |source| NetError::Io { what, source }
    }

    /// The same for rustix's error type.
    pub(crate) fn sys(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> NetError {
        let what = what.into();
        move |errno| NetError::Io { what, source: errno.into() }
    }
}
