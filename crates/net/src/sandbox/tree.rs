//! A container's view of files: a new root that holds only what was named.
//!
//! An allow-list rather than masks: whatever lies elsewhere on the host (home directories, the data
//! directory, other mounts) is simply not there. The price is that a program outside the system
//! directories has to be mounted with a hostPath volume, as in Kubernetes.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};

use super::spec::{FileTree, Volume};
use crate::NetError;
use crate::mounts::mount_points;

/// Top-level directories of the host that a container sees, read-only. `/nix` and `/gnu` hold the
/// programs of hosts that work that way.
const SHOWN: [&str; 11] =
    ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "nix", "gnu", "etc"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Where the host's tree hangs until the sources of the volumes are taken out of it.
const OLD_ROOT: &str = "/.old";
const MIRROR: &str = "/.mirror";
const LOCKED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Builds the tree and makes it the root of the calling process, in its own mount namespace.
pub(super) fn build(tree: &FileTree) -> Result<(), NetError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(NetError::sys("make mounts private"))?;
    let root = &tree.staging;
    tmpfs(root, "mode=755,size=4m")?;
    for name in SHOWN {
        show_top_level(root, name)?;
    }
    for directory in ["proc", "sys", "dev", "tmp", "run", "var", ".old"] {
        make_dir(&root.join(directory))?;
    }
    devices(&root.join("dev"))?;
    rustix::process::pivot_root(root.as_path(), root.join(".old").as_path())
        .map_err(NetError::sys("change the root"))?;
    std::env::set_current_dir("/").map_err(NetError::io("enter the new root"))?;
    let (own, volumes) = take_sources(tree)?;
    // Gone before the first volume is mounted: a program of the same Pod that plants links in a shared volume
    // finds nothing of the host behind them.
    unmount(OLD_ROOT, UnmountFlags::DETACH).map_err(NetError::sys("let the host's tree go"))?;
    fs::remove_dir(OLD_ROOT).map_err(NetError::io(OLD_ROOT))?;

    writable_places()?;
    mount("proc", "/proc", "proc", LOCKED | MountFlags::NOEXEC, None)
        .map_err(NetError::sys("mount /proc"))?;
    mask_restricted(Path::new("/etc"), 4)?;
    for taken in &own {
        attach(taken)?;
    }
    for directory in &tree.hidden {
        if directory.is_dir() {
            tmpfs(directory, "mode=000,size=4k")?;
        }
    }
    for taken in &volumes {
        attach(taken)?;
    }
    mount_remount("/", LOCKED | MountFlags::RDONLY, "").map_err(NetError::sys("make the root read-only"))
}

fn show_top_level(root: &Path, name: &str) -> Result<(), NetError> {
    let source = Path::new("/").join(name);
    let target = root.join(name);
    let Ok(metadata) = fs::symlink_metadata(&source) else { return Ok(()) };
    if metadata.is_symlink() {
        let link = fs::read_link(&source).map_err(NetError::io(source.display().to_string()))?;
        return symlink(link, &target).map_err(NetError::io(target.display().to_string()));
    }
    make_dir(&target)?;
    bind(&source, &target, true)
}

/// Binds a tree and locks every mount of it.
fn bind(source: &Path, target: &Path, read_only: bool) -> Result<(), NetError> {
    let describe = || format!("mount {} at {}", source.display(), target.display());
    mount_bind_recursive(source, target).map_err(NetError::sys(describe()))?;
    let resolved = target.canonicalize().map_err(NetError::io(target.display().to_string()))?;
    for point in mount_points()?.into_iter().filter(|point| point.starts_with(&resolved)) {
        lock(&point, read_only)?;
    }
    Ok(())
}

/// Takes away from one mount what nobody needs.
fn lock(target: &Path, read_only: bool) -> Result<(), NetError> {
    let mut flags = LOCKED | MountFlags::BIND;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    mount_remount(target, flags, "").map_err(NetError::sys(format!("lock {}", target.display())))
}

fn tmpfs(target: &Path, options: &str) -> Result<(), NetError> {
    let options = std::ffi::CString::new(options).map_err(|e| NetError::Invalid(e.to_string()))?;
    mount("tmpfs", target, "tmpfs", LOCKED, options.as_c_str())
        .map_err(NetError::sys(format!("mount a tmpfs at {}", target.display())))
}

fn devices(dev: &Path) -> Result<(), NetError> {
    mount("tmpfs", dev, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=755,size=64k")
        .map_err(NetError::sys("mount /dev"))?;
    for name in DEVICES {
        let (source, target) = (Path::new("/dev").join(name), dev.join(name));
        if source.exists() {
            make_file(&target)?;
            mount_bind(&source, &target).map_err(NetError::sys(format!("show /dev/{name}")))?;
        }
    }
    for (name, link) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(link, dev.join(name)).map_err(NetError::io(format!("/dev/{name}")))?;
    }
    make_dir(&dev.join("shm"))?;
    // Terminals of its own, named as programs expect and bounded, because the whole machine shares a number of them.
    let terminals = dev.join("pts");
    make_dir(&terminals)?;
    mount(
        "devpts",
        &terminals,
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"newinstance,ptmxmode=0666,mode=0620,max=64"),
    )
    .map_err(NetError::sys("mount /dev/pts"))?;
    symlink("pts/ptmx", dev.join("ptmx")).map_err(NetError::io("/dev/ptmx"))
}

/// The places every program expects to write to, private to the container, bounded, in memory.
fn writable_places() -> Result<(), NetError> {
    tmpfs(Path::new("/tmp"), "mode=1777,size=64m")?;
    tmpfs(Path::new("/dev/shm"), "mode=1777,size=64m")?;
    tmpfs(Path::new("/run"), "mode=755,size=16m")?;
    make_dir(Path::new("/run/lock"))?;
    make_dir(Path::new("/var/tmp"))?;
    tmpfs(Path::new("/var/tmp"), "mode=1777,size=64m")?;
    for directory in ["lib", "cache", "log"] {
        make_dir(&Path::new("/var").join(directory))?;
    }
    symlink("/run", "/var/run").map_err(NetError::io("/var/run"))?;
    symlink("/run/lock", "/var/lock").map_err(NetError::io("/var/lock"))
}

/// Hides what the host does not show to everyone (`/etc/shadow`, private keys): a Pod may choose its user
/// and groups, and the host's groups must not open the host's files to it.
fn mask_restricted(directory: &Path, depth: u32) -> Result<(), NetError> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let mode = metadata.permissions().mode();
        if metadata.is_dir() {
            if mode & 0o005 != 0o005 {
                tmpfs(&path, "mode=000,size=4k")?;
            } else if depth > 0 {
                mask_restricted(&path, depth - 1)?;
            } else {
                tmpfs(&path, "mode=000,size=4k")?;
            }
        } else if metadata.is_file() && mode & 0o004 == 0 {
            mount_bind("/dev/null", &path).map_err(NetError::sys(format!("hide {}", path.display())))?;
        }
    }
    Ok(())
}

/// A volume whose source cannot change its place any more.
struct Taken {
    volume: Volume,
    is_directory: bool,
    mount: OwnedFd,
}

/// What every container has, and the Pod's volumes, in the order in which they are mounted.
fn take_sources(tree: &FileTree) -> Result<(Vec<Taken>, Vec<Taken>), NetError> {
    let own = ["resolv.conf", "hosts", "hostname"].into_iter().map(|name| Volume {
        source: tree.etc.join(name),
        target: Path::new("/etc").join(name),
        read_only: true,
    });
    let shown = tree.shown.iter().filter(|file| !file.exists());
    let shown = shown.map(|file| Volume { source: file.clone(), target: file.clone(), read_only: true });
    let mut volumes = tree.volumes.clone();
    // A volume inside another one is mounted after it.
    volumes.sort_by_key(|volume| volume.target.components().count());
    let own = own.chain(shown).map(take).collect::<Result<_, _>>()?;
    Ok((own, volumes.into_iter().map(take).collect::<Result<_, _>>()?))
}

/// Takes a mount of the source out of the host's tree. Sources are real paths: a link on the way was put there after
/// the path was checked, by someone who may write to a part of it, and could lead anywhere.
fn take(volume: Volume) -> Result<Taken, NetError> {
    let describe = || format!("volume source {}", volume.source.display());
    let relative = volume.source.strip_prefix("/").unwrap_or(&volume.source);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(OLD_ROOT, flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(NetError::sys("open the host's tree"))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let source =
        rustix::fs::openat2(&root, relative, flags, Mode::empty(), resolve).map_err(|errno| match errno {
            Errno::LOOP => NetError::Invalid(format!("{} has a symbolic link in its path", describe())),
            errno => NetError::sys(describe())(errno),
        })?;
    let metadata = rustix::fs::fstat(&source).map_err(NetError::sys(describe()))?;
    let is_directory = FileType::from_raw_mode(metadata.st_mode) == FileType::Directory;
    // Not recursive: what the host mounted below is not part of the volume.
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(&source, "", clone).map_err(NetError::sys(describe()))?;
    Ok(Taken { volume, is_directory, mount })
}

/// Mounts one volume.
fn attach(taken: &Taken) -> Result<(), NetError> {
    let Volume { source, target, read_only } = &taken.volume;
    let clean = target.is_absolute()
        && target.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !clean || target == Path::new("/") {
        return Err(NetError::Invalid(format!("{} cannot be mounted on", target.display())));
    }
    make_mount_point(target, taken.is_directory)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    let describe = format!("mount {} at {}", source.display(), target.display());
    move_mount(&taken.mount, "", CWD, target.as_path(), how).map_err(NetError::sys(describe))?;
    // By descriptor: inside a volume that others write to, the path may mean another mount by now.
    lock(Path::new(&format!("/proc/self/fd/{}", taken.mount.as_raw_fd())), *read_only)
}

/// Makes sure that something can be mounted at `target`, without a trace on the host: a read-only directory
/// that lacks the entry is replaced by a copy in memory whose entries are the same.
fn make_mount_point(target: &Path, directory: bool) -> Result<(), NetError> {
    if exists_as(target, directory) {
        return Ok(());
    }
    let mut at = PathBuf::from("/");
    let parts: Vec<_> = target.components().skip(1).collect();
    for (index, part) in parts.iter().enumerate() {
        let next = at.join(part);
        let want_dir = directory || index + 1 < parts.len();
        if !exists_as(&next, want_dir) {
            let made = if want_dir { make_dir(&next) } else { make_file(&next) };
            if made.is_err() {
                mirror(&at, next.file_name())?;
                if want_dir { make_dir(&next)? } else { make_file(&next)? }
            }
        }
        at = next;
    }
    Ok(())
}

fn exists_as(path: &Path, directory: bool) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_dir() == directory)
}

/// Covers a directory by one in memory with the same entries but `without`.
fn mirror(directory: &Path, without: Option<&std::ffi::OsStr>) -> Result<(), NetError> {
    let directory = directory.canonicalize().map_err(NetError::io(directory.display().to_string()))?;
    make_dir(Path::new(MIRROR))?;
    tmpfs(Path::new(MIRROR), "mode=755,size=1m")?;
    let entries = fs::read_dir(&directory).map_err(NetError::io(directory.display().to_string()))?;
    for entry in entries.flatten() {
        if Some(entry.file_name().as_os_str()) == without {
            continue;
        }
        let (source, target) = (entry.path(), Path::new(MIRROR).join(entry.file_name()));
        let kind = entry.file_type().map_err(NetError::io(source.display().to_string()))?;
        if kind.is_symlink() {
            let link = fs::read_link(&source).map_err(NetError::io(source.display().to_string()))?;
            symlink(link, &target).map_err(NetError::io(target.display().to_string()))?;
        } else if kind.is_dir() || kind.is_file() {
            if kind.is_dir() {
                make_dir(&target)?
            } else {
                make_file(&target)?
            }
            // Takes the locks of the mount it copies with it.
            mount_bind_recursive(&source, &target)
                .map_err(NetError::sys(format!("show {}", source.display())))?;
        }
    }
    mount_move(MIRROR, &directory).map_err(NetError::sys(format!("cover {}", directory.display())))?;
    fs::remove_dir(MIRROR).map_err(NetError::io(MIRROR))
}

fn make_dir(path: &Path) -> Result<(), NetError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.map_err(NetError::io(format!("make {}", path.display()))),
    }
}

fn make_file(path: &Path) -> Result<(), NetError> {
    fs::File::create_new(path).map(drop).map_err(NetError::io(format!("make {}", path.display())))
}
