//! How long requests take.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Upper bounds in milliseconds: from a cached answer to a model that thinks for minutes.
const BOUNDS: [u32; 14] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 120_000, 600_000,
];

/// A histogram of plain atomics: the library's takes a lock per observation.
#[derive(Debug, Default)]
pub(super) struct Durations {
    /// The last one has no bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Durations {
    pub(super) fn observe(&self, duration: Duration) {
        let bucket =
            BOUNDS.partition_point(|&bound| Duration::from_millis(u64::from(bound)) < duration);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }
}

impl Collector for Durations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS
            .iter()
            .map(|&bound| f64::from(bound) / 1e3)
            .chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds
            .zip(
                self.buckets
                    .iter()
                    .map(|bucket| bucket.load(Ordering::Relaxed)),
            )
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.microseconds.load(Ordering::Relaxed));
        encoder
            .encode_descriptor(
                "request_duration",
                "Time from the head of a request to the end of its answer.",
                Some(&super::SECONDS),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
    }
}
