//! One key of the cache: the credential, the fetch under way, and the failure that is remembered.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::CacheSettings;
use crate::credential::Credential;
use crate::credential::status::{FetchError, Hold, Verdict};
use crate::error::{Code, ProxyError};

/// What a fetch brought; `None` while it runs.
pub(super) type Settled = Option<Result<Arc<Credential>, ProxyError>>;

/// A stale credential is given out without asking again for this long while it is read anew. Longer than any
/// fetch takes.
const READING: Duration = Duration::from_secs(15);
/// An outage is asked about again at least this often.
const LONGEST_HOLD: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The last credential, expired ones included: they tell when a value was first seen.
    current: ArcSwapOption<Credential>,
    /// Until when it is given out without a look at `state`, in milliseconds of Unix time.
    fresh_until: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fetch: Option<watch::Receiver<Settled>>,
    refused: Option<Refused>,
    failures: u32,
    last_success: Option<SystemTime>,
}

#[derive(Debug)]
struct Refused {
    error: ProxyError,
    until: Instant,
}

/// What a caller has to do.
pub(super) enum Entry {
    /// Use this.
    Valid(Arc<Credential>),
    /// Wait for a fetch that runs.
    Wait(watch::Receiver<Settled>),
    /// Run the fetch and announce what it brought; use what is still valid meanwhile.
    Fetch {
        valid: Option<Arc<Credential>>,
        announce: watch::Sender<Settled>,
        result: watch::Receiver<Settled>,
    },
}

impl Slot {
    /// The credential, if it is usable and need not be read again.
    pub(super) fn fresh(&self, now: SystemTime) -> Option<Arc<Credential>> {
        if unix_millis(now) >= self.fresh_until.load(Ordering::Acquire) {
            return None;
        }
        self.usable(now)
    }

    fn usable(&self, now: SystemTime) -> Option<Arc<Credential>> {
        let current = self.current.load();
        current
            .as_ref()
            .filter(|credential| credential.is_usable(now))
            .map(Arc::clone)
    }

    /// Decides under the lock, so that of many callers exactly one fetches.
    pub(super) fn enter(&self, now: SystemTime) -> Result<Entry, ProxyError> {
        let mut state = self.lock();
        if let Some(credential) = self.fresh(now) {
            return Ok(Entry::Valid(credential));
        }
        let valid = self.usable(now);
        // A sender that is gone without a result belongs to a task that died.
        if let Some(fetch) = state.fetch.as_ref().filter(|f| f.has_changed().is_ok()) {
            return Ok(valid.map_or_else(|| Entry::Wait(fetch.clone()), Entry::Valid));
        }
        if let Some(Refused { error, until }) = &state.refused {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return valid.map(Entry::Valid).ok_or_else(|| held(error, left));
            }
        }
        let (announce, result) = watch::channel(None);
        state.fetch = Some(result.clone());
        if valid.is_some() {
            self.set_fresh_until(now + READING);
        }
        Ok(Entry::Fetch {
            valid,
            announce,
            result,
        })
    }

    /// Takes in what a fetch brought.
    pub(super) fn settle(
        &self,
        fetched: Result<Credential, FetchError>,
        settings: &CacheSettings,
        now: SystemTime,
    ) -> Result<Arc<Credential>, ProxyError> {
        let mut state = self.lock();
        state.fetch = None;
        match fetched {
            Ok(credential) => self.accept(&mut state, credential, settings, now),
            Err(failure) => {
                let error = self.refuse(&mut state, &failure, settings, now);
                Err(error)
            }
        }
    }

    fn accept(
        &self,
        state: &mut State,
        mut credential: Credential,
        settings: &CacheSettings,
        now: SystemTime,
    ) -> Result<Arc<Credential>, ProxyError> {
        if let Some(earlier) = self.current.load().as_deref() {
            credential.keep_first_sight(earlier);
        }
        let credential = Arc::new(credential);
        self.current.store(Some(Arc::clone(&credential)));
        if !credential.is_usable(now) {
            let error = ProxyError::new(
                Code::CredentialInvalid,
                "the credential has expired and the control plane has not renewed it; refresh the connection or authorize it again",
            )
            .internal("the payload is expired");
            return Err(remember(state, &error, settings.negative));
        }
        state.failures = 0;
        state.refused = None;
        state.last_success = Some(now);
        match credential.expires_at() {
            Some(_) => self.fresh_until.store(u64::MAX, Ordering::Release),
            None => self.set_fresh_until(now + settings.max_age),
        }
        Ok(credential)
    }

    fn refuse(
        &self,
        state: &mut State,
        failure: &FetchError,
        settings: &CacheSettings,
        now: SystemTime,
    ) -> ProxyError {
        let outcome = failure.outcome();
        let mut error = failure.proxy_error();
        let worked_lately = self
            .last_worked(state, now)
            .and_then(|at| now.duration_since(at).ok())
            .is_some_and(|ago| ago < settings.outage_window);
        state.failures = state.failures.saturating_add(1);
        let mut hold = outcome.hold;
        match outcome.verdict {
            Verdict::Outage => {}
            Verdict::Unknown if worked_lately => {
                // A broker without its database says the same as one that never knew the connection.
                error.code = Code::BrokerUnavailable;
                error.detail = "the control plane is out of order; try again later".into();
                hold = Hold::Backoff;
            }
            Verdict::Unknown | Verdict::Gone => {
                self.current.store(None);
                state.last_success = None;
            }
        }
        let pause = match hold {
            Hold::Short => settings.negative,
            Hold::Long => settings.attention,
            Hold::Backoff => backoff(state.failures, settings),
            Hold::AtLeast(wait) => wait.clamp(Duration::from_secs(1), LONGEST_HOLD),
        };
        self.set_fresh_until(now + pause);
        remember(state, &error, pause)
    }

    /// When the control plane last stood by the credential: at the last good read, or while it was valid.
    fn last_worked(&self, state: &State, now: SystemTime) -> Option<SystemTime> {
        let expiry = self
            .current
            .load()
            .as_deref()
            .and_then(Credential::expires_at);
        state
            .last_success
            .map(|read| expiry.map_or(read, |at| at.min(now).max(read)))
    }

    fn set_fresh_until(&self, at: SystemTime) {
        self.fresh_until.store(unix_millis(at), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(state: &mut State, error: &ProxyError, pause: Duration) -> ProxyError {
    state.refused = Some(Refused {
        error: error.clone(),
        until: Instant::now() + pause,
    });
    held(error, pause)
}

/// The error with the time that is left before another try makes sense.
fn held(error: &ProxyError, left: Duration) -> ProxyError {
    let error = error.clone();
    if error.code == Code::BrokerUnavailable {
        error.retry_after(left)
    } else {
        error
    }
}

fn backoff(failures: u32, settings: &CacheSettings) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = settings
        .backoff
        .saturating_mul(1 << doublings)
        .min(settings.backoff_limit);
    // Between 80 and 120 %, so that the sidecars of a cluster do not come back all at once.
    let jitter = RandomState::new().build_hasher().finish() % 41;
    pause * (80 + u32::try_from(jitter).unwrap_or_default()) / 100
}

fn unix_millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
