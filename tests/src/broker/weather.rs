//! What goes wrong with the control plane as a whole: outages, and failures that come at random.

use std::collections::BTreeMap;
use std::time::Duration;

use super::answer::Answer;

/// How the whole control plane is out of order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// It is not.
    #[default]
    None,
    /// Nothing listens; connections are reset.
    Refused,
    /// What stands before it answers 502.
    Unavailable,
    /// Requests are taken and not answered.
    Hangs,
    /// The broker's database is down, which reads as 404.
    Database,
}

/// One kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This status, before anything is done.
    Status(u16),
    /// The connection is cut. A refresh is cut before the provider is called or after its tokens were stored,
    /// as chance has it.
    Cut,
    /// The answer comes so much later.
    Slow(Duration),
}

/// Calls that fail at random, the same ones for the same seed and order of calls.
#[derive(Debug)]
pub(super) struct Weather {
    rate: f64,
    kinds: Vec<Failure>,
    random: fastrand::Rng,
    pub(super) counts: BTreeMap<String, usize>,
}

impl Weather {
    pub(super) fn new(seed: u64, rate: f64, kinds: &[Failure]) -> Self {
        Self {
            rate,
            kinds: kinds.to_vec(),
            random: fastrand::Rng::with_seed(seed),
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn calm(&mut self) {
        self.rate = 0.0;
    }

    /// How this call fails, if it does.
    pub(super) fn strike(&mut self, refresh: bool) -> Option<Answer> {
        if self.random.f64() >= self.rate {
            return None;
        }
        let kind = *self.random.choice(&self.kinds)?;
        let lost = refresh && self.random.bool();
        let (name, answer) = match kind {
            Failure::Status(status) => (status.to_string(), Answer::status(status, "out_of_order")),
            Failure::Cut if lost => ("answer lost".to_owned(), Answer::genuine().lost()),
            Failure::Cut => ("cut".to_owned(), Answer::close()),
            Failure::Slow(delay) => ("slow".to_owned(), Answer::genuine().after(delay)),
        };
        let call = if refresh { "refresh" } else { "token" };
        *self.counts.entry(format!("{call}: {name}")).or_default() += 1;
        Some(answer)
    }
}
