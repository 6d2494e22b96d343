//! One flight: what is asked of the control plane to get a usable credential, in which order.
//!
//! Reading comes first and last. A refresh is asked for in between, where the rules allow it and reading alone has not
//! helped; whatever it is answered, only another read tells what is stored.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use nexus_crds::names::ConnectionId;
use nexus_crds::strategy::StrategySpec;
use zeroize::Zeroizing;

use super::gate::{Gate, Refusal};
use super::slot::Slot;
use super::{CredentialCache, Source};
use crate::credential::Credential;
use crate::credential::clock::{Moment, Now};
use crate::credential::refresh::{Budget, Fingerprint, Role};
use crate::credential::status::FetchError;
use crate::error::ProxyError;
use crate::metrics::ControlCall;

/// Why a flight starts.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// A credential is missing, expired, or to be renewed.
    Needed,
    /// An upstream rejected this one.
    Rejected {
        credential: Arc<Credential>,
        /// A new one would have the same rights, so it would be rejected too.
        insufficient_scope: bool,
    },
}

/// Why a flight brought nothing.
pub(super) enum Failure {
    /// A call failed, which its gate remembers.
    Call(Refusal),
    /// The control plane's answer is no credential that this route can use.
    Payload(ProxyError),
    /// The control plane is being left alone.
    Held(ProxyError),
    /// A refresh that was not answered may still bring something.
    Awaited(ProxyError),
}

/// A refresh that would help.
struct Wanted<'a> {
    gate: &'a Gate,
    value: Fingerprint,
    forced: bool,
    /// There is no hurry, and its time was chosen.
    planned: bool,
}

impl<S: Source> CredentialCache<S> {
    /// Runs a flight of `slot`.
    pub(super) async fn renew(
        &self,
        slot: &Slot,
        strategy: Option<&StrategySpec>,
        cause: &Cause,
    ) -> Result<Credential, Failure> {
        // In the order of ids, so that two flights with the same two connections cannot wait for each other.
        let mut gates: Vec<_> = slot.gates.all().collect();
        gates.sort_by_key(|gate| gate.id.as_u128());
        let mut turns = Vec::with_capacity(gates.len());
        for gate in &gates {
            turns.push(gate.turn().await);
        }
        // What another flight learned while this one waited.
        let now = Moment::now();
        if let Some(error) = gates.iter().find_map(|gate| gate.held(now)) {
            return Err(Failure::Held(error));
        }

        let mut read = self.read(slot, strategy).await?;
        let Some(wanted) = self.wanted(slot, &read, cause) else {
            return self.found(slot, read);
        };
        if !wanted.planned {
            let role = wanted.gate.budget(|budget| budget.role);
            tokio::time::sleep(self.settings.refresh.pause(role)).await;
            read = self.read(slot, strategy).await?;
        }
        let Some(wanted) = self.wanted(slot, &read, cause) else {
            return self.found(slot, read);
        };
        let refreshed = self.refresh(&wanted).await;
        let read = self.read(slot, strategy).await?;
        if is_usable(slot, &read) {
            return Ok(read);
        }
        match refreshed {
            Err(outage) if !outage.denies_refresh() => Err(self.failed(slot, wanted.gate, &outage)),
            // A new one that was too long on its way: the next will not be.
            Ok(()) if fingerprint(&read).is_some_and(|value| value != wanted.value) => {
                Err(self.failed(slot, wanted.gate, &FetchError::TimedOut))
            }
            Ok(()) | Err(_) => Ok(read),
        }
    }

    /// What was read without a refresh.
    fn found(&self, slot: &Slot, read: Credential) -> Result<Credential, Failure> {
        let Some(gate) = read.refreshes().map(|side| slot.gates.of(side)) else {
            return Ok(read);
        };
        let now = Now::read();
        if !is_usable(slot, &read) {
            let rules = &self.settings.refresh;
            let left = fingerprint(&read)
                .and_then(|value| gate.budget(|budget| budget.awaits(&value, now.moment, rules)));
            return match left {
                Some(left) => Err(Failure::Awaited(
                    FetchError::TimedOut.proxy_error().retry_after(left),
                )),
                None => Ok(read),
            };
        }
        let renewed = slot.current().is_some_and(|held| {
            held.is_due(now.moment) && read.expires_at() > held.credential.expires_at()
        });
        if renewed {
            // Another process has seen to it.
            gate.budget(|budget| budget.role = Role::Follows);
        }
        Ok(read)
    }

    /// The refresh that would help, if there is one and it may be asked for.
    fn wanted<'a>(&self, slot: &'a Slot, read: &Credential, cause: &Cause) -> Option<Wanted<'a>> {
        let rules = &self.settings.refresh;
        let now = Now::read();
        let value = fingerprint(read)?;
        let gate = slot.gates.of(read.refreshes()?);
        let held = slot
            .current()
            .filter(|held| held.credential.has_same_value(read));
        let usable = is_usable(slot, read);
        let not_moved = |earlier: &Credential| read.expires_at() <= earlier.expires_at();
        let due = held
            .as_ref()
            .is_some_and(|held| held.is_due(now.moment) && not_moved(&held.credential));
        if !usable || due {
            let allowed =
                gate.budget(|budget| budget.allows_renewal(&value, usable, now.moment, rules));
            return allowed.then_some(Wanted {
                gate,
                value,
                forced: false,
                planned: usable,
            });
        }
        let Cause::Rejected {
            credential,
            insufficient_scope: false,
        } = cause
        else {
            return None;
        };
        let old = held.is_some_and(|held| now.moment.since(held.obtained) >= rules.trusted);
        let allowed = old
            && read.has_same_value(credential)
            && gate.budget(|budget| budget.allows_forced(now.moment, rules));
        allowed.then_some(Wanted {
            gate,
            value,
            forced: true,
            planned: false,
        })
    }

    async fn refresh(&self, wanted: &Wanted<'_>) -> Result<(), FetchError> {
        let Wanted {
            gate,
            value,
            forced,
            ..
        } = wanted;
        let rules = &self.settings.refresh;
        gate.budget(|budget| budget.ask(*value, *forced, Moment::now(), rules));
        self.refreshes.send_modify(|under_way| *under_way += 1);
        let result = self.control.refresh(gate.id, value).await;
        self.refreshes.send_modify(|under_way| *under_way -= 1);
        let outcome = result.as_ref().copied().map_err(FetchError::refresh_code);
        self.metrics.control_call(ControlCall::Refresh, outcome);
        if *forced {
            (self.audit)(gate.id, outcome);
        }
        let connection = gate.id;
        match &result {
            Ok(()) => {
                gate.budget(|budget| budget.role = Role::Leads);
                tracing::info!(%connection, forced, "the control plane refreshed a credential");
            }
            Err(error) => {
                gate.budget(if error.denies_refresh() {
                    Budget::refused
                } else if error.leaves_refresh_open() {
                    Budget::lost
                } else {
                    Budget::failed
                });
                tracing::warn!(%connection, forced, cause = %error, "the control plane did not refresh a credential");
            }
        }
        result
    }

    /// Reads the payloads of a key and makes a credential of them.
    async fn read(
        &self,
        slot: &Slot,
        strategy: Option<&StrategySpec>,
    ) -> Result<Credential, Failure> {
        let first = self.payload(slot, &slot.gates.first);
        let (payload, key_payload) = match &slot.gates.second {
            None => (first.await?, None),
            Some(second) => {
                let (payload, key) = tokio::join!(first, self.payload(slot, second));
                (payload?, Some(key?))
            }
        };
        let key_payload = key_payload.as_ref().map(|payload| payload.as_slice());
        let now = Now::read();
        let credential = Credential::parse_merged(&payload, key_payload, strategy, now.wall);
        match credential.map_err(FetchError::Payload) {
            Ok(credential) => {
                slot.gates.all().for_each(|gate| gate.answered(now.moment));
                Ok(credential)
            }
            Err(error) if error.is_outage() => Err(self.failed(slot, &slot.gates.first, &error)),
            Err(error) => Err(Failure::Payload(error.proxy_error())),
        }
    }

    async fn payload(&self, slot: &Slot, gate: &Gate) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let answer = self.control.token(gate.id).await;
        let outcome = answer
            .as_ref()
            .map(|_| ())
            .map_err(|error| error.outcome().code);
        self.metrics.control_call(ControlCall::Get, outcome);
        answer.map_err(|error| self.failed(slot, gate, &error))
    }

    fn failed(&self, slot: &Slot, gate: &Gate, error: &FetchError) -> Failure {
        let valid_until = slot.current().and_then(|held| held.usable_until());
        Failure::Call(gate.failed(error, valid_until, &self.settings, Moment::now()))
    }
}

/// Whether a credential that was just read may be used. Of one that is held already its first reading decides: a
/// later one would allow less for skew.
fn is_usable(slot: &Slot, read: &Credential) -> bool {
    let now = Now::read();
    let held = slot.current().filter(|held| {
        held.credential.has_same_value(read) && read.expires_at() <= held.credential.expires_at()
    });
    read.is_usable(now.wall) && held.is_none_or(|held| held.lasts(now.moment))
}

/// Of the value that is sent.
fn fingerprint(credential: &Credential) -> Option<Fingerprint> {
    let secret = credential.secrets().next()?;
    digest(&SHA256, secret).as_ref().try_into().ok()
}

/// Where credentials come from: [`ControlPlane`](crate::credential::client::ControlPlane).
impl Source for crate::credential::client::ControlPlane {
    fn token(
        &self,
        id: ConnectionId,
    ) -> impl Future<Output = Result<Zeroizing<Vec<u8>>, FetchError>> + Send {
        self.token(id)
    }

    fn refresh(
        &self,
        id: ConnectionId,
        rejected: &Fingerprint,
    ) -> impl Future<Output = Result<(), FetchError>> + Send {
        self.refresh(id, *rejected)
    }
}
