//! The directory behind a PersistentVolumeClaim, made ready for a Pod's user.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, openat,
};

use crate::cluster::Cluster;
use crate::state::DataDir;

/// Directories in directories, at most.
const MAX_DEPTH: usize = 64;

/// Who is to own what a claim holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    /// The one user of the containers that mount it, if there is one.
    pub(crate) user: Option<u32>,
    /// `fsGroup`.
    pub(crate) group: Option<u32>,
}

/// The directory of a bound claim. The error says what it waits for.
pub(crate) async fn directory(
    cluster: &Cluster,
    data: &DataDir,
    namespace: &str,
    name: &str,
    owner: Owner,
) -> Result<PathBuf, String> {
    let api = cluster.api::<PersistentVolumeClaim>(namespace);
    let claim =
        api.get_opt(name).await.map_err(|error| format!("persistentvolumeclaim {name:?}: {error}"))?;
    let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
    let status = claim.status.clone().unwrap_or_default();
    let uid = claim.uid().unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    if status.phase.as_deref() != Some("Bound") || uid.is_empty() {
        return Err(format!("persistentvolumeclaim {name:?} is not bound yet"));
    }
    let shared = status.access_modes.iter().flatten().any(|mode| mode.ends_with("Many"));
    let path = data.volume(&uid);
    let ready = path.clone();
    let handing = tokio::task::spawn_blocking(move || hand_over(&ready, owner, shared));
    match handing.await {
        Ok(Ok(())) => Ok(path),
        Ok(Err(error)) => Err(format!("{}: {error}", path.display())),
        Err(error) => Err(error.to_string()),
    }
}

/// Gives a directory, and all in it, to the Pod's user.
///
/// A Pod that names no user runs as one of its own, which the next Pod of the same name need not have. What several
/// Pods share is left to whoever writes it.
fn hand_over(path: &Path, owner: Owner, shared: bool) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty())?;
    let user = owner.user.filter(|_| !shared);
    let mode = match (user, owner.group) {
        (_, Some(_)) => 0o2770,
        (Some(_), None) => 0o700,
        (None, None) => 0o777,
    };
    let mode = if shared && owner.group.is_some() { 0o2777 } else { mode };
    let before = fstat(&root)?;
    let (user, group) = (user, owner.group.or(user));
    let fits =
        user.is_none_or(|user| before.st_uid == user) && group.is_none_or(|group| before.st_gid == group);
    if !fits && !shared {
        give(&root, user.map(Uid::from_raw), group.map(Gid::from_raw), 0)?;
    }
    // The top last: it says that the rest is done.
    fchown(&root, user.map(Uid::from_raw), group.map(Gid::from_raw))?;
    fchmod(&root, Mode::from_raw_mode(mode))
}

/// Walks by descriptors and follows no link: whatever a Pod that still runs puts in the way, nothing outside of the
/// directory changes hands.
fn give(directory: &OwnedFd, user: Option<Uid>, group: Option<Gid>, depth: usize) -> rustix::io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(rustix::io::Errno::LOOP);
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = openat(directory, name, flags, Mode::empty())?;
            give(&inner, user, group, depth + 1)?;
        }
        chownat(directory, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn all_in_a_claim_changes_hands_and_nothing_outside_of_it() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): the owner of files is changed");
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (claim, outside) = (folder.path().join("claim"), folder.path().join("outside"));
        std::fs::create_dir_all(claim.join("a/b")).expect("made");
        std::fs::create_dir(&outside).expect("made");
        std::fs::write(claim.join("a/b/file"), "x").expect("written");
        std::fs::write(outside.join("file"), "x").expect("written");
        symlink(&outside, claim.join("a/link")).expect("linked");
        let owner = |path: &Path| {
            let found = std::fs::symlink_metadata(path).expect("there");
            (found.uid(), found.gid())
        };
        let one = Owner { user: Some(40_001), group: None };
        hand_over(&claim, one, false).expect("handed over");
        for path in [claim.clone(), claim.join("a"), claim.join("a/b/file"), claim.join("a/link")] {
            assert_eq!(owner(&path), (40_001, 40_001), "{}", path.display());
        }
        assert_eq!((owner(&outside), owner(&outside.join("file"))), ((0, 0), (0, 0)));
        assert_eq!(std::fs::metadata(&claim).expect("there").permissions().mode() & 0o7777, 0o700);
        hand_over(&claim, Owner { user: Some(40_002), group: Some(7) }, false).expect("handed over");
        assert_eq!(owner(&claim.join("a/b/file")), (40_002, 7));
        // What is shared keeps its owners.
        hand_over(&claim, Owner { user: Some(40_003), group: None }, true).expect("handed over");
        assert_eq!(owner(&claim.join("a/b/file")), (40_002, 7));
        assert_eq!(std::fs::metadata(&claim).expect("there").permissions().mode() & 0o777, 0o777);
    }
}
