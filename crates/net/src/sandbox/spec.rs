use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::process::ProcessRef;

/// All that makes one container process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// A new container, or one more process in a running one.
    pub start: Start,
    /// Program, environment, user.
    pub process: Process,
}

/// Where the process starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// In new PID, mount, IPC and UTS namespaces, and in the network namespace of its Pod.
    New {
        /// Handle of the Pod's network namespace.
        network: PathBuf,
        /// The Pod's name.
        hostname: String,
        /// What it sees of files.
        tree: FileTree,
    },
    /// In the namespaces of a running container.
    Join(Joined),
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Its process 1, by its number on the host.
    pub container: ProcessRef,
}

/// What a container sees of files. Only what is named here is there: of the host, the system
/// directories (`/usr` and its kin, `/etc`, `/opt`), all read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTree {
    /// An existing directory of the host over which the tree is built.
    pub staging: PathBuf,
    /// Files of the host shown at their own path (the mesh's binary).
    pub shown: Vec<PathBuf>,
    /// Directories of the host that stay hidden even where a shown directory holds them.
    pub hidden: Vec<PathBuf>,
    /// `resolv.conf`, `hosts` and `hostname`, mounted over those of `/etc`.
    pub etc: PathBuf,
    /// The Pod's volumes.
    pub volumes: Vec<Volume>,
}

/// One directory or file of the host, mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// On the host.
    pub source: PathBuf,
    /// In the container; absolute.
    pub target: PathBuf,
    /// Whether the container may not write there.
    pub read_only: bool,
}

/// The program and the rights it runs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; looked up in the container's `PATH` unless it contains a slash.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory; `/` if none is given.
    pub directory: Option<PathBuf>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What it may do beyond an ordinary user.
    pub capabilities: Capabilities,
}

/// Capabilities of a container: none, but for the one that installs the redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capabilities {
    /// Nothing, not even in the bounding set.
    None,
    /// `CAP_NET_ADMIN`; refused for any program but `maille intercept`.
    Intercept,
}

/// One more process in a running container, with streams of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The container.
    pub container: Joined,
    /// Program, environment, user.
    pub process: Process,
    /// Whether its streams are a terminal, rather than the three files that come with this.
    pub terminal: bool,
}

/// What the monitor tells the supervisor, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// The program runs.
    Started {
        /// Its process on the host.
        process: ProcessRef,
    },
    /// It could not be started.
    Failed {
        /// Why, for people.
        message: String,
        /// 127 when there is no such program, 126 when it cannot be executed, 125 for the rest.
        code: i32,
    },
    /// It ended.
    Exited {
        /// Exit code, or 128 and the signal's number.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
    },
}

/// What the supervisor tells the monitor after the specification, one JSON line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Ask the program to end: SIGTERM. A program that does not handle the signal would be spared by the kernel
    /// for being process 1, and is ended as it would be anywhere else.
    Terminate,
    /// End it now.
    Kill,
}
