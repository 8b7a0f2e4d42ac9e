//! Giving up every privilege, in an order in which nothing can be regained.

use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use super::spec::{Capabilities, Process};
use crate::NetError;

/// Open files per process: enough for a busy proxy, and a bound for a leak.
const OPEN_FILES: u64 = 65_536;
/// Processes and threads per user; a Pod has a user of its own unless its manifest says otherwise.
const PROCESSES: u64 = 8_192;

/// Becomes this user, alone in a group of the same number, for good and with no capability: for a process that needed
/// root only to begin. It ends with its parent, as [`crate::process::die_with_parent`] arranges.
///
/// The process must be single-threaded: the calls below concern the calling thread.
pub fn become_user(id: u32) -> Result<(), NetError> {
    become_with(id, id, &[], CapabilitySet::empty())
}

/// Becomes the container's user for good, with no capability but what `process` names.
///
/// The process must be single-threaded: the calls below concern the calling thread.
pub(super) fn drop_all(process: &Process) -> Result<(), NetError> {
    let keep = match process.capabilities {
        Capabilities::None => CapabilitySet::empty(),
        Capabilities::Intercept => CapabilitySet::NET_ADMIN,
    };
    become_with(process.uid, process.gid, &process.groups, keep)
}

fn become_with(uid: u32, gid: u32, groups: &[u32], keep: CapabilitySet) -> Result<(), NetError> {
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, OPEN_FILES)?;
    // Root's processes are counted over the whole host, and `maille intercept` must be able to start `nft`.
    if uid != 0 {
        limit(Resource::Nproc, PROCESSES)?;
    }

    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(capability) {
            // Beyond the last capability this kernel knows.
            Err(Errno::INVAL) => break,
            result => result.map_err(NetError::sys("drop a capability from the bounding set"))?,
        }
    }

    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    thread::set_thread_groups(&groups).map_err(NetError::sys("set supplementary groups"))?;
    thread::set_thread_res_gid(gid, gid, gid).map_err(NetError::sys("set the group"))?;
    if !keep.is_empty() {
        thread::set_keep_capabilities(true).map_err(NetError::sys("keep a capability"))?;
    }
    thread::set_thread_res_uid(uid, uid, uid).map_err(NetError::sys("set the user"))?;
    thread::set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })
        .map_err(NetError::sys("set capabilities"))?;
    thread::clear_ambient_capability_set().map_err(NetError::sys("clear ambient capabilities"))?;
    if !keep.is_empty() {
        // `nft`, which `maille intercept` executes, gets it as well.
        thread::configure_capability_in_ambient_set(keep, true)
            .map_err(NetError::sys("pass a capability on"))?;
    }
    thread::set_no_new_privs(true).map_err(NetError::sys("set no_new_privs"))?;
    // After the change of user, which would clear it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(NetError::sys("set the parent-death signal"))
}

/// Sets both limits, but never above what this machine allows (root may lack `CAP_SYS_RESOURCE`).
fn limit(resource: Resource, value: u64) -> Result<(), NetError> {
    let value = rustix::process::getrlimit(resource).maximum.map_or(value, |maximum| maximum.min(value));
    rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .map_err(NetError::sys(format!("limit {resource:?}")))
}
