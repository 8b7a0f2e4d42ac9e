//! Memory that a process has used and will hardly use again.

use std::ffi::c_void;
use std::fs;

use rustix::mm::{Advice, madvise};

/// Takes the own program's code and constants out of the process's memory; what is still needed of them comes back with the
/// first use, from the page cache, some tens of kilobytes at a time.
///
/// Most of what a sidecar has touched by the time it serves is the start: arguments, configuration, the first handshake.
/// It would stay resident until the kernel is short of memory.
pub fn let_go_of_start() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let Some(program) = program.to_str() else { return };
    for (start, end) in unwritable(&maps, program) {
        drop_pages(start, end);
    }
}

/// Lets the allocator give back what the calling thread has freed: pages that are empty, and memory that was not used again
/// for a second. Costs some microseconds, and fifty more for each mebibyte that goes; nothing that is in use has to be fetched again.
///
/// By itself mimalloc only looks for such pages when it needs new ones: after a burst a sidecar kept all that the burst had
/// taken (37 MB after 64 connections with 1 MB bodies, of which 9 were in use). Without mimalloc as the allocator this does nothing.
#[expect(unsafe_code, reason = "a function of C")]
pub fn give_back() {
    // SAFETY: it takes no pointers, may be called on every thread at any time, and touches only memory that is free.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

/// Where a program's code and constants are that were mapped as they are in the file. Not what the loader writes to before
/// it protects it: the file has other bytes there.
fn unwritable<'a>(maps: &'a str, program: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (range, mode, offset) = (words.next()?, words.next()?, words.next()?);
        let name = words.nth(2)?;
        // The first part of the file is constants; relocated ones come after the code.
        let is_as_in_file = mode == "r-xp" || (mode == "r--p" && offset.bytes().all(|digit| digit == b'0'));
        let (start, end) = range.split_once('-')?;
        let range = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (is_as_in_file && name == program).then_some(range)
    })
}

#[expect(unsafe_code, reason = "advice about memory has no safe wrapper")]
fn drop_pages(start: usize, end: usize) {
    let Some(length) = end.checked_sub(start) else { return };
    // SAFETY: the range is one mapping of this program's file, private and not writable, and nobody has made it writable
    // meanwhile (text relocations are refused by the linker). The kernel forgets the pages and reads the same bytes from
    // the file when they are touched again, so that no reader sees a difference.
    let outcome = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
    if let Err(error) = outcome {
        tracing::debug!(%error, "the code of the start stays in memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a position-independent program as ld and lld lay it out, and a library.
    const MAPS: &str = "\
55b5a516b000-55b5a5f96000 r--p 00000000 fe:00 12 /usr/bin/maille
55b5a5f96000-55b5a8749000 r-xp 00e2a000 fe:00 12 /usr/bin/maille
55b5a8749000-55b5a8897000 r--p 035dc000 fe:00 12 /usr/bin/maille
55b5a8897000-55b5a889f000 rw-p 03729000 fe:00 12 /usr/bin/maille
55b5a889f000-55b5a88ad000 rw-p 00000000 00:00 0
7f40c8003000-7f40c8159000 r-xp 00026000 fe:00 99 /usr/lib/libc.so.6
7ffea422a000-7ffea424b000 rw-p 00000000 00:00 0 [stack]
";

    #[test]
    fn what_the_loader_relocates_is_left_alone() {
        let found: Vec<_> = unwritable(MAPS, "/usr/bin/maille").collect();
        assert_eq!(found, [(0x55b5a516b000, 0x55b5a5f96000), (0x55b5a5f96000, 0x55b5a8749000)]);
    }

    #[test]
    fn code_and_constants_are_let_go_and_come_back() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").expect("this is Linux");
            let line = status.lines().find(|line| line.starts_with("RssFile:")).expect("in every status");
            line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
        };
        let table: [&str; 3] = ["one", "two", "three"];
        let before = resident();
        let_go_of_start();
        assert!(resident() < before, "{before} KiB were resident and still are");
        assert_eq!(table.concat(), "onetwothree");
    }
}
