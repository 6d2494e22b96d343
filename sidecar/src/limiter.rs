//! Request rates per route and tenant, by the generic cell rate algorithm (ITU-T I.371): one number per key.
//!
//! The numbers belong to the process and are keyed by names, so a reloaded table does not refill them.

use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use quick_cache::sync::Cache;

const SECOND: u64 = 1_000_000_000;

/// How often requests may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests per second in the long run.
    pub per_second: NonZeroU32,
    /// Requests that may come at once after a pause.
    pub burst: NonZeroU32,
}

impl Rate {
    /// Nanoseconds that one request uses up.
    fn interval(self) -> u64 {
        (SECOND / u64::from(self.per_second.get())).max(1)
    }
}

/// A route and a tenant, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey(u64);

/// The rates of every route and tenant of the process.
///
/// Of more than `capacity` keys the least used are forgotten, which refills their bursts.
pub struct RateLimiter {
    /// Per key the time at which its bucket would be full again, in nanoseconds.
    full_at: Cache<LimitKey, Arc<AtomicU64>>,
    seed: RandomState,
}

impl RateLimiter {
    /// A limiter that remembers about `capacity` keys (some 100 bytes each).
    pub fn new(capacity: usize) -> Self {
        Self {
            full_at: Cache::new(capacity),
            seed: RandomState::default(),
        }
    }

    /// The key of a route and tenant. Allocates nothing; seeded, so nobody can choose names that collide.
    pub fn key(&self, route: &str, tenant: Option<&str>) -> LimitKey {
        let mut hasher = self.seed.build_hasher();
        route.hash(&mut hasher);
        tenant.hash(&mut hasher);
        LimitKey(hasher.finish())
    }

    /// Counts one request at `now`, in nanoseconds of a monotonic clock.
    ///
    /// The error is the time after which the next request would pass; a refused request uses nothing up.
    pub fn check(&self, key: LimitKey, rate: Rate, now: u64) -> Result<(), Duration> {
        let Ok(cell) = self
            .full_at
            .get_or_insert_with(&key, || Ok::<_, Infallible>(Arc::default()));
        let interval = rate.interval();
        let tolerance = interval.saturating_mul(u64::from(rate.burst.get()));
        let limit = now.saturating_add(tolerance);
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            // Above the limit only after the rate was raised: the debt of the old rate is not owed.
            let next = seen.clamp(now, limit).saturating_add(interval);
            let (stored, verdict) = if next <= limit {
                (next, Ok(()))
            } else {
                (seen.min(limit), Err(Duration::from_nanos(next - limit)))
            };
            if stored == seen {
                return verdict;
            }
            match cell.compare_exchange_weak(seen, stored, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return verdict,
                Err(changed) => seen = changed,
            }
        }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("keys", &self.full_at.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate {
            per_second: NonZeroU32::new(per_second).unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
        }
    }

    fn passes(limiter: &RateLimiter, key: LimitKey, rate: Rate, now: u64) -> usize {
        (0..10_000)
            .take_while(|_| limiter.check(key, rate, now).is_ok())
            .count()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let limiter = RateLimiter::new(16);
        let key = limiter.key("github", Some("a"));
        let rate = rate(50, 100);
        assert_eq!(passes(&limiter, key, rate, 0), 100);
        assert_eq!(limiter.check(key, rate, 0), Err(Duration::from_millis(20)));
        assert_eq!(
            limiter.check(key, rate, SECOND / 100),
            Err(Duration::from_millis(10))
        );
        assert_eq!(passes(&limiter, key, rate, SECOND / 50), 1);
        assert_eq!(passes(&limiter, key, rate, SECOND / 50 + SECOND), 50);
        assert_eq!(passes(&limiter, key, rate, 100 * SECOND), 100);
    }

    #[test]
    fn the_time_to_wait_is_exact_and_refusals_use_nothing_up() {
        let limiter = RateLimiter::new(16);
        let key = limiter.key("github", None);
        let rate = rate(3, 1);
        assert!(limiter.check(key, rate, 5).is_ok());
        for _ in 0..100 {
            let wait = limiter.check(key, rate, 5).unwrap_err();
            assert_eq!(wait, Duration::from_nanos(SECOND / 3));
        }
        assert!(limiter.check(key, rate, 5 + SECOND / 3 - 1).is_err());
        assert!(limiter.check(key, rate, 5 + SECOND / 3).is_ok());
    }

    #[test]
    fn routes_and_tenants_have_rates_of_their_own() {
        let limiter = RateLimiter::new(64);
        let keys = [
            limiter.key("a", None),
            limiter.key("a", Some("")),
            limiter.key("a", Some("b")),
            limiter.key("ab", None),
            limiter.key("b", Some("a")),
        ];
        for key in keys {
            assert_eq!(passes(&limiter, key, rate(1, 2), 0), 2);
        }
        assert_eq!(limiter.key("a", Some("b")), keys[2]);
    }

    #[test]
    fn a_new_rate_counts_from_the_next_request_on() {
        let limiter = RateLimiter::new(16);
        let key = limiter.key("github", None);
        assert_eq!(passes(&limiter, key, rate(1, 100), 0), 100);
        assert_eq!(passes(&limiter, key, rate(100, 100), 0), 0);
        assert_eq!(passes(&limiter, key, rate(100, 100), SECOND / 2), 50);
        assert_eq!(passes(&limiter, key, rate(100, 1), SECOND / 2), 0);
    }

    #[test]
    fn extreme_rates_neither_overflow_nor_stall() {
        let limiter = RateLimiter::new(16);
        let rates = [
            rate(u32::MAX, u32::MAX),
            rate(1, u32::MAX),
            rate(u32::MAX, 1),
        ];
        for (name, rate) in ["a", "b", "c"].into_iter().zip(rates) {
            let key = limiter.key(name, None);
            assert!(limiter.check(key, rate, 0).is_ok());
            assert!(limiter.check(key, rate, u64::MAX / 2).is_ok());
        }
    }

    #[test]
    fn concurrent_requests_never_exceed_the_burst() {
        let limiter = RateLimiter::new(16);
        let key = limiter.key("github", None);
        let passed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| passes(&limiter, key, rate(10, 500), 7)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum::<usize>()
        });
        assert_eq!(passed, 500);
    }

    #[test]
    fn more_keys_than_capacity_are_forgotten_not_kept() {
        let limiter = RateLimiter::new(32);
        for tenant in 0..10_000 {
            let key = limiter.key("github", Some(&tenant.to_string()));
            assert!(limiter.check(key, rate(1, 1), 0).is_ok());
        }
        assert!(limiter.full_at.len() <= 64);
    }
}
