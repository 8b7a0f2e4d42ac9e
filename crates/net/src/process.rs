//! Processes, named so that a reused number is not mistaken for them.

use std::io;
use std::path::Path;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// A process number together with its start time in clock ticks since boot, which a later process
/// of the same number does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessRef {
    /// Process number in the host's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)).
    pub start_time: u64,
}

impl ProcessRef {
    /// The calling process.
    pub fn current() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).unwrap_or(i32::MAX))
    }

    /// The process that has this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/<pid>/stat"))?;
        Ok(Self { pid, start_time })
    }

    /// Whether that very process still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
        !zombie && start_time(&stat) == Some(self.start_time)
    }

    /// Sends a signal, unless the number belongs to another process by now.
    pub fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        // The descriptor pins the process; only then is comparing start times meaningful.
        let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
        if Self::of(self.pid).is_ok_and(|now| now == *self) {
            let _ = rustix::process::pidfd_send_signal(&fd, signal);
        }
    }

    /// Reads one written by [`ProcessRef::write`]; `None` when there is none or it is not readable.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Writes it to a file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?)
    }
}

fn start_time(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold anything, so count from its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

pub(crate) fn kill_hard(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Asks the kernel to end this process when the thread that started it ends.
///
/// To be called first thing; if the parent is gone already, the process ends here.
pub fn die_with_parent() -> io::Result<()> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != parent {
        std::process::exit(1);
    }
    Ok(())
}

/// Makes this process's memory unreadable to others of its user, and keeps it out of core dumps.
pub fn make_undumpable() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_a_name_with_parentheses_and_blanks() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("17 (a) b (c)) {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(22));
    }

    #[test]
    fn a_process_is_alive_until_it_is_reaped_or_a_zombie() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let reference = ProcessRef::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(reference.is_alive());
        reference.signal(Signal::KILL);
        child.wait().unwrap();
        assert!(!reference.is_alive());
    }
}
