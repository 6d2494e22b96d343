//! When a credential is renewed, and when the control plane may be asked to refresh it: rules over the times they are
//! given, without a clock of their own.
//!
//! A refresh uses up a refresh token at many providers, and two at once end a connection for good. So a process asks
//! for one only when reading the credential again has not helped, and an agent, which can provoke any number of
//! rejections, cannot make it ask often.

use std::hash::BuildHasher;
use std::time::Duration;

use super::clock::Moment;

/// Times of the refresh rules.
#[derive(Clone, Debug)]
pub struct RefreshSettings {
    /// How long before a credential stops being used it is renewed; a fifth of its life if that is less. 5 minutes.
    pub ahead: Duration,
    /// Shortest pause before another attempt to renew a credential whose expiry did not move. 30 seconds.
    pub again: Duration,
    /// A rejected credential younger than this is not refreshed: the rejection is not about its age. 60 seconds.
    pub trusted: Duration,
    /// Shortest time between refreshes that rejections cause. Doubles while they go on. 5 minutes.
    pub forced: Duration,
    /// Longest such time. 1 hour.
    pub forced_limit: Duration,
    /// Longest random pause before a refresh that could not be planned, so that the sidecars which share a connection
    /// do not ask at once. 500 milliseconds.
    pub spread: Duration,
    /// Decides where in the time ahead of an expiry this process renews. Random for each process.
    pub seed: u64,
}

impl Default for RefreshSettings {
    fn default() -> Self {
        Self {
            ahead: Duration::from_mins(5),
            again: Duration::from_secs(30),
            trusted: Duration::from_mins(1),
            forced: Duration::from_mins(5),
            forced_limit: Duration::from_hours(1),
            spread: Duration::from_millis(500),
            seed: foldhash::quality::RandomState::default().hash_one(std::process::id()),
        }
    }
}

impl RefreshSettings {
    /// When a credential that was just obtained is to be renewed.
    ///
    /// A process has its place in the window for each connection. Of those that share a connection the first to renew
    /// it moves to the front and the others, who find it renewed, to the back: once one has led, no other comes near.
    pub(super) fn first(
        &self,
        connection: u128,
        role: Role,
        now: Moment,
        usable_until: Moment,
    ) -> Moment {
        let life = usable_until.since(now);
        let window = self.ahead.min(life / 5);
        let place = fraction(mixed(self.seed, connection));
        usable_until
            - window.mul_f64(match role {
                Role::Unknown => 0.25 + 0.75 * place,
                Role::Leads => 0.9 + 0.1 * place,
                Role::Follows => 0.25 + 0.25 * place,
            })
    }

    /// When to try again after an attempt that did not move the expiry.
    pub(super) fn next(&self, now: Moment, usable_until: Moment) -> Moment {
        now + (usable_until.since(now) / 2).max(self.again)
    }

    /// The pause before a refresh that could not be planned.
    pub(super) fn pause(&self, role: Role) -> Duration {
        let place = random_fraction();
        self.spread.mul_f64(match role {
            Role::Unknown => place,
            Role::Leads => 0.2 * place,
            Role::Follows => 0.6 + 0.4 * place,
        })
    }
}

/// Who renews a connection that several processes share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// It has not come to that yet.
    #[default]
    Unknown,
    /// This process did the last time.
    Leads,
    /// Another one did.
    Follows,
}

/// What was asked of the control plane for one connection, which bounds what may still be asked.
#[derive(Debug, Default)]
pub(super) struct Budget {
    last: Option<Asked>,
    forced: Option<Moment>,
    spacing: Option<Duration>,
    pub(super) role: Role,
}

#[derive(Debug)]
struct Asked {
    at: Moment,
    value: Fingerprint,
    outcome: Outcome,
}

/// What came of a refresh, as far as it decides when another one makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It ran, or is still running.
    Done,
    /// The value cannot be refreshed.
    Refused,
    /// The control plane or the provider was out of order, and said so.
    Failed,
    /// No answer came: it may have run, or may still be running.
    Lost,
}

/// SHA-256 of a credential's secret value.
pub(super) type Fingerprint = [u8; 32];

impl Budget {
    /// Whether the credential with this value may be refreshed because it expires, or is no longer usable.
    pub(super) fn allows_renewal(
        &self,
        value: &Fingerprint,
        usable: bool,
        now: Moment,
        settings: &RefreshSettings,
    ) -> bool {
        let Some(asked) = self.last.as_ref().filter(|asked| asked.value == *value) else {
            return true;
        };
        let pause = match asked.outcome {
            Outcome::Refused => settings.forced,
            // Once it has expired, the pause of the outage is the only one.
            Outcome::Failed if !usable => return true,
            Outcome::Failed | Outcome::Lost | Outcome::Done => settings.again,
        };
        now >= asked.at + pause
    }

    /// How long it has to be waited for what an unanswered refresh of this value may still bring.
    pub(super) fn awaits(
        &self,
        value: &Fingerprint,
        now: Moment,
        settings: &RefreshSettings,
    ) -> Option<Duration> {
        let asked = self.last.as_ref()?;
        let left = (asked.at + settings.again).since(now);
        let awaits = asked.outcome == Outcome::Lost && asked.value == *value && !left.is_zero();
        awaits.then_some(left)
    }

    /// Whether it may be refreshed because it was rejected.
    pub(super) fn allows_forced(&self, now: Moment, settings: &RefreshSettings) -> bool {
        let spacing = self.spacing.unwrap_or(settings.forced);
        self.last
            .as_ref()
            .is_none_or(|asked| now >= asked.at + spacing)
    }

    /// A refresh starts.
    pub(super) fn ask(
        &mut self,
        value: Fingerprint,
        forced: bool,
        now: Moment,
        settings: &RefreshSettings,
    ) {
        if forced {
            let spacing = self.spacing.unwrap_or(settings.forced);
            // The one before has not helped for long.
            let again = self.forced.is_some_and(|at| now < at + spacing * 2);
            self.spacing = Some(if again {
                (spacing * 2).min(settings.forced_limit)
            } else {
                settings.forced
            });
            self.forced = Some(now);
        }
        self.last = Some(Asked {
            at: now,
            value,
            outcome: Outcome::Done,
        });
    }

    /// The control plane says that this value cannot be refreshed.
    pub(super) fn refused(&mut self) {
        self.ended(Outcome::Refused);
    }

    /// The refresh failed for a reason that may pass.
    pub(super) fn failed(&mut self) {
        self.ended(Outcome::Failed);
    }

    /// The refresh was not answered.
    pub(super) fn lost(&mut self) {
        self.ended(Outcome::Lost);
    }

    fn ended(&mut self, outcome: Outcome) {
        if let Some(asked) = &mut self.last {
            asked.outcome = outcome;
        }
    }
}

/// Any number in 0..1.
pub(super) fn random_fraction() -> f64 {
    fraction(foldhash::quality::RandomState::default().hash_one(0))
}

fn mixed(seed: u64, connection: u128) -> u64 {
    foldhash::quality::FixedState::with_seed(seed).hash_one(connection)
}

/// The upper half of a hash as a number in 0..1.
fn fraction(hash: u64) -> f64 {
    let upper = u32::try_from(hash >> 32).unwrap_or_default();
    f64::from(upper) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const VALUE: Fingerprint = [1; 32];

    fn settings() -> RefreshSettings {
        RefreshSettings::default()
    }

    proptest! {
        #[test]
        fn the_first_attempt_lies_in_the_window_before_the_end(life in 1_u64..1_000_000_000, connection: u128, seed: u64) {
            let life = Duration::from_millis(life);
            let settings = RefreshSettings { seed, ..settings() };
            let now = Moment::now();
            let until = now + life;
            let at = settings.first(connection, Role::Unknown, now, until);
            let window = settings.ahead.min(life / 5);
            prop_assert!(at >= until - window && at <= until - window / 5);
            let leads = settings.first(connection, Role::Leads, now, until);
            let follows = settings.first(connection, Role::Follows, now, until);
            prop_assert!(at >= leads || at <= follows);
            prop_assert!(leads >= until - window && leads + window / 3 < follows && follows <= until - window / 5);
        }
    }

    #[test]
    fn processes_have_different_places_in_the_window() {
        let now = Moment::now();
        let places: std::collections::HashSet<_> = (0..100)
            .map(|seed| {
                let settings = RefreshSettings { seed, ..settings() };
                settings
                    .first(7, Role::Unknown, now, now + 60 * MINUTE)
                    .millis()
            })
            .collect();
        assert!(places.len() > 95, "{}", places.len());
    }

    #[test]
    fn another_attempt_waits_for_half_of_what_is_left_and_thirty_seconds_at_least() {
        let now = Moment::now();
        assert_eq!(settings().next(now, now + 4 * MINUTE), now + 2 * MINUTE);
        assert_eq!(settings().next(now, now + MINUTE / 6), now + MINUTE / 2);
    }

    #[test]
    fn a_value_is_refreshed_for_its_expiry_every_thirty_seconds_and_a_new_one_at_once() {
        let (mut budget, now) = (Budget::default(), Moment::now());
        assert!(budget.allows_renewal(&VALUE, false, now, &settings()));
        budget.ask(VALUE, false, now, &settings());
        assert!(!budget.allows_renewal(&VALUE, false, now + MINUTE / 3, &settings()));
        assert!(budget.allows_renewal(&VALUE, false, now + MINUTE / 2, &settings()));
        assert!(budget.allows_renewal(&[2; 32], false, now, &settings()));
    }

    #[test]
    fn a_failed_refresh_of_an_expired_value_is_repeated_when_the_outage_allows_it() {
        let (mut budget, now) = (Budget::default(), Moment::now());
        budget.ask(VALUE, false, now, &settings());
        budget.failed();
        assert!(budget.allows_renewal(&VALUE, false, now, &settings()));
        assert!(!budget.allows_renewal(&VALUE, true, now + MINUTE / 3, &settings()));
        assert!(budget.allows_renewal(&VALUE, true, now + MINUTE / 2, &settings()));
    }

    #[test]
    fn a_refresh_that_was_not_answered_is_waited_for() {
        let (mut budget, now) = (Budget::default(), Moment::now());
        budget.ask(VALUE, false, now, &settings());
        assert_eq!(budget.awaits(&VALUE, now, &settings()), None);
        budget.lost();
        let later = now + MINUTE / 3;
        assert!(!budget.allows_renewal(&VALUE, false, later, &settings()));
        assert_eq!(budget.awaits(&VALUE, later, &settings()), Some(MINUTE / 6));
        assert_eq!(budget.awaits(&[2; 32], later, &settings()), None);
        let over = now + MINUTE / 2;
        assert!(budget.allows_renewal(&VALUE, false, over, &settings()));
        assert_eq!(budget.awaits(&VALUE, over, &settings()), None);
    }

    #[test]
    fn a_value_that_cannot_be_refreshed_is_left_alone() {
        let (mut budget, now) = (Budget::default(), Moment::now());
        budget.ask(VALUE, false, now, &settings());
        budget.refused();
        assert!(!budget.allows_renewal(&VALUE, false, now + 4 * MINUTE, &settings()));
        assert!(budget.allows_renewal(&[2; 32], false, now, &settings()));
        assert!(budget.allows_renewal(&VALUE, false, now + 5 * MINUTE, &settings()));
    }

    #[test]
    fn rejections_cause_one_refresh_in_five_minutes_doubling_to_an_hour() {
        let (mut budget, mut now) = (Budget::default(), Moment::now());
        for minutes in [5, 10, 20, 40, 60, 60] {
            assert!(budget.allows_forced(now, &settings()));
            budget.ask(VALUE, true, now, &settings());
            let next = now + minutes * MINUTE;
            assert!(!budget.allows_forced(next - MINUTE / 60, &settings()));
            assert!(budget.allows_forced(next, &settings()), "{minutes}");
            now = next;
        }
        // Two hours of peace.
        now = now + 120 * MINUTE;
        budget.ask(VALUE, true, now, &settings());
        assert!(budget.allows_forced(now + 5 * MINUTE, &settings()));
    }

    #[test]
    fn a_refresh_for_an_expiry_counts_against_those_for_rejections() {
        let (mut budget, now) = (Budget::default(), Moment::now());
        budget.ask(VALUE, false, now, &settings());
        assert!(!budget.allows_forced(now + 4 * MINUTE, &settings()));
        assert!(budget.allows_forced(now + 5 * MINUTE, &settings()));
    }
}
