//! Resident memory of the sidecar over time.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is read.
const INTERVAL: Duration = Duration::from_millis(500);

/// Bytes at the beginning, and the highest of each later part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) start: u64,
    /// Highest from the end of the warm-up to the middle of what follows it.
    pub(crate) middle: u64,
    /// Highest from there to the end.
    pub(crate) end: u64,
}

/// Reads the process's memory until it is stopped. What happened before `warm` has passed does not count.
pub(crate) async fn watch(pid: u32, warm: Duration, stopped: watch::Receiver<bool>) -> Memory {
    let started = Instant::now();
    let start = resident(pid);
    let mut samples = Vec::new();
    while !*stopped.borrow() {
        tokio::time::sleep(INTERVAL).await;
        if started.elapsed() >= warm {
            samples.push(resident(pid));
        }
    }
    let (middle, end) = samples.split_at(samples.len() / 2);
    let highest = |samples: &[u64]| samples.iter().copied().max().unwrap_or_default();
    Memory {
        start,
        middle: highest(middle),
        end: highest(end),
    }
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .expect("a process has memory")
        .trim()
        .trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") * 1024
}
