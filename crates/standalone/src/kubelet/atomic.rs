//! Directories of files that change all at once, as Kubernetes' volumes do.
//!
//! The files are in a directory of their own, to which `..data` points; what a reader sees are links through
//! `..data`. Replacing that one link replaces every file in the same instant.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown, symlink};
use std::path::{Component, Path};

/// A file's content, permissions and, if it has one, owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// What a directory shall hold, by relative path.
pub(crate) type Files = BTreeMap<String, Entry>;

const DATA: &str = "..data";

/// Makes `directory` hold exactly `files`.
pub(crate) fn write(directory: &Path, files: &Files) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let version = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let new = directory.join(&version);
    fs::create_dir(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o755))?;
    let mut top = Vec::new();
    for (name, entry) in files {
        let path = clean(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("bad file name {name:?}")))?;
        let target = new.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        place(&target, entry)?;
        if let Some(Component::Normal(first)) = path.components().next() {
            top.push(first.to_owned());
        }
    }
    let old = fs::read_link(directory.join(DATA)).ok();
    let staged = directory.join("..data_tmp");
    let _ = fs::remove_file(&staged);
    symlink(&version, &staged)?;
    fs::rename(&staged, directory.join(DATA))?;
    for name in &top {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("..");
        if !ours && !top.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) => crate::remove::tree(&directory.join(old)),
        None => Ok(()),
    }
}

/// A new file, which nobody may read who may not when it is done: containers may have the directory already.
fn place(target: &Path, entry: &Entry) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    file.write_all(&entry.bytes)?;
    fchown(&file, entry.owner, entry.group)?;
    file.set_permissions(Permissions::from_mode(entry.mode & 0o777))
}

/// A relative path that stays inside.
fn clean(name: &str) -> Option<&Path> {
    let path = Path::new(name);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && !name.is_empty() && !name.starts_with("..")).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        let entry = |text: &str| Entry { bytes: text.into(), mode: 0o644, owner: None, group: None };
        pairs.iter().map(|(name, text)| ((*name).to_owned(), entry(text))).collect()
    }

    #[test]
    fn a_reader_sees_the_old_or_the_new_set_and_no_remains() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("v");
        write(&at, &files(&[("a", "1"), ("d/b", "2")])).unwrap();
        let old = fs::canonicalize(at.join("a")).unwrap();
        write(&at, &files(&[("a", "3"), ("c", "4")])).unwrap();
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "3");
        assert_eq!(fs::read_to_string(at.join("c")).unwrap(), "4");
        assert!(!at.join("d").exists() && !old.exists());
        assert_eq!(fs::read_dir(&at).unwrap().count(), 4, "two links, ..data and one version");
    }

    #[test]
    fn a_file_for_few_is_at_no_time_readable_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("v");
        let entry = Entry { bytes: vec![b'x'; 16 << 20], mode: 0o400, owner: None, group: None };
        let secret = Files::from([("key".to_owned(), entry)]);
        let is_over = AtomicBool::new(false);
        let modes = std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut modes = BTreeSet::new();
                while !is_over.load(Ordering::Relaxed) {
                    let versions = fs::read_dir(&at).into_iter().flatten().flatten();
                    let keys = versions.filter_map(|version| fs::metadata(version.path().join("key")).ok());
                    modes.extend(keys.map(|key| key.permissions().mode() & 0o777));
                }
                modes
            });
            for _ in 0..5 {
                write(&at, &secret).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
            looks.join().unwrap()
        });
        assert!(modes.contains(&0o400) && modes.iter().all(|mode| mode & 0o077 == 0), "{modes:?}");
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x", "/etc/x", "", "..data", "a/../../b"] {
            assert!(write(dir.path(), &files(&[(name, "")])).is_err(), "{name}");
        }
    }
}
