//! What has to be done to the certificates next, and when to look again. Pure: a time, what is stored and the policy
//! flow in, one step flows out. The rules are those of two rotations, of authorities and of serving certificates:
//!
//! - A next authority is published while the current one has enough life left, signs only once every caBundle has held
//!   it for `publish_before`, and the old one stays there for `keep_after` more.
//! - A serving certificate is renewed after two thirds of its life, and whenever the current authority is another one.
//!
//! What is stored may be missing, foreign or of a process that was away for years. Then whatever serves again soonest
//! is done, and a serving certificate that callers still trust is kept while they learn of a new authority.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use super::authority::{self, Authority, CertificateError, Leaf, Life};
use super::policy::{Policy, after};

/// The authorities of the operator.
pub struct Authorities {
    /// The one that signs.
    pub current: Published,
    /// The one that will.
    pub next: Option<Published>,
    /// The one that did, as long as callers may still see a certificate of it.
    pub previous: Option<Replaced>,
}

/// An authority and when callers came to know of it.
pub struct Published {
    /// The authority.
    pub authority: Authority,
    /// Since when every caBundle has it.
    pub since: Option<Timestamp>,
}

/// An authority that signs no more.
#[derive(Clone)]
pub struct Replaced {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Its life.
    pub life: Life,
    /// When the next one began to sign; unknown while a certificate of this one is still served.
    pub at: Option<Timestamp>,
}

impl Authorities {
    /// Certificates that callers trust.
    pub fn trusted(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.lives().map(|(_, certificate)| certificate)
    }

    /// What every caBundle is to hold, in an order that does not change when the next one signs: that is no reason to
    /// write it again.
    pub fn bundle(&self) -> String {
        let mut all: Vec<_> = self.lives().collect();
        all.sort_by(|(one, first), (other, second)| {
            (one.issued, first.as_ref()).cmp(&(other.issued, second.as_ref()))
        });
        authority::pem(all.into_iter().map(|(_, certificate)| certificate))
    }

    fn lives(&self) -> impl Iterator<Item = (Life, &CertificateDer<'static>)> {
        let previous = self.previous.as_ref().map(|it| (it.life, &it.certificate));
        let own = [Some(&self.current), self.next.as_ref()];
        own.into_iter()
            .flatten()
            .map(|it| (it.authority.life, &it.authority.certificate))
            .chain(previous)
    }
}

/// What is stored and could be read.
#[derive(Default)]
pub struct Stored {
    /// The authorities.
    pub authorities: Option<Authorities>,
    /// The serving certificate.
    pub leaf: Option<Leaf>,
    /// The authority that is stored beside the serving certificate.
    pub leaf_authority: Option<CertificateDer<'static>>,
    /// Whether every caBundle has [`Authorities::bundle`].
    pub bundled: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Begin with a new authority: there is none, or it has ended.
    Begin,
    /// Issue the next authority, for every caBundle to hold it.
    PublishNext,
    /// Note that every caBundle has the authorities.
    NotePublished,
    /// Let the next authority sign.
    Promote,
    /// Note that the old authority signs nothing any more that is served.
    NoteReplaced,
    /// Forget the old authority.
    Retire,
    /// Issue a serving certificate.
    IssueLeaf(Reason),
}

/// Why a serving certificate is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none.
    Missing,
    /// It is not valid at this time.
    NotValid,
    /// It has the names of another Service.
    OtherNames,
    /// No authority of ours signed it.
    Foreign,
    /// Two thirds of its life are over.
    Old,
    /// Another authority signs now.
    OtherAuthority,
}

/// The step to take, or when to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Take this step, then plan again.
    Now(Step),
    /// Nothing is to be done before this time, unless what is stored changes.
    At(Timestamp),
}

/// Decides.
pub fn plan(now: Timestamp, stored: &Stored, policy: &Policy) -> Plan {
    let Some(authorities) = &stored.authorities else {
        return Plan::Now(Step::Begin);
    };
    let mut again = Timestamp::MAX;
    if let Some(step) = rotate(now, authorities, stored.bundled, policy, &mut again) {
        return Plan::Now(step);
    }
    if let Some(reason) = leaf(now, stored.leaf.as_ref(), authorities, policy, &mut again) {
        return Plan::Now(Step::IssueLeaf(reason));
    }
    let unknown = authorities
        .previous
        .as_ref()
        .is_some_and(|it| it.at.is_none());
    let current = &authorities.current.authority.certificate;
    if unknown
        && stored
            .leaf
            .as_ref()
            .is_some_and(|leaf| leaf.is_signed_by(current))
    {
        return Plan::Now(Step::NoteReplaced);
    }
    Plan::At(again)
}

/// True when the time has come; else it is a time to look again.
fn due(time: Timestamp, now: Timestamp, again: &mut Timestamp) -> bool {
    if time <= now {
        return true;
    }
    *again = time.min(*again);
    false
}

/// Whether callers accept this certificate, so that it can be served.
pub fn is_servable(
    now: Timestamp,
    leaf: &Leaf,
    authorities: &Authorities,
    policy: &Policy,
) -> bool {
    let reason = self::leaf(
        now,
        Some(leaf),
        authorities,
        policy,
        &mut Timestamp::MAX.clone(),
    );
    match reason {
        None | Some(Reason::Old | Reason::OtherAuthority) => true,
        Some(Reason::Missing | Reason::NotValid | Reason::OtherNames | Reason::Foreign) => false,
    }
}

fn rotate(
    now: Timestamp,
    authorities: &Authorities,
    bundled: bool,
    policy: &Policy,
    again: &mut Timestamp,
) -> Option<Step> {
    let Authorities {
        current,
        next,
        previous,
    } = authorities;
    let usable = next
        .as_ref()
        .filter(|next| next.authority.life.includes(now));
    let life = current.authority.life;
    if !life.includes(now) {
        return Some(if usable.is_some() {
            Step::Promote
        } else {
            Step::Begin
        });
    }
    due(life.ends, now, again);
    if let Some(previous) = previous {
        let kept = previous
            .at
            .map_or(Timestamp::MAX, |at| after(at, policy.keep_after));
        if due(kept.min(previous.life.ends), now, again) {
            return Some(Step::Retire);
        }
    }
    if bundled && (current.since.is_none() || usable.is_some_and(|next| next.since.is_none())) {
        return Some(Step::NotePublished);
    }
    match usable {
        None => {
            let successor = after(life.issued, policy.successor_after(life.length()));
            due(successor, now, again).then_some(Step::PublishNext)
        }
        // The one before is waited for, so that no certificate that is served loses its authority.
        Some(next) => {
            let since = next.since.filter(|_| previous.is_none())?;
            due(after(since, policy.publish_before), now, again).then_some(Step::Promote)
        }
    }
}

fn leaf(
    now: Timestamp,
    leaf: Option<&Leaf>,
    authorities: &Authorities,
    policy: &Policy,
    again: &mut Timestamp,
) -> Option<Reason> {
    let Some(leaf) = leaf else {
        return Some(Reason::Missing);
    };
    if !leaf.life.includes(now) {
        return Some(Reason::NotValid);
    }
    due(leaf.life.ends, now, again);
    let mut names = [leaf.names.clone(), policy.names.clone()];
    for names in &mut names {
        names.sort();
    }
    if names[0] != names[1] {
        return Some(Reason::OtherNames);
    }
    let current = &authorities.current;
    let length = leaf.life.length();
    if leaf.is_signed_by(&current.authority.certificate) {
        // One that ends with its authority gains nothing by being renewed.
        let ends_early = leaf.life.ends < current.authority.life.ends;
        let old = after(leaf.life.issued, policy.leaf_renewed_after(length));
        return (ends_early && due(old, now, again)).then_some(Reason::Old);
    }
    if !authorities.trusted().any(|it| leaf.is_signed_by(it)) {
        return Some(Reason::Foreign);
    }
    // Callers may know the authority of this one only, until the caBundles had the current one for long enough. At
    // the end of its life there is nothing left to wait for.
    let known = current
        .since
        .map_or(Timestamp::MAX, |since| after(since, policy.publish_before));
    let last = after(leaf.life.issued, length / 10 * 9);
    due(known.min(last), now, again).then_some(Reason::OtherAuthority)
}

/// What a step makes of what is stored.
pub enum Outcome {
    /// New authorities.
    Authorities(Box<Authorities>),
    /// A new serving certificate.
    Leaf(Leaf),
}

/// Takes a step. `stored` is what [`plan`] saw.
pub fn take(
    step: Step,
    now: Timestamp,
    stored: Stored,
    policy: &Policy,
) -> Result<Outcome, CertificateError> {
    let issue = || {
        Authority::issue(now, policy.authority_life).map(|authority| Published {
            authority,
            since: None,
        })
    };
    let Some(mut authorities) = stored.authorities.filter(|_| step != Step::Begin) else {
        return Ok(Outcome::Authorities(Box::new(Authorities {
            current: issue()?,
            next: None,
            previous: remembered(now, stored.leaf.as_ref(), stored.leaf_authority),
        })));
    };
    match step {
        Step::Begin => {}
        Step::PublishNext => authorities.next = Some(issue()?),
        Step::NotePublished => {
            let next = authorities.next.as_mut();
            for published in [Some(&mut authorities.current), next].into_iter().flatten() {
                published.since.get_or_insert(now);
            }
        }
        Step::Promote => {
            if let Some(next) = authorities.next.take() {
                let replaced = std::mem::replace(&mut authorities.current, next).authority;
                authorities.previous = Some(Replaced {
                    certificate: replaced.certificate,
                    life: replaced.life,
                    at: Some(now),
                });
            }
        }
        Step::NoteReplaced => {
            if let Some(previous) = &mut authorities.previous {
                previous.at = Some(now);
            }
        }
        Step::Retire => authorities.previous = None,
        Step::IssueLeaf(_) => {
            let authority = &authorities.current.authority;
            let leaf = authority.sign(now, policy.leaf_life, &policy.names)?;
            return Ok(Outcome::Leaf(leaf));
        }
    }
    Ok(Outcome::Authorities(Box::new(authorities)))
}

/// The authority of the certificate that is served, when our own record of it is lost: callers know no other.
fn remembered(
    now: Timestamp,
    leaf: Option<&Leaf>,
    authority: Option<CertificateDer<'static>>,
) -> Option<Replaced> {
    let certificate = authority?;
    let life = authority::life(&certificate).ok()?;
    let leaf = leaf.filter(|leaf| leaf.life.includes(now) && life.includes(now))?;
    leaf.is_signed_by(&certificate).then_some(Replaced {
        certificate,
        life,
        at: None,
    })
}

#[cfg(test)]
mod tests;
