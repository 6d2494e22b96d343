//! Which replica leads: the one whose name is in the Lease. Its renewals flow out; whether this replica leads flows to
//! the controller.
//!
//! After client-go's leader election. Clocks are never compared: a holder is taken to be gone when its record did not
//! change for the time in it as measured here. The holder gives up by itself after five sixths of that time without a
//! renewal, so before anybody else may take over, whether the API server is away, slow or refuses. Each write names
//! the version that was read, so of two that try one gets it.
//!
//! The configured duration is the promise: when the holder is killed, another one has the Lease before it is over, as
//! long as the API server answers. So the record says less, since others see a renewal up to a retry after it.
//!
//! The crate kube-lease-manager was tried by reading (0.13.1) and not taken: it compares the `renewTime` of another
//! machine's clock with its own, goes on calling itself the leader while renewals fail (its channel says nothing of
//! errors, and it pauses up to 30 s between attempts), and takes over in two unguarded writes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::args::RunArgs;
use crate::metrics::Metrics;

/// The shortest duration that leaves room for a renewal and its loss.
const SHORTEST: Duration = Duration::from_secs(2);
/// How long the release at shutdown may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// Takes part in the election; the receiver is true while this replica leads. It becomes false before the Lease is
/// released, and the task ends soon after `shutdown` became true.
pub fn start(
    client: Client,
    args: &RunArgs,
    metrics: Arc<Metrics>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<watch::Receiver<bool>> {
    let duration = args.lease.lease_duration;
    anyhow::ensure!(
        (SHORTEST..=Duration::from_hours(1)).contains(&duration),
        "--lease-duration {duration:?} must be between {SHORTEST:?} and 1h"
    );
    let (sender, receiver) = watch::channel(false);
    let candidate = Candidate {
        leases: Api::namespaced(client, &args.namespace),
        name: args.lease.lease_name.clone(),
        identity: identity(args.lease.identity.as_deref())?,
        timing: Timing::of(duration),
        observed: None,
        leading: sender,
        metrics,
    };
    tasks.spawn(candidate.run(shutdown));
    Ok(receiver)
}

/// The host's name is not enough: a container that is killed and started again has the same, and is another.
fn identity(given: Option<&str>) -> anyhow::Result<String> {
    if let Some(given) = given {
        anyhow::ensure!(!given.is_empty(), "--identity must not be empty");
        return Ok(given.to_owned());
    }
    let host = rustix::system::uname();
    let host = host
        .nodename()
        .to_str()
        .context("the host's name; set --identity")?;
    Ok(format!("{host}_{:08x}", fastrand::u32(..)))
}

/// Of a lease of 15 s: 12 s, and client-go's 10 s and 2 s.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// Others wait so long after they saw a renewal. Whole seconds, as the record has them.
    granted: Duration,
    /// The holder gives up after so long without a renewal.
    deadline: Duration,
    /// Time between two attempts, at most.
    retry: Duration,
}

impl Timing {
    fn of(duration: Duration) -> Self {
        let granted = Duration::from_secs((duration * 4 / 5).as_secs());
        Self {
            granted,
            deadline: granted * 5 / 6,
            retry: granted / 6,
        }
    }
}

/// A record and when it was first seen as it is.
struct Observed {
    spec: LeaseSpec,
    at: Instant,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// This replica is the holder.
    Held,
    /// Another one is.
    HeldByOther,
    /// Something wrote between our reading and our writing: another one, or an attempt of ours that came late.
    Conflict,
}

struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    observed: Option<Observed>,
    leading: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl Candidate {
    async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
        tokio::select! {
            () = self.campaign() => {}
            _ = shutdown.wait_for(|ending| *ending) => {}
        }
        if self.is_leading() {
            self.lead(false);
            match timeout(RELEASE_LIMIT, self.release()).await {
                Ok(Ok(())) => tracing::info!(lease = self.name, "leadership released"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "releasing the Lease; it runs out by itself");
                }
                Err(_) => {
                    tracing::warn!("the Lease was not released in time; it runs out by itself");
                }
            }
        }
        Ok(())
    }

    /// Does not end.
    async fn campaign(&mut self) {
        loop {
            let begun = Instant::now();
            let attempt = timeout(self.timing.deadline, self.acquire_or_renew());
            match attempt.await {
                Ok(Ok(Attempt::Held)) => {
                    self.lead(true);
                    self.renew(begun).await;
                    self.lead(false);
                }
                Ok(Ok(Attempt::HeldByOther | Attempt::Conflict)) => {}
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "asking for the Lease"),
                Err(_) => tracing::warn!(lease = self.name, "asking for the Lease: no answer"),
            }
            // Some less for each, so that replicas do not ask in step.
            let pause = self.timing.retry.mul_f64(1.0 - 0.2 * fastrand::f64());
            sleep(self.held_for().map_or(pause, |rest| rest.min(pause))).await;
        }
    }

    /// Renews until the deadline has passed without a renewal, or another one is the holder.
    async fn renew(&mut self, mut renewed: Instant) {
        loop {
            let deadline = renewed + self.timing.deadline;
            let attempts = async {
                loop {
                    sleep(self.timing.retry).await;
                    // The time before the request: others count from when they see what it wrote, which is later.
                    let begun = Instant::now();
                    let attempt = timeout(self.timing.deadline / 2, self.acquire_or_renew());
                    match attempt.await {
                        Ok(Ok(Attempt::Held)) => return Some(begun),
                        Ok(Ok(Attempt::HeldByOther)) => return None,
                        Ok(Ok(Attempt::Conflict)) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "renewing the Lease"),
                        Err(_) => tracing::warn!("renewing the Lease: no answer"),
                    }
                }
            };
            match timeout_at(deadline, attempts).await {
                Ok(Some(begun)) => renewed = begun,
                Ok(None) => {
                    tracing::warn!(lease = self.name, "another replica has the Lease");
                    return;
                }
                Err(_) => {
                    tracing::warn!(lease = self.name, "the Lease could not be renewed in time");
                    return;
                }
            }
        }
    }

    /// Reads the Lease, and takes or renews it if this replica may.
    async fn acquire_or_renew(&mut self) -> Result<Attempt, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            // Whoever deleted it did not stop the holder, which puts it back.
            if self.held_for().is_some() {
                return Ok(Attempt::HeldByOther);
            }
            return self.write(None, 0, true).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let own = spec.holder_identity.as_deref() == Some(self.identity.as_str());
        if !own && !self.is_free(&spec) {
            return Ok(Attempt::HeldByOther);
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let transitions = if own {
            transitions
        } else {
            transitions.saturating_add(1)
        };
        self.write(Some(lease), transitions, !own).await
    }

    /// Whether nobody holds it, or whoever did has not renewed it for its duration.
    fn is_free(&mut self, spec: &LeaseSpec) -> bool {
        if self.observed.as_ref().is_none_or(|it| it.spec != *spec) {
            self.observed = Some(Observed {
                spec: spec.clone(),
                at: Instant::now(),
            });
        }
        self.held_for().is_none()
    }

    /// What is left of another holder's time, if the record that was seen last is one and it is not over.
    fn held_for(&self) -> Option<Duration> {
        let Observed { spec, at } = self.observed.as_ref()?;
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return None;
        }
        let seconds = spec.lease_duration_seconds.unwrap_or_default();
        let granted = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        // A record without a duration, which something else wrote, counts as one of ours.
        let granted = if granted.is_zero() {
            self.timing.granted
        } else {
            granted
        };
        let rest = granted.saturating_sub(at.elapsed());
        (!rest.is_zero()).then_some(rest)
    }

    /// Makes this replica the holder.
    async fn write(
        &mut self,
        read: Option<Lease>,
        transitions: i32,
        acquires: bool,
    ) -> Result<Attempt, kube::Error> {
        let now = Some(MicroTime(Timestamp::now()));
        let before = read
            .as_ref()
            .and_then(|lease| lease.spec.as_ref()?.acquire_time.clone());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.granted.as_secs()).ok(),
            acquire_time: if acquires { now.clone() } else { before },
            renew_time: now,
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let written = self.put(read, spec).await?;
        Ok(if written {
            Attempt::Held
        } else {
            Attempt::Conflict
        })
    }

    /// False if something else wrote since it was read.
    async fn put(&self, read: Option<Lease>, spec: LeaseSpec) -> Result<bool, kube::Error> {
        let params = PostParams {
            field_manager: Some("nexus-operator".into()),
            ..PostParams::default()
        };
        let mut lease = read.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        lease.spec = Some(spec);
        let written = if lease.resource_version().is_some() {
            self.leases.replace(&self.name, &params, &lease).await
        } else {
            self.leases.create(&params, &lease).await
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status))
                if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back, if it is still ours.
    async fn release(&self) -> Result<(), kube::Error> {
        // A renewal that was given up may still arrive between reading and writing.
        while let Some(lease) = self.leases.get_opt(&self.name).await? {
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
                return Ok(());
            }
            let spec = LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..spec
            };
            if self.put(Some(lease), spec).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_leading(&self) -> bool {
        *self.leading.borrow()
    }

    fn lead(&self, leads: bool) {
        if self.is_leading() == leads {
            return;
        }
        tracing::info!(
            lease = self.name,
            identity = self.identity,
            leads,
            "leadership changed"
        );
        self.metrics.leader.set(leads.into());
        self.leading.send_replace(leads);
    }
}

#[cfg(test)]
mod tests;
