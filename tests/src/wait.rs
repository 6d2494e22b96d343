//! Waiting for a condition, with a limit that only a broken program reaches.

use std::time::{Duration, Instant};

/// How long anything may take before a test calls it hung.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Polls `condition` until it yields a value.
///
/// # Panics
///
/// After [`LIMIT`], naming what was waited for.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < LIMIT,
            "waited {LIMIT:?} in vain for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Awaits `future`, which must not take longer than [`LIMIT`].
///
/// # Panics
///
/// After [`LIMIT`], naming what was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {LIMIT:?}"))
}
