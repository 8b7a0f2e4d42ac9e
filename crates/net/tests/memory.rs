//! Memory goes back to the kernel, under the allocator that the binary has.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use maille_net::memory;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this process has of its own, in KiB.
fn own_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("in every status");
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// As connections and requests leave it: buffers of many sizes that go in another order than they came, and a few that stay.
#[test]
fn what_a_burst_took_goes_back() {
    let before = own_kib();
    let sizes = [40, 200, 700, 1500, 4 << 10, 16 << 10, 60 << 10, 128 << 10];
    let mut burst: Vec<Vec<u8>> = (0..4000).map(|n| vec![1; sizes[n % sizes.len()]]).collect();
    let full = own_kib() - before;
    assert!(full > 64 << 10, "the burst took {full} KiB");
    let kept: Vec<Vec<u8>> = burst.drain(..16).collect();
    while burst.len() > 1 {
        burst.swap_remove(burst.len() / 2);
    }
    drop(burst);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        thread::sleep(Duration::from_millis(500));
        memory::give_back();
        let left = own_kib().saturating_sub(before);
        if left < full / 16 {
            break;
        }
        assert!(Instant::now() < end, "of {full} KiB, {left} did not go back");
    }
    assert!(kept.iter().all(|one| one.iter().all(|byte| *byte == 1)), "what is in use is as it was");
}
