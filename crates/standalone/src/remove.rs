//! Takes a directory tree away, whatever is in it.
//!
//! Pods write what they like into their volumes, thousands of directories in one another included. The standard
//! library's `remove_dir_all` goes one call and one open directory deeper with each of them, and would run out of
//! either. Here every directory is first moved up into one place, so that the tree is never walked deeper than by
//! one step: four descriptors, and the same stack and memory, for any tree.
//!
//! Nothing outside is touched: names are looked up one at a time in an open directory, links are removed and never
//! followed, and what is mounted inside is not entered (a mount point cannot be moved): it stays, as an error.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Bytes of names read at once.
const LISTING: usize = 16 * 1024;

/// Takes away what is at `path`, if anything is. Blocks for as long as that takes.
///
/// # Errors
/// The first thing that could not be removed; everything else is gone nevertheless.
pub(crate) fn tree(path: &Path) -> io::Result<()> {
    let top = match fs::openat(CWD, path, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        // A file, or a link.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(gone(fs::unlinkat(CWD, path, AtFlags::empty()))?),
        Err(error) => return Err(error.into()),
    };
    let (name, attic) = attic(top.as_fd())?;
    let mut mover = Mover { attic, made: 0, error: None };
    mover.empty(top.as_fd(), Some(&name))?;
    let mut next = 0;
    while next < mover.made {
        let name = next.to_string();
        next += 1;
        match fs::openat(&mover.attic, name.as_str(), DIRECTORY, Mode::empty()) {
            Ok(directory) => mover.empty(directory.as_fd(), None)?,
            Err(Errno::NOENT) => continue,
            Err(error) => mover.keep(error),
        }
        let removed = fs::unlinkat(&mover.attic, name.as_str(), AtFlags::REMOVEDIR);
        mover.note(removed);
    }
    let removed = fs::unlinkat(&top, &name, AtFlags::REMOVEDIR);
    mover.note(removed);
    let removed = fs::unlinkat(CWD, path, AtFlags::REMOVEDIR);
    mover.note(removed);
    mover.error.map_or(Ok(()), |error| Err(error.into()))
}

/// Makes the directory that all others are moved into, under a name that is free.
fn attic(top: BorrowedFd<'_>) -> io::Result<(CString, OwnedFd)> {
    for number in 0_u64.. {
        let name = CString::new(format!(".removed-{number}"))?;
        match fs::mkdirat(top, &name, Mode::RWXU) {
            Ok(()) => {
                let opened = fs::openat(top, &name, DIRECTORY, Mode::empty())?;
                return Ok((name, opened));
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::EXIST.into())
}

/// What somebody else has removed is removed.
fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Empties directories; those inside that are not empty get a number as their name, and wait in the attic.
struct Mover {
    attic: OwnedFd,
    /// Numbers given so far.
    made: u64,
    /// The first failure.
    error: Option<Errno>,
}

impl Mover {
    fn keep(&mut self, error: Errno) {
        self.error.get_or_insert(error);
    }

    fn note(&mut self, result: rustix::io::Result<()>) {
        if let Err(error) = gone(result) {
            self.keep(error);
        }
    }

    /// Until a look at it finds nothing that can be taken away: file systems may leave names out of a listing during
    /// which others vanish.
    fn empty(&mut self, directory: BorrowedFd<'_>, except: Option<&CStr>) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(LISTING);
        loop {
            let mut moved = false;
            fs::seek(directory, SeekFrom::Start(0))?;
            let mut listing = RawDir::new(directory, buffer.spare_capacity_mut());
            while let Some(entry) = listing.next() {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.keep(error);
                        break;
                    }
                };
                let name = entry.file_name();
                if name == c"." || name == c".." || Some(name) == except {
                    continue;
                }
                match self.take(directory, name) {
                    Ok(()) => moved = true,
                    Err(Errno::NOENT) => {}
                    Err(error) => self.keep(error),
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Removes one thing from a directory, or moves it away.
    fn take(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        match fs::unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            other => return other,
        }
        match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => return other,
        }
        let number = self.made.to_string();
        fs::renameat(directory, name, &self.attic, number.as_str())?;
        self.made += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
