//! What a mesh leaves on its machine, and how to take it away.
//!
//! Everything carries the mesh's id, which comes from the data directory: network namespaces
//! `maille-<id>-…` (with links and rules in them), the pid file of the supervisor, and below the data directory the
//! files of Pods. Mounts belong to the supervisor's own mount namespace and go with it.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use maille_net::NetNs;
use maille_net::process::ProcessRef;
use rustix::fs::FlockOperation;
use rustix::process::Signal;

/// How long `down` waits for a supervisor to end on its own.
const DOWN_PATIENCE: Duration = Duration::from_secs(20);

/// Places for files of Pods that cannot be removed.
const MOST_REMAINS: usize = 16;

/// The file that one supervisor at a time holds.
const LOCK: &str = "lock";

/// A data directory.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
    id: String,
}

impl DataDir {
    /// Opens one, making it (mode 0700) if it is missing.
    ///
    /// A folder with other things in it is refused: it would be closed to everybody else, and swept by `down`.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("make the data directory {}", path.display()))?;
        let is_empty = std::fs::read_dir(path)
            .with_context(|| format!("read the data directory {}", path.display()))?
            .next()
            .is_none();
        if !is_empty && !is_of_a_mesh(path) {
            bail!(
                "{} holds other things than a mesh; name an empty folder, or one that does not exist",
                path.display()
            );
        }
        let lock = path.join(LOCK);
        File::options().create(true).append(true).open(&lock).with_context(|| lock.display().to_string())?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .with_context(|| format!("protect the data directory {}", path.display()))?;
        Self::open(path)
    }

    /// Opens one that exists.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let path = path.canonicalize().with_context(|| format!("data directory {}", path.display()))?;
        let id = mesh_id(&path);
        Ok(Self { path, id })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a mesh has ever run here.
    pub fn is_of_a_mesh(&self) -> bool {
        is_of_a_mesh(&self.path)
    }

    /// Six hexadecimal digits that name this mesh on the machine.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Name of the node's network namespace.
    pub fn node_namespace(&self) -> String {
        format!("maille-{}-node", self.id)
    }

    /// Name of a Pod's network namespace.
    pub fn pod_namespace(&self, address: std::net::Ipv4Addr) -> String {
        let [_, _, c, d] = address.octets();
        format!("maille-{}-{c}.{d}", self.id)
    }

    /// Where a Pod's logs and disk volumes are.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.path.join("pods").join(uid)
    }

    /// Where the data of a claim is, by its uid; it stays when the mesh goes down, as the store does.
    pub fn volume(&self, claim_uid: &str) -> PathBuf {
        self.path.join("volumes").join(claim_uid)
    }

    /// What lives in memory only: a tmpfs in the supervisor's mount namespace.
    pub fn memory(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    fn pid_file(&self) -> PathBuf {
        self.path.join("supervisor.pid")
    }

    /// The supervisor that runs this mesh now, if one does.
    pub fn supervisor(&self) -> Option<ProcessRef> {
        ProcessRef::read(&self.pid_file()).filter(ProcessRef::is_alive)
    }

    /// Makes the calling process this mesh's supervisor until the lock is dropped.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.path.join(LOCK);
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let who = self.supervisor().map(|s| format!(" (process {})", s.pid)).unwrap_or_default();
            bail!(
                "a mesh already runs with the data directory {}{who}; `maille down --data-dir {0}` ends it",
                self.path.display()
            );
        }
        ProcessRef::current()?.write(&self.pid_file())?;
        Ok(Lock { _file: file, pid_file: self.pid_file() })
    }

    /// Takes away what an earlier run left, however it ended: processes, namespaces with their links and
    /// rules, files of Pods.
    pub fn sweep(&self) -> anyhow::Result<()> {
        let namespaces = NetNs::list(&format!("maille-{}-", self.id))?;
        for ns in &namespaces {
            let killed = ns.kill_all().unwrap_or_default();
            if killed > 0 {
                tracing::info!(namespace = ns.name(), killed, "ended processes of an earlier run");
            }
        }
        for ns in &namespaces {
            ns.delete()?;
        }
        self.sweep_pods();
        Ok(())
    }

    /// Files of Pods that cannot be removed keep no mesh from starting, but no Pod may find them in its volumes: what
    /// is left is moved aside, and tried again the next time.
    fn sweep_pods(&self) {
        let remains: Vec<PathBuf> =
            (0..MOST_REMAINS).map(|n| self.path.join(format!("remains-{n}"))).collect();
        for path in &remains {
            if let Err(error) = crate::remove::tree(path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove what an earlier run left");
            }
        }
        let pods = self.path.join("pods");
        let Err(error) = crate::remove::tree(&pods) else { return };
        let free = remains.iter().find(|path| std::fs::symlink_metadata(path).is_err());
        let moved = free.filter(|path| std::fs::rename(&pods, path).is_ok());
        let path = moved.unwrap_or(&pods).display();
        tracing::warn!(%path, %error, "cannot remove the files of Pods of an earlier run; they are left there");
    }
}

/// The lock is the first thing that a supervisor makes.
fn is_of_a_mesh(path: &Path) -> bool {
    path.join(LOCK).is_file()
}

/// Held by the one supervisor of a data directory.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    pid_file: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

/// Ends the mesh of a data directory and everything that is left of it. Answers whether one ran.
///
/// Asks the supervisor first (SIGTERM), ends it by force if it does not follow, then sweeps. Blocks for up
/// to 20 seconds.
pub fn teardown(path: &Path) -> anyhow::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let data = DataDir::open(path)?;
    let supervisor = data.supervisor();
    if let Some(supervisor) = &supervisor {
        supervisor.signal(Signal::TERM);
        if !wait_gone(supervisor, DOWN_PATIENCE) {
            supervisor.signal(Signal::KILL);
            wait_gone(supervisor, Duration::from_secs(5));
        }
    }
    data.sweep()?;
    let _ = std::fs::remove_file(data.pid_file());
    Ok(supervisor.is_some())
}

fn wait_gone(process: &ProcessRef, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while process.is_alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// FNV-1a of the canonical path, folded to 24 bits: short enough for the names of namespaces.
fn mesh_id(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let hash = crate::hash::fnv1a(path.as_os_str().as_bytes());
    format!("{:06x}", (hash ^ (hash >> 24) ^ (hash >> 48)) & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, read_to_string, write};

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;

    #[test]
    fn files_of_pods_that_cannot_be_removed_are_out_of_the_way_and_go_later() {
        if !rustix::process::geteuid().is_root() {
            eprintln!(
                "SKIPPED (needs root): files_of_pods_that_cannot_be_removed_are_out_of_the_way_and_go_later"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("mesh"), dir.path().join("other"));
        let data = DataDir::create(&path).unwrap();
        let busy = data.path().join("pods/a/busy");
        create_dir_all(&busy).unwrap();
        create_dir_all(&other).unwrap();
        write(data.path().join("pods/a/file"), "").unwrap();
        write(other.join("kept"), "kept").unwrap();
        if let Err(error) = mount_bind(&other, &busy) {
            eprintln!("SKIPPED (needs mounts: {error})");
            return;
        }
        data.sweep_pods();
        let (aside, gone) = (data.path().join("remains-0"), !data.path().join("pods").exists());
        let kept = read_to_string(other.join("kept"));
        unmount(aside.join(".removed-0/0/busy"), UnmountFlags::DETACH).unwrap();
        assert!(gone);
        assert_eq!(kept.unwrap(), "kept");
        data.sweep_pods();
        assert!(!aside.exists());
    }
}
