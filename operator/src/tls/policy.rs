//! How long certificates live and what names they have, from the command line.

use std::time::Duration;

use jiff::Timestamp;

use crate::args::RunArgs;

/// The shortest life that whole seconds of X.509 leave room for.
const SHORTEST: Duration = Duration::from_secs(3);
/// A hundred years: beyond it, sums of times mean nothing any more.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// What own certificates are like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Life of an authority.
    pub authority_life: Duration,
    /// How long an authority is in every caBundle before it signs.
    pub publish_before: Duration,
    /// How long an authority stays in every caBundle after the next one signs.
    pub keep_after: Duration,
    /// Life of the serving certificate.
    pub leaf_life: Duration,
    /// DNS names of the serving certificate: those of the Service.
    pub names: Vec<String>,
}

/// Flags that make no sense together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A duration is too short or too long by itself.
    #[error("{flag} {value:?} must be between {SHORTEST:?} and 876000h (a hundred years)")]
    Range {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: Duration,
    },
    /// The serving certificate would outlive its authority.
    #[error("--certificate-lifetime {leaf:?} must be less than --ca-lifetime {authority:?}")]
    LeafOutlives {
        /// Life of the serving certificate.
        leaf: Duration,
        /// Life of the authority.
        authority: Duration,
    },
    /// An authority would end before its successor has taken over.
    #[error(
        "--ca-lifetime {authority:?} must be at least twice --ca-publish-before {before:?} and --ca-keep-after {after:?} together, \
         or an authority ends before the next one has taken over"
    )]
    NoTimeToRotate {
        /// Life of the authority.
        authority: Duration,
        /// Time in the caBundle before it signs.
        before: Duration,
        /// Time in the caBundle after the next one signs.
        after: Duration,
    },
    /// A Service or namespace that cannot be in a DNS name.
    #[error("{flag} {value:?} must be a DNS label: small letters, digits and hyphens, at most 63")]
    Name {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
}

impl Policy {
    /// Time from an authority's issue to the publication of the next one: two thirds of its life, or earlier where the
    /// hand-over takes long.
    pub fn successor_after(&self, life: Duration) -> Duration {
        let life = life.min(self.authority_life);
        let hand_over = self.publish_before.saturating_add(self.keep_after);
        life.saturating_sub(hand_over).min(life / 3 * 2)
    }

    /// Time from the issue of a serving certificate to that of the next one.
    pub fn leaf_renewed_after(&self, life: Duration) -> Duration {
        life.min(self.leaf_life) / 3 * 2
    }
}

/// `time` and a span later; the end of time where that is beyond it.
pub fn after(time: Timestamp, span: Duration) -> Timestamp {
    time.checked_add(span).unwrap_or(Timestamp::MAX)
}

impl TryFrom<&RunArgs> for Policy {
    type Error = PolicyError;

    fn try_from(args: &RunArgs) -> Result<Self, PolicyError> {
        let certificates = &args.certificates;
        let (authority, leaf) = (certificates.ca_lifetime, certificates.certificate_lifetime);
        let (before, after) = (certificates.ca_publish_before, certificates.ca_keep_after);
        for (flag, value) in [
            ("--ca-lifetime", authority),
            ("--certificate-lifetime", leaf),
        ] {
            if !(SHORTEST..=LONGEST).contains(&value) {
                return Err(PolicyError::Range { flag, value });
            }
        }
        if leaf >= authority {
            return Err(PolicyError::LeafOutlives { leaf, authority });
        }
        if before.saturating_add(after).saturating_mul(2) > authority {
            return Err(PolicyError::NoTimeToRotate {
                authority,
                before,
                after,
            });
        }
        let (service, namespace) = (&args.webhook.webhook_service, &args.namespace);
        for (flag, value) in [("--webhook-service", service), ("--namespace", namespace)] {
            if !is_label(value) {
                let value = value.clone();
                return Err(PolicyError::Name { flag, value });
            }
        }
        let short = format!("{service}.{namespace}");
        Ok(Self {
            authority_life: authority,
            publish_before: before,
            keep_after: after,
            leaf_life: leaf,
            names: vec![
                format!("{short}.svc"),
                format!("{short}.svc.cluster.local"),
                short,
            ],
        })
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| inner(*byte))
        && bytes.last().is_some_and(|byte| inner(*byte))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[expect(
        clippy::unwrap_in_result,
        reason = "only what the policy says is a result"
    )]
    fn policy(flags: &str) -> Result<Policy, String> {
        let line = format!(
            "nexus-operator run --namespace nexus --sidecar-image i --sidecar-gateway-url https://g {flags}"
        );
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command;
        Policy::try_from(&*args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_make_sense() {
        let policy = policy("").unwrap();
        assert_eq!(
            policy.names,
            [
                "nexus-operator.nexus.svc",
                "nexus-operator.nexus.svc.cluster.local",
                "nexus-operator.nexus"
            ]
        );
        let year = Duration::from_hours(8760);
        assert_eq!(policy.successor_after(year), Duration::from_hours(5840));
    }

    #[test]
    fn a_long_hand_over_begins_early_enough() {
        let policy = policy(
            "--ca-lifetime 20s --ca-publish-before 4s --ca-keep-after 6s --certificate-lifetime 8s",
        )
        .unwrap();
        let life = Duration::from_secs(20);
        assert_eq!(policy.successor_after(life), Duration::from_secs(10));
    }

    #[test]
    fn durations_that_make_no_sense_are_refused_with_their_flags() {
        for (flags, named) in [
            (
                "--ca-lifetime 200h",
                &["--certificate-lifetime", "--ca-lifetime"][..],
            ),
            (
                "--ca-keep-after 4370h",
                &["--ca-lifetime", "--ca-publish-before", "--ca-keep-after"],
            ),
            (
                "--ca-publish-before 10000h",
                &["--ca-lifetime", "--ca-publish-before", "--ca-keep-after"],
            ),
            ("--certificate-lifetime 1s", &["--certificate-lifetime"]),
            ("--ca-lifetime 900000h", &["--ca-lifetime"]),
            ("--webhook-service a.b", &["--webhook-service"]),
            ("--webhook-service=-a", &["--webhook-service"]),
        ] {
            let error = policy(flags).unwrap_err();
            for flag in named {
                assert!(error.contains(flag), "{flags}: {error}");
            }
        }
    }
}
