//! Network namespaces with names, as `ip netns` keeps them.
//!
//! A thread that enters a namespace never comes back to a pool: [`NetNs::run`] gives each closure a thread of
//! its own, which ends with it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::run;
use crate::{NetError, process};

/// Where `ip netns` keeps its handles.
const DIRECTORY: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// The namespace of this name, whether or not it exists.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes it; one that is left from an earlier run is replaced.
    pub fn create(name: impl Into<String>) -> Result<Self, NetError> {
        let ns = Self::named(name);
        if ns.exists() {
            ns.delete()?;
        }
        run("ip", &["netns", "add", &ns.name], None)?;
        Ok(ns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle in the file system, to bind or enter.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Whether there is a handle of that name.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// All namespaces whose names start so.
    pub fn list(prefix: &str) -> Result<Vec<Self>, NetError> {
        let entries = match std::fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(NetError::io(format!("list {DIRECTORY}"))(e)),
        };
        let mut found: Vec<Self> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .map(Self::named)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Processes whose main thread is in it.
    pub fn pids(&self) -> Result<Vec<i32>, NetError> {
        let text = run("ip", &["netns", "pids", &self.name], None)?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Ends every process in it: at once, and without asking, because these are left-overs.
    pub fn kill_all(&self) -> Result<usize, NetError> {
        let mut killed = 0;
        // A process may fork while the list is read: look again until nothing is left.
        for _ in 0..20 {
            let own = std::process::id();
            let pids: Vec<i32> = self.pids()?.into_iter().filter(|pid| pid.unsigned_abs() != own).collect();
            if pids.is_empty() {
                break;
            }
            killed += pids.len();
            for pid in pids {
                process::kill_hard(pid);
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        Ok(killed)
    }

    /// Removes the name; links in it go with the last process.
    pub fn delete(&self) -> Result<(), NetError> {
        if !self.exists() {
            return Ok(());
        }
        run("ip", &["netns", "delete", &self.name], None).map(drop)
    }

    /// Opens the handle.
    pub fn open(&self) -> Result<File, NetError> {
        File::open(self.path()).map_err(|source| NetError::Namespace { path: self.path(), source })
    }

    /// Moves the calling thread into it, for good.
    ///
    /// Only for a thread that will end there, or for `main` before any other thread starts.
    pub fn enter(&self) -> Result<(), NetError> {
        enter_file(&self.open()?, &self.path())
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    ///
    /// Sockets opened and processes started by `work` belong to the namespace, wherever they are used
    /// later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        let handle = self.open()?;
        let path = self.path();
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, move || {
                    enter_file(&handle, &path)?;
                    Ok(work())
                })
                .map_err(NetError::io("start a thread for a namespace"))?;
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// The namespace the calling thread is in, to come back to or to hand on.
pub fn current() -> Result<File, NetError> {
    let path = PathBuf::from("/proc/thread-self/ns/net");
    File::open(&path).map_err(|source| NetError::Namespace { path, source })
}

/// Moves the calling thread into an open namespace handle, for good.
pub fn enter_file(handle: &File, path: &Path) -> Result<(), NetError> {
    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| NetError::Namespace { path: path.to_owned(), source: errno.into() })
}
