//! What was counted, and what must not have been.

use std::collections::BTreeMap;
use std::fmt;

use nexus_tests::broker::{Broker, Standing};

use crate::judge::{Judge, Verdicts};
use crate::load::{Counts, Tally};
use crate::memory::Memory;
use crate::{ROUTES, TENANTS, connection_of};

/// Memory may end up so much higher, in bytes: an allocator's noise, not a leak of even a few bytes per request.
const MEMORY_NOISE: u64 = 4 << 20;
/// Least share of requests that succeed while the control plane is there, in per cent.
const LEAST_SUCCESS: u64 = 50;
/// Control-plane calls of one sidecar at once.
const MOST_CALLS: usize = 32;

pub(crate) struct Report {
    verdicts: Verdicts,
    counts: Counts,
    memory: Memory,
    failures: BTreeMap<String, usize>,
    gets: usize,
    posts: usize,
    issued: usize,
    in_flight: usize,
    in_flight_of_all: usize,
    attention: usize,
    unserved: usize,
    panicked: bool,
}

impl Report {
    pub(crate) fn new(
        broker: &Broker,
        judge: &Judge,
        tally: &Tally,
        memory: Memory,
        unserved: usize,
        said: &[String],
    ) -> Self {
        let ids: Vec<(u32, u32, String)> = (0..ROUTES)
            .flat_map(|route| {
                (0..TENANTS).map(move |tenant| (route, tenant, connection_of(route, tenant)))
            })
            .collect();
        let total = |count: &dyn Fn(&str) -> usize| ids.iter().map(|(.., id)| count(id)).sum();
        let counts = tally.counts();
        Self {
            verdicts: judge.verdicts(),
            memory,
            failures: broker.failures(),
            gets: total(&|id| broker.calls(id)),
            posts: total(&|id| broker.refreshes(id)),
            issued: total(&|id| broker.history(id).len()),
            in_flight: ids
                .iter()
                .map(|(.., id)| broker.max_in_flight(id))
                .max()
                .unwrap_or_default(),
            in_flight_of_all: broker.max_in_flight_of_all(),
            attention: ids
                .iter()
                .filter(|(.., id)| broker.standing(id) != Standing::Active)
                .count(),
            unserved,
            panicked: said.iter().any(|line| line.contains("panicked")),
            counts,
        }
    }

    /// Why this soak has failed; nothing if it has not.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = self.wrong_requests();
        let mut must = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        let v = &self.verdicts;
        let attention = self.attention;
        must(
            attention == 0,
            format!("{attention} connections are no longer active"),
        );
        must(
            self.in_flight <= 1,
            format!("{} calls of one connection at once", self.in_flight),
        );
        must(
            self.in_flight_of_all <= MOST_CALLS,
            format!("{} control-plane calls at once", self.in_flight_of_all),
        );
        must(
            self.memory.end <= self.memory.middle + MEMORY_NOISE,
            format!(
                "memory grew from {} to {}",
                mib(self.memory.middle),
                mib(self.memory.end)
            ),
        );
        must(
            self.counts.succeeded_in_peace * 100 >= self.counts.sent_in_peace * LEAST_SUCCESS
                && self.counts.sent_in_peace > 0,
            format!(
                "less than {LEAST_SUCCESS} % of requests succeeded while the control plane was there"
            ),
        );
        must(
            self.unserved == 0,
            format!(
                "{} connections had no success since the last outage",
                self.unserved
            ),
        );
        for (count, what) in [
            (v.rejected, "the upstream rejected nothing"),
            (v.replayed, "nothing was sent again"),
            (
                self.failures.values().sum::<usize>() as u64,
                "the control plane did not fail",
            ),
            (self.posts as u64, "nothing was refreshed"),
        ] {
            must(count > 0, what.to_owned());
        }
        must(!self.panicked, "the sidecar panicked".to_owned());
        let examples = v.examples.iter().chain(&self.counts.surprises);
        failures.extend(examples.map(|(kind, example)| format!("for example {kind}: {example}")));
        failures
    }

    /// What must not have happened even once.
    fn wrong_requests(&self) -> Vec<String> {
        let v = &self.verdicts;
        [
            (v.expired, "requests were sent with an expired token"),
            (
                v.superseded,
                "requests were sent with a rejected token that had a successor",
            ),
            (
                v.replayed_unchanged,
                "requests were sent again with the rejected token",
            ),
            (
                v.wrong_tenant,
                "requests were sent with another connection's token",
            ),
            (
                v.unknown,
                "requests were sent with no token that was ever issued",
            ),
            (
                v.corrupt,
                "requests arrived with other content than was sent",
            ),
            (
                self.counts.surprising,
                "answers were none that an agent may see",
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<44} {value:>12}");
        let c = &self.counts;
        let v = &self.verdicts;
        row("requests of agents", c.sent.to_string())?;
        row("  answered 200", c.succeeded.to_string())?;
        row("  answered 401 by the upstream", c.rejections.to_string())?;
        for (code, count) in &c.codes {
            row(&format!("  answered {code}"), count.to_string())?;
        }
        let share = c.succeeded_in_peace * 100 / c.sent_in_peace.max(1);
        row(
            "  succeeded while the control plane was there",
            format!("{share} %"),
        )?;
        row("requests at the upstream", v.arrived.to_string())?;
        row("  rejected at random", v.rejected.to_string())?;
        row("    of which replaced meanwhile", v.rotated.to_string())?;
        row("  sent again", v.replayed.to_string())?;
        row("  with an expired token", v.expired.to_string())?;
        row(
            "  with a superseded and rejected token",
            v.superseded.to_string(),
        )?;
        row(
            "  with another connection's token",
            v.wrong_tenant.to_string(),
        )?;
        row("control plane: token calls", self.gets.to_string())?;
        row("control plane: refreshes", self.posts.to_string())?;
        row("control plane: tokens issued", self.issued.to_string())?;
        for (kind, count) in &self.failures {
            row(&format!("  failed, {kind}"), count.to_string())?;
        }
        row(
            "most calls at once, one connection",
            self.in_flight.to_string(),
        )?;
        row(
            "most calls at once, all connections",
            self.in_flight_of_all.to_string(),
        )?;
        row("connections no longer active", self.attention.to_string())?;
        row("memory at the start", mib(self.memory.start))?;
        row("memory in the middle, highest", mib(self.memory.middle))?;
        row("memory in the last part, highest", mib(self.memory.end))
    }
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, (bytes >> 10) % 1024 * 10 / 1024)
}
