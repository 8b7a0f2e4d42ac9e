//! A mount namespace of one's own.

use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use crate::NetError;

/// Gives the calling thread (and threads and processes it starts later) a mount namespace in which mounts below
/// `directory` stay private and vanish with the last process.
///
/// Mounts elsewhere are left as they are: `/run/netns` must stay shared with the host, or namespaces
/// made here could not be seen there.
pub fn unshare_for(directory: &Path) -> Result<(), NetError> {
    unshare(UnshareFlags::NEWNS)?;
    let mount_point = mount_point_of(directory)?;
    mount_change(&mount_point, MountPropagationFlags::PRIVATE)
        .map_err(NetError::sys(format!("make the mount {} private", mount_point.display())))
}

/// The mount that holds a path.
fn mount_point_of(path: &Path) -> Result<std::path::PathBuf, NetError> {
    let path = path.canonicalize().map_err(NetError::io(path.display().to_string()))?;
    let points = mount_points()?;
    points
        .into_iter()
        .filter(|point| path.starts_with(point))
        .max_by_key(|point| point.components().count())
        .ok_or_else(|| NetError::Invalid(format!("{} is on no mount", path.display())))
}

/// All mount points of the calling thread, as `/proc/thread-self/mountinfo` lists them.
pub(crate) fn mount_points() -> Result<Vec<std::path::PathBuf>, NetError> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(NetError::io("read /proc/thread-self/mountinfo"))?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// `mountinfo` writes blanks, tabs, line breaks and backslashes in octal.
fn unescape(field: &str) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                out.push(value);
                at += 4;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Leaves the given namespaces; the new PID namespace is for children only.
#[expect(unsafe_code, reason = "the one system call that has no safe wrapper")]
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), NetError> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the call is only unsound with CLONE_FILES, which would take descriptors of other threads away from this
    // one; callers pass namespace flags only, and those do not touch the descriptor table.
    let flags = flags.difference(UnshareFlags::FILES);
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(NetError::sys("leave the host's namespaces (are you root?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_are_read() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/plain\"), Path::new(r"/plain\"));
    }
}
