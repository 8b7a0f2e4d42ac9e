//! What the kernel says of this process, under the names that every Prometheus client uses.

use std::fmt;

use crate::exposition::{Kind, family, sample};

/// Clock ticks per second in `/proc` (proc(5): USER_HZ, 100 on every Linux that we run on).
const TICKS: f64 = 100.0;

/// One look at `/proc`.
#[derive(Debug)]
pub(crate) struct Process {
    cpu_seconds: f64,
    start: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_files: usize,
}

/// `None` where there is no `/proc`.
pub(crate) fn look() -> Option<Process> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before it may hold blanks.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered as in proc(5), where the state is field 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|n| n * 1024)
    };
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) / TICKS,
        start: boot + field(22)? / TICKS,
        resident_bytes: kilobytes("VmRSS:")?,
        virtual_bytes: kilobytes("VmSize:")?,
        threads: field(20)? as u64,
        open_files: std::fs::read_dir("/proc/self/fd").ok()?.count(),
    })
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut one = |name: &str, kind, help: &str, value: &dyn fmt::Display| {
            family(&mut text, name, kind, help);
            sample(&mut text, name, &[], value);
        };
        one(
            "process_cpu_seconds_total",
            Kind::Counter,
            "Time on processors, user and system.",
            &self.cpu_seconds,
        );
        one(
            "process_start_time_seconds",
            Kind::Gauge,
            "When the process started, Unix seconds.",
            &self.start,
        );
        one("process_resident_memory_bytes", Kind::Gauge, "Memory in use.", &self.resident_bytes);
        one("process_virtual_memory_bytes", Kind::Gauge, "Memory mapped.", &self.virtual_bytes);
        one("process_threads", Kind::Gauge, "Threads.", &self.threads);
        one("process_open_fds", Kind::Gauge, "Open file descriptors.", &self.open_files);
        f.write_str(&text)
    }
}
