//! Whether a file has been replaced or written to.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// By which a changed file is known: the kubelet exchanges a link, others write over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// `None` if there is no such file. One call to the kernel about a file in memory: sending it to another thread would
    /// cost more.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}
