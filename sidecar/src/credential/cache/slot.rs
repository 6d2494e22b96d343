//! One key of the cache: the credential, the flight that renews it, and what is remembered of the last one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::CacheSettings;
use super::gate::{Gate, Refused};
use super::renewal::{Cause, Failure};
use crate::credential::clock::{Moment, Now};
use crate::credential::{Credential, Side};
use crate::error::{Code, ProxyError};

/// What a flight brought; `None` while it runs.
pub(super) type Settled = Option<Result<Arc<Credential>, ProxyError>>;

/// A stale credential is given out without looking for a flight for this long while it is renewed.
const RENEWING: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Slot {
    /// The connection, and the second one if there is one.
    pub(super) gates: Gates,
    /// The last credential, expired ones included: they tell when a value was first seen.
    current: ArcSwapOption<Held>,
    /// Until when it is given out without a look at `state`, in milliseconds.
    fresh_until: AtomicU64,
    /// Given out since it was obtained.
    used: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct Gates {
    pub(super) first: Arc<Gate>,
    pub(super) second: Option<Arc<Gate>>,
}

#[derive(Debug, Default)]
struct State {
    flight: Option<watch::Receiver<Settled>>,
    /// What is wrong with the credential itself; failed calls are remembered by the gates.
    refused: Option<Refused>,
    /// A rejected value that is the only one there is, until when that is believed.
    unchanged: Option<(Arc<Credential>, Moment)>,
    timer: Option<Timer>,
}

/// A task that ends with what it was started for.
#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A credential with its times.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) credential: Arc<Credential>,
    /// When this value was first seen.
    pub(super) obtained: Moment,
    /// Ends a little before its expiry.
    usable_until: Option<Moment>,
    /// When it is to be renewed.
    refresh_at: Option<Moment>,
    /// The control plane has taken it back. Kept, since it tells when its value was first seen.
    gone: bool,
}

/// What a caller has to do.
pub(super) enum Entry {
    /// Use this.
    Valid(Arc<Credential>),
    /// Wait for a flight.
    Wait(watch::Receiver<Settled>),
    /// Start a flight and announce what it brought; use what is still valid meanwhile.
    Start {
        valid: Option<Arc<Credential>>,
        announce: watch::Sender<Settled>,
        result: watch::Receiver<Settled>,
    },
    /// There is nothing (else) to be had at the moment.
    Refused(ProxyError),
    /// The rejected value is the only one there is.
    Unchanged,
}

impl Slot {
    pub(super) fn new(gates: Gates) -> Arc<Self> {
        Arc::new(Self {
            gates,
            current: ArcSwapOption::empty(),
            fresh_until: AtomicU64::new(0),
            used: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// The credential, if it is usable and need not be renewed.
    pub(super) fn fresh(&self, now: Moment) -> Option<Arc<Credential>> {
        if now.millis() >= self.fresh_until.load(Ordering::Acquire) {
            return None;
        }
        self.usable(now)
    }

    fn usable(&self, now: Moment) -> Option<Arc<Credential>> {
        let current = self.current.load();
        let held = current.as_ref().filter(|held| held.is_usable(now))?;
        // Most of the time it is set, and then the cache line stays shared.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&held.credential))
    }

    /// Decides under the lock, so that of many callers exactly one starts a flight.
    pub(super) fn enter(&self, now: Moment) -> Entry {
        let mut state = self.lock();
        if let Some(credential) = self.fresh(now) {
            return Entry::Valid(credential);
        }
        let valid = self.usable(now);
        if let Some(flight) = state.flight() {
            return valid.map_or(Entry::Wait(flight), Entry::Valid);
        }
        if let Some(error) = self.held(&state, now) {
            return valid.map_or(Entry::Refused(error), Entry::Valid);
        }
        if valid.is_some() {
            self.set_fresh_until(now + RENEWING);
        }
        state.start(valid)
    }

    /// The same for who has seen `rejected` being rejected and wants another one.
    pub(super) fn enter_rejected(&self, rejected: &Arc<Credential>, now: Moment) -> Entry {
        let mut state = self.lock();
        let valid = self.usable(now);
        if let Some(other) = valid.as_ref().filter(|it| !it.has_same_value(rejected)) {
            return Entry::Valid(Arc::clone(other));
        }
        if let Some(flight) = state.flight() {
            return Entry::Wait(flight);
        }
        if let Some((value, until)) = &state.unchanged
            && now < *until
            && value.has_same_value(rejected)
        {
            return Entry::Unchanged;
        }
        if let Some(error) = self.held(&state, now) {
            return Entry::Refused(error);
        }
        state.start(None)
    }

    /// The current credential with its times.
    pub(super) fn current(&self) -> Option<Arc<Held>> {
        self.current.load_full()
    }

    /// Takes in what a flight brought. Says when the credential is to be renewed although nobody may ask for it.
    pub(super) fn settle(
        &self,
        brought: Result<Credential, Failure>,
        cause: &Cause,
        settings: &CacheSettings,
        now: Now,
    ) -> (Result<Arc<Credential>, ProxyError>, Option<Moment>) {
        let mut state = self.lock();
        state.flight = None;
        match brought {
            Ok(credential) => self.accept(&mut state, credential, cause, settings, now),
            Err(failure) => (Err(self.refuse(&mut state, failure, settings, now)), None),
        }
    }

    fn accept(
        &self,
        state: &mut State,
        mut credential: Credential,
        cause: &Cause,
        settings: &CacheSettings,
        now: Now,
    ) -> (Result<Arc<Credential>, ProxyError>, Option<Moment>) {
        let earlier = self.current.load_full();
        if let Some(earlier) = &earlier {
            credential.keep_first_sight(&earlier.credential);
        }
        let held = Arc::new(Held::new(credential, earlier, &self.gates, settings, now));
        self.current.store(Some(Arc::clone(&held)));
        let moment = now.moment;
        if !held.is_usable(moment) {
            let error = ProxyError::new(
                Code::CredentialInvalid,
                "the credential has expired and the control plane has not renewed it; authorize the connection again",
            )
            .internal("the payload is expired");
            state.refused = Some(Refused::new(&error, moment + settings.negative, true));
            return (Err(error), None);
        }
        state.refused = None;
        state.unchanged = match cause {
            Cause::Rejected { credential, .. } if credential.has_same_value(&held.credential) => {
                Some((Arc::clone(credential), moment + settings.negative))
            }
            Cause::Rejected { .. } | Cause::Needed => None,
        };
        self.used.store(false, Ordering::Relaxed);
        match (held.usable_until, held.refresh_at) {
            (None, _) => self.set_fresh_until(moment + settings.max_age),
            (Some(until), at) => self.set_fresh_until(at.unwrap_or(until)),
        }
        let ahead = held.refresh_at.filter(|at| held.is_usable(*at));
        (Ok(Arc::clone(&held.credential)), ahead)
    }

    fn refuse(
        &self,
        state: &mut State,
        failure: Failure,
        settings: &CacheSettings,
        now: Now,
    ) -> ProxyError {
        let (error, until, gone) = match failure {
            Failure::Call(refusal) => (refusal.error, refusal.until, refusal.gone),
            Failure::Payload(error) => {
                let until = now.moment + settings.negative;
                state.refused = Some(Refused::new(&error, until, true));
                (error, until, true)
            }
            Failure::Awaited(error) => {
                let until = now.moment + settings.negative;
                state.refused = Some(Refused::new(&error, until, false));
                (error, until, false)
            }
            // Whoever is held back may look again as soon as the hold ends.
            Failure::Held(error) => (error, now.moment, false),
        };
        if gone && let Some(held) = self.current.load_full() {
            self.current.store(Some(Arc::new(held.taken_back())));
        }
        self.set_fresh_until(until);
        error
    }

    /// Renews at the given time if the credential was used by then.
    pub(super) fn set_timer(&self, timer: AbortHandle) {
        self.lock().timer = Some(Timer(timer));
    }

    /// Whether the credential was given out since it was obtained.
    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Forgets failures that a new table may have mended.
    pub(super) fn forget_failures(&self) {
        self.lock().refused = None;
        self.gates.all().for_each(|gate| gate.forget());
    }

    fn held(&self, state: &State, now: Moment) -> Option<ProxyError> {
        let own = state.refused.as_ref().and_then(|refused| refused.held(now));
        own.or_else(|| self.gates.all().find_map(|gate| gate.held(now)))
    }

    fn set_fresh_until(&self, at: Moment) {
        self.fresh_until.store(at.millis(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The flight that runs. One whose sender is gone without a result belongs to a task that died.
    fn flight(&self) -> Option<watch::Receiver<Settled>> {
        let flight = self.flight.as_ref()?;
        flight.has_changed().is_ok().then(|| flight.clone())
    }

    fn start(&mut self, valid: Option<Arc<Credential>>) -> Entry {
        let (announce, result) = watch::channel(None);
        self.flight = Some(result.clone());
        Entry::Start {
            valid,
            announce,
            result,
        }
    }
}

impl Gates {
    pub(super) fn of(&self, side: Side) -> &Gate {
        match (side, &self.second) {
            (Side::Second, Some(second)) => second,
            (Side::First | Side::Second, _) => &self.first,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Gate>> {
        std::iter::once(&self.first).chain(&self.second)
    }
}

impl Held {
    fn new(
        credential: Credential,
        earlier: Option<Arc<Self>>,
        gates: &Gates,
        settings: &CacheSettings,
        now: Now,
    ) -> Self {
        let Now { moment, wall } = now;
        let mut usable_until = credential.usable_for(wall).map(|left| moment + left);
        let earlier = earlier.filter(|it| it.credential.has_same_value(&credential));
        let rules = &settings.refresh;
        let gate = gates.of(credential.refreshes().unwrap_or(Side::First));
        let role = gate.budget(|budget| budget.role);
        let first = |until| rules.first(gate.id.as_u128(), role, moment, until);
        let mut refresh_at = usable_until.map(first);
        if let Some(earlier) = &earlier
            && credential.expires_at() <= earlier.credential.expires_at()
        {
            // The same end, whatever the wall clock has done meanwhile.
            usable_until = match (usable_until, earlier.usable_until) {
                (Some(until), Some(before)) => Some(until.min(before)),
                (until, before) => until.or(before),
            };
            refresh_at = usable_until.map(|until| match earlier.refresh_at {
                Some(at) if moment < at => at,
                Some(_) | None => rules.next(moment, until),
            });
        }
        Self {
            credential: Arc::new(credential),
            obtained: earlier.map_or(moment, |earlier| earlier.obtained),
            usable_until,
            refresh_at,
            gone: false,
        }
    }

    fn taken_back(&self) -> Self {
        Self {
            credential: Arc::clone(&self.credential),
            gone: true,
            ..*self
        }
    }

    /// It lasts, and nobody has taken it back.
    pub(super) fn is_usable(&self, now: Moment) -> bool {
        !self.gone && self.lasts(now)
    }

    /// It has not expired.
    pub(super) fn lasts(&self, now: Moment) -> bool {
        self.usable_until.is_none_or(|until| now < until)
    }

    /// It is time to renew it.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.refresh_at.is_some_and(|at| now >= at)
    }

    /// When it stops being used.
    pub(super) fn usable_until(&self) -> Option<Moment> {
        self.usable_until
    }
}
