use std::fs::{create_dir, create_dir_all, read_to_string, write};
use std::os::unix::fs::symlink;

use super::*;

/// More than one may open at once, by far, and more than a path can name.
const DEPTH: usize = 5_000;

/// Makes directories in one another, each with a file and a link to `outside`.
fn deepen(path: &Path, outside: &Path) {
    let mut here = fs::openat(CWD, path, DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = fs::openat(&here, "d", DIRECTORY, Mode::empty()).unwrap();
        fs::symlinkat(outside, &here, "link").unwrap();
        fs::openat(&here, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    }
}

#[test]
fn a_tree_deeper_than_stack_and_descriptors_goes_and_links_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (tree_path, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    create_dir_all(outside.join("sub")).unwrap();
    write(outside.join("sub/kept"), "kept").unwrap();
    create_dir_all(tree_path.join("wide/.removed-0/x")).unwrap();
    create_dir(tree_path.join(".removed-0")).unwrap();
    write(tree_path.join(".removed-0/file"), "").unwrap();
    write(tree_path.join(".removed-1"), "").unwrap();
    for n in 0..1_000 {
        create_dir(tree_path.join(format!("wide/{n}"))).unwrap();
        write(tree_path.join(format!("wide/{n}/file-with-a-name-of-some-length")), "").unwrap();
    }
    symlink(&outside, tree_path.join("link")).unwrap();
    symlink(outside.join("sub"), tree_path.join("wide/link")).unwrap();
    symlink("..", tree_path.join("wide/up")).unwrap();
    deepen(&tree_path, &outside);
    // On a small stack, as any depth must do.
    let removed = {
        let tree_path = tree_path.clone();
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || tree(&tree_path)).unwrap().join()
    };
    removed.unwrap().unwrap();
    assert!(std::fs::symlink_metadata(&tree_path).is_err());
    assert_eq!(read_to_string(outside.join("sub/kept")).unwrap(), "kept");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_link_in_place_of_the_tree_is_removed_and_nothing_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    create_dir(&outside).unwrap();
    write(outside.join("kept"), "kept").unwrap();
    let link = dir.path().join("link");
    symlink(&outside, &link).unwrap();
    tree(&link).unwrap();
    assert!(std::fs::symlink_metadata(&link).is_err());
    tree(&link).unwrap();
    assert_eq!(read_to_string(outside.join("kept")).unwrap(), "kept");
}

/// What a mount shows belongs to somebody else.
#[test]
fn a_mount_is_not_entered() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED (needs root): a_mount_is_not_entered");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree_path, other) = (dir.path().join("tree"), dir.path().join("other"));
    create_dir_all(tree_path.join("a/at")).unwrap();
    write(tree_path.join("a/file"), "").unwrap();
    create_dir(&other).unwrap();
    write(other.join("kept"), "kept").unwrap();
    let at = tree_path.join("a/at");
    if let Err(error) = rustix::mount::mount_bind(&other, &at) {
        eprintln!("SKIPPED (needs mounts: {error}): a_mount_is_not_entered");
        return;
    }
    let refused = tree(&tree_path);
    let kept = read_to_string(other.join("kept"));
    // It has been moved with the directory it is in.
    rustix::mount::unmount(tree_path.join(".removed-0/0/at"), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(refused.is_err());
    assert_eq!(kept.unwrap(), "kept");
    tree(&tree_path).unwrap();
    assert!(!tree_path.exists());
}
