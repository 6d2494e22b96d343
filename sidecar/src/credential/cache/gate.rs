//! One connection of the control plane: one call about it at a time, and what came of the last ones. Every cached
//! credential that the connection is part of shares it, so that no two of them ask at once or one after the other
//! ignores that the control plane wants to be left alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nexus_crds::names::ConnectionId;
use tokio::sync::MutexGuard as Turn;

use super::CacheSettings;
use crate::credential::clock::Moment;
use crate::credential::refresh::{Budget, random_fraction};
use crate::credential::status::{FetchError, Hold, Verdict};
use crate::error::{Code, ProxyError};

/// An outage is asked about again at least this often.
const LONGEST_HOLD: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Gate {
    pub(super) id: ConnectionId,
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    refused: Option<Refused>,
    failures: u32,
    last_success: Option<Moment>,
    budget: Budget,
}

/// A failure that is remembered, so that nobody asks again before `until`.
#[derive(Debug)]
pub(super) struct Refused {
    error: ProxyError,
    until: Moment,
    /// It is about the connection, not about the control plane's health.
    definite: bool,
}

impl Refused {
    pub(super) fn new(error: &ProxyError, until: Moment, definite: bool) -> Self {
        Self {
            error: error.clone(),
            until,
            definite,
        }
    }

    /// The error, while it holds.
    pub(super) fn held(&self, now: Moment) -> Option<ProxyError> {
        let left = self.until.since(now);
        (!left.is_zero()).then(|| with_time_left(&self.error, left))
    }

    pub(super) fn is_definite(&self) -> bool {
        self.definite
    }
}

/// What a failed call means for who asked.
pub(super) struct Refusal {
    /// For the agent.
    pub(super) error: ProxyError,
    /// Until when nobody asks again.
    pub(super) until: Moment,
    /// A credential that is still valid is not to be used any more.
    pub(super) gone: bool,
}

impl Gate {
    pub(super) fn new(id: ConnectionId) -> Arc<Self> {
        Arc::new(Self {
            id,
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        })
    }

    /// Waits until no other call about the connection runs.
    pub(super) async fn turn(&self) -> Turn<'_, ()> {
        self.turn.lock().await
    }

    /// The last failure, while it holds.
    pub(super) fn held(&self, now: Moment) -> Option<ProxyError> {
        self.lock().refused.as_ref()?.held(now)
    }

    /// A call brought a credential.
    pub(super) fn answered(&self, now: Moment) {
        let mut state = self.lock();
        state.failures = 0;
        state.refused = None;
        state.last_success = Some(now);
    }

    /// A call failed. `valid_until` is the end of the last credential it brought, which the control plane stood by.
    pub(super) fn failed(
        &self,
        failure: &FetchError,
        valid_until: Option<Moment>,
        settings: &CacheSettings,
        now: Moment,
    ) -> Refusal {
        let mut state = self.lock();
        let outcome = failure.outcome();
        let mut error = failure.proxy_error();
        let worked = state
            .last_success
            .map(|read| valid_until.map_or(read, |end| end.min(now).max(read)));
        let worked_lately = worked.is_some_and(|at| now.since(at) < settings.outage_window);
        state.failures = state.failures.saturating_add(1);
        let mut hold = outcome.hold;
        let mut gone = false;
        match outcome.verdict {
            Verdict::Outage => {}
            Verdict::Unknown if worked_lately => {
                // A broker without its database says the same as one that never knew the connection.
                error.code = Code::BrokerUnavailable;
                error.detail = "the control plane is out of order; try again later".into();
                hold = Hold::Backoff;
            }
            Verdict::Unknown | Verdict::Gone => {
                gone = true;
                state.last_success = None;
            }
        }
        let (pause, definite) = match hold {
            Hold::Short => (settings.negative, true),
            Hold::Long => (settings.attention, true),
            Hold::Backoff => (backoff(state.failures, settings), false),
            Hold::AtLeast(wait) => (wait.clamp(Duration::from_secs(1), LONGEST_HOLD), false),
        };
        let until = now + pause;
        state.refused = Some(Refused::new(&error, until, definite));
        Refusal {
            error: with_time_left(&error, pause),
            until,
            gone,
        }
    }

    /// Forgets what was said about the connection itself; a control plane in trouble is still left alone.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        if state.refused.as_ref().is_some_and(Refused::is_definite) {
            state.refused = None;
        }
    }

    /// The refreshes of this connection.
    pub(super) fn budget<T>(&self, act: impl FnOnce(&mut Budget) -> T) -> T {
        act(&mut self.lock().budget)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error with the time that is left before another try makes sense.
fn with_time_left(error: &ProxyError, left: Duration) -> ProxyError {
    let error = error.clone();
    if error.code == Code::BrokerUnavailable {
        error.retry_after(left)
    } else {
        error
    }
}

/// Exponential with full jitter, so that the sidecars of a cluster do not come back all at once; a tenth of the bound
/// at least, so that none comes back at once.
fn backoff(failures: u32, settings: &CacheSettings) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let bound = settings
        .backoff
        .saturating_mul(1 << doublings)
        .min(settings.backoff_limit);
    bound.mul_f64(0.1 + 0.9 * random_fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_an_outage_double_to_a_limit_and_are_spread() {
        let settings = CacheSettings::default();
        for (failures, bound) in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (60, 30)] {
            let bound = Duration::from_secs(bound);
            let pauses: Vec<_> = (0..200).map(|_| backoff(failures, &settings)).collect();
            assert!(pauses.iter().all(|p| *p <= bound && *p >= bound / 10));
            let early = pauses.iter().filter(|p| **p < bound / 2).count();
            assert!((20..180).contains(&early), "{failures}: {early}");
        }
    }
}
