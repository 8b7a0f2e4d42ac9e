//! The process of one container: namespaces, mounts, privileges, exec.
//!
//! Three processes of the same binary, of which the last becomes the container's program:
//! the supervisor starts `maille sandbox` (the *monitor*, [`monitor`]), which enters the Pod's network
//! namespace, leaves the host's PID, IPC and UTS namespaces and starts the *container* stage;
//! this builds the file tree ([`tree`]), gives up every privilege ([`privileges`]) and executes the program, which
//! is then process 1 of its namespace. The monitor stays to forward signals and the exit status.
//!
//! Supervisor and monitor speak JSON lines over the monitor's standard input, a socket ([`Report`],
//! [`Order`]); when that socket closes because the supervisor died, the container dies.

mod container;
mod descriptors;
mod dial;
mod exec;
mod monitor;
mod privileges;
mod spec;
mod terminal;
mod tree;

use std::ffi::OsString;
use std::process::ExitCode;

pub use container::DEFAULT_PATH;
pub use descriptors::{receive_files, send_files};
pub use dial::dial;
pub use privileges::become_user;
pub use spec::{
    Capabilities, ExecSpec, FileTree, Joined, Order, Process, Report, SandboxSpec, Start, Volume,
};

/// What the hidden subcommand `sandbox` does: `args` are its arguments.
///
/// To be called before the process has a second thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let stage = args.into_iter().next();
    match stage.as_ref().and_then(|stage| stage.to_str()) {
        None => monitor::main(),
        Some(container::STAGE) => container::main(),
        Some(exec::STAGE) => exec::main(),
        Some(container::JOIN_STAGE) => container::join_main(),
        Some(other) => {
            eprintln!("maille sandbox: unknown stage {other:?}; the supervisor calls this, people do not");
            ExitCode::from(2)
        }
    }
}
