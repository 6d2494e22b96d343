//! The clock that credentials are judged by. It goes on while the machine is suspended and is never set back, so a
//! laptop that slept through an expiry does not wake up with a credential that looks valid.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

/// A point in time, as a distance from when the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

/// One instant on both clocks: expiries are stated in wall time and judged by the other.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For comparing with other moments.
    pub moment: Moment,
    /// For comparing with what the control plane says.
    pub wall: SystemTime,
}

impl Moment {
    /// Now, to the nanosecond.
    pub fn now() -> Self {
        Self(since_start())
    }

    /// Whole milliseconds, to be kept in an atomic.
    pub(super) fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Now {
    /// Both clocks, read one after the other.
    pub fn read() -> Self {
        Self {
            moment: Moment::now(),
            wall: wall(),
        }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(earlier))
    }
}

#[cfg(not(test))]
fn since_start() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    // Elsewhere the monotonic clock is the one that goes on during sleep.
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(not(test))]
fn wall() -> SystemTime {
    SystemTime::now()
}

/// Tests pause and advance tokio's clock; both clocks follow it.
#[cfg(test)]
fn since_start() -> Duration {
    const BOOTED_BEFORE: Duration = Duration::from_hours(24);
    let (start, _) = *START;
    BOOTED_BEFORE + tokio::time::Instant::now().into_std().duration_since(start)
}

#[cfg(test)]
fn wall() -> SystemTime {
    let (start, wall) = *START;
    wall + tokio::time::Instant::now().into_std().duration_since(start)
}

#[cfg(test)]
static START: std::sync::LazyLock<(std::time::Instant, SystemTime)> =
    std::sync::LazyLock::new(|| (std::time::Instant::now(), SystemTime::now()));
