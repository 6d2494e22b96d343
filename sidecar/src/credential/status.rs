//! The one table of what the control plane's answers on the token endpoint mean: a failed fetch comes in, the
//! agent's error code and how to go on come out. Pure; [`super::cache`] is the caller.
//!
//! Decided by status first, by the body's `error` code where there is one: a gateway passes its broker's status
//! on without a body.

use std::borrow::Cow;
use std::time::Duration;

use super::PayloadError;
use crate::error::{Code, ProxyError};

/// Why there is no credential.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// An answer other than 200.
    #[error("the control plane answered {} {}", .0.status, .0.code.as_deref().unwrap_or("without a code"))]
    Answer(Answer),
    /// A 200 whose body is no usable credential.
    #[error("{0}")]
    Payload(PayloadError),
    /// No connection, or it broke off.
    #[error("the control plane cannot be reached: {0}")]
    Unreachable(String),
    /// No complete answer in time.
    #[error("the control plane did not answer in time")]
    TimedOut,
    /// An answer larger than any credential.
    #[error("the control plane's answer is too large")]
    TooLarge,
    /// Too many calls are under way.
    #[error("the control plane is busy with other calls of this process")]
    Busy,
    /// A file with our own credential cannot be used.
    #[error("{0}")]
    Local(String),
    /// The task that fetches has died.
    #[error("the fetch was given up")]
    Abandoned,
}

/// A failed answer, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body's `error`, if it is one word as codes are.
    pub code: Option<String>,
    /// The body is empty.
    pub empty: bool,
    /// `Retry-After` in seconds.
    pub retry_after: Option<Duration>,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For the agent.
    pub code: Code,
    /// When to ask again.
    pub hold: Hold,
    /// What becomes of a credential that is still valid.
    pub verdict: Verdict,
    /// For the agent: what to do.
    pub detail: &'static str,
}

/// How long a failure is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The short negative cache.
    Short,
    /// Until a person has acted, so longer.
    Long,
    /// Exponentially longer from failure to failure.
    Backoff,
    /// As the control plane asks, at least a second.
    AtLeast(Duration),
}

/// What a failure says about a credential that is still valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Outage,
    /// The connection may be gone, or the broker's database is down: an outage while the last success is recent.
    Unknown,
    /// It is no longer to be used.
    Gone,
}

impl FetchError {
    /// The row of the table.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Answer(answer) => answer.outcome(),
            Self::Payload(PayloadError::NotACredential) => {
                outage("the control plane answered without a credential; try again later")
            }
            Self::Payload(
                PayloadError::Malformed { .. }
                | PayloadError::Field { .. }
                | PayloadError::Strategy(_),
            ) => Outcome {
                code: Code::CredentialInvalid,
                hold: Hold::Short,
                verdict: Verdict::Gone,
                detail: "the stored credential does not fit its strategy; correct it in the control plane or the route",
            },
            Self::Unreachable(_)
            | Self::TimedOut
            | Self::TooLarge
            | Self::Busy
            | Self::Abandoned => outage("the control plane is out of reach; try again later"),
            Self::Local(_) => rejected(),
        }
    }

    /// The error for the agent. What is not for it goes into `internal`.
    pub fn proxy_error(&self) -> ProxyError {
        let outcome = self.outcome();
        let detail: Cow<'static, str> = match self {
            // Names fields of the strategy only, which helps whoever set it up.
            Self::Payload(
                error @ (PayloadError::Malformed { .. }
                | PayloadError::Field { .. }
                | PayloadError::Strategy(_)),
            ) => format!("{}: {error}", outcome.detail).into(),
            Self::Payload(PayloadError::NotACredential)
            | Self::Answer(_)
            | Self::Unreachable(_)
            | Self::TimedOut
            | Self::TooLarge
            | Self::Busy
            | Self::Local(_)
            | Self::Abandoned => outcome.detail.into(),
        };
        let mut error = ProxyError::new(outcome.code, detail);
        error.internal = Some(self.internal().into());
        error
    }

    /// It says nothing about the connection.
    pub fn is_outage(&self) -> bool {
        self.outcome().verdict == Verdict::Outage
    }

    /// As the failure of a refresh: the credential cannot be refreshed, now or by trying again.
    pub fn denies_refresh(&self) -> bool {
        match self {
            Self::Answer(Answer { status, code, .. }) => match status {
                400 | 409 | 410 => true,
                500 => code.as_deref() == Some("unsupported_auth_type"),
                _ => false,
            },
            // A 200 without a token may hide an outage, or a provider that answers so and will not answer otherwise.
            Self::Payload(_)
            | Self::Unreachable(_)
            | Self::TimedOut
            | Self::TooLarge
            | Self::Busy
            | Self::Local(_)
            | Self::Abandoned => false,
        }
    }

    /// As the failure of a refresh: it may have run all the same, or still be running.
    pub fn leaves_refresh_open(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut | Self::TooLarge | Self::Abandoned => true,
            // A gateway that has lost its broker.
            Self::Answer(Answer { status, .. }) => *status == 504,
            Self::Payload(_) | Self::Busy | Self::Local(_) => false,
        }
    }

    /// As the failure of a refresh, for the metrics.
    pub fn refresh_code(&self) -> Code {
        match self {
            Self::Answer(Answer { status: 400, .. }) => Code::CredentialInvalid,
            Self::Answer(Answer { status: 500, .. }) if self.denies_refresh() => {
                Code::CredentialInvalid
            }
            other => other.outcome().code,
        }
    }

    fn internal(&self) -> String {
        match self {
            Self::Answer(Answer {
                status: 403,
                code: None,
                empty: true,
                ..
            }) => format!(
                "{self}: either the connection is not active, or the gateway's own broker key is wrong (the gateway passes on no more)"
            ),
            Self::Answer(_)
            | Self::Payload(_)
            | Self::Unreachable(_)
            | Self::TimedOut
            | Self::TooLarge
            | Self::Busy
            | Self::Local(_)
            | Self::Abandoned => self.to_string(),
        }
    }
}

impl Answer {
    fn outcome(&self) -> Outcome {
        match (self.status, self.code.as_deref()) {
            (400 | 403, Some("connection_not_active")) | (410, _) => inactive(Verdict::Gone),
            // Empty: a gateway passing on `connection_not_active`, or its own refused key.
            (403, None) if self.empty => inactive(Verdict::Outage),
            (401 | 403, _) => rejected(),
            (400 | 404, _) => Outcome {
                code: Code::ConnectionUnknown,
                hold: Hold::Short,
                verdict: Verdict::Unknown,
                detail: "the control plane does not know the connection of this provider and tenant; connect it, or correct the route",
            },
            (409, Some("token_expired")) => {
                outage("the control plane could not renew the credential; try again later")
            }
            (409, _) => Outcome {
                code: Code::AttentionRequired,
                hold: Hold::Long,
                verdict: Verdict::Outage,
                detail: "the user has to authorize the connection again",
            },
            (429, _) => Outcome {
                hold: Hold::AtLeast(self.retry_after.unwrap_or_default()),
                ..outage("the control plane is asked too often; try again later")
            },
            (200..400, _) => {
                outage("the control plane answered without a credential; try again later")
            }
            _ => outage("the control plane is out of order; try again later"),
        }
    }
}

const fn outage(detail: &'static str) -> Outcome {
    Outcome {
        code: Code::BrokerUnavailable,
        hold: Hold::Backoff,
        verdict: Verdict::Outage,
        detail,
    }
}

const fn inactive(verdict: Verdict) -> Outcome {
    Outcome {
        code: Code::ConnectionInactive,
        hold: Hold::Short,
        verdict,
        detail: "the connection is pending, revoked, failed or expired; the user has to connect it again",
    }
}

const fn rejected() -> Outcome {
    Outcome {
        code: Code::BrokerRejected,
        hold: Hold::Backoff,
        verdict: Verdict::Outage,
        detail: "the control plane does not accept this sidecar; an administrator has to check its key, token or certificate",
    }
}

#[cfg(test)]
impl Outcome {
    /// Code, hold and verdict in a line, for tables in tests.
    pub(crate) fn summary(&self) -> String {
        let code = self.code.class().code;
        format!("{code} {:?} {:?}", self.hold, self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: Option<&str>, empty: bool) -> Outcome {
        FetchError::Answer(Answer {
            status,
            code: code.map(str::to_owned),
            empty,
            retry_after: None,
        })
        .outcome()
    }

    /// Status, body code, then what it comes to.
    const ROWS: &str = "
        200 - broker_unavailable Backoff Outage
        204 - broker_unavailable Backoff Outage
        302 - broker_unavailable Backoff Outage
        400 invalid_connection_id connection_unknown Short Unknown
        400 connection_not_active connection_inactive Short Gone
        401 missing_api_key broker_rejected Backoff Outage
        401 - broker_rejected Backoff Outage
        403 invalid_api_key broker_rejected Backoff Outage
        403 access_denied broker_rejected Backoff Outage
        403 connection_not_active connection_inactive Short Gone
        403 - connection_inactive Short Outage
        404 connection_not_found connection_unknown Short Unknown
        404 token_not_found connection_unknown Short Unknown
        404 - connection_unknown Short Unknown
        405 - broker_unavailable Backoff Outage
        409 attention_required attention_required Long Outage
        409 - attention_required Long Outage
        409 token_expired broker_unavailable Backoff Outage
        410 connection_revoked connection_inactive Short Gone
        429 - broker_unavailable AtLeast(0ns) Outage
        500 decrypt_failed broker_unavailable Backoff Outage
        500 invalid_token_format broker_unavailable Backoff Outage
        502 broker_unavailable broker_unavailable Backoff Outage
        503 - broker_unavailable Backoff Outage
        504 - broker_unavailable Backoff Outage";

    #[test]
    fn every_row_of_the_protocols_table_has_its_code_and_consequence() {
        for row in ROWS.trim().lines().map(str::trim) {
            let [status, error, expected] = row.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{row}");
            };
            let error = (error != "-").then_some(error);
            let outcome = answer(status.parse().unwrap(), error, error.is_none());
            assert_eq!(outcome.summary(), expected, "{row}");
        }
    }

    #[test]
    fn an_empty_403_says_inactive_to_the_agent_and_both_causes_in_the_log() {
        let error = FetchError::Answer(Answer {
            status: 403,
            empty: true,
            ..Answer::default()
        })
        .proxy_error();
        assert_eq!(error.code, Code::ConnectionInactive);
        let internal = error.internal.unwrap();
        assert!(internal.contains("not active") && internal.contains("broker key is wrong"));
        assert!(!error.detail.contains("broker"));
    }

    #[test]
    fn a_403_page_of_a_check_in_front_means_we_are_rejected() {
        assert_eq!(answer(403, None, false).code, Code::BrokerRejected);
    }

    #[test]
    fn retry_after_of_a_429_is_kept() {
        let error = FetchError::Answer(Answer {
            status: 429,
            retry_after: Some(Duration::from_secs(7)),
            ..Answer::default()
        });
        assert_eq!(error.outcome().code, Code::BrokerUnavailable);
        assert_eq!(error.outcome().hold, Hold::AtLeast(Duration::from_secs(7)));
    }

    #[test]
    fn failures_without_an_answer_are_outages() {
        for error in [
            FetchError::Unreachable("refused".into()),
            FetchError::TimedOut,
            FetchError::TooLarge,
            FetchError::Busy,
            FetchError::Abandoned,
            FetchError::Payload(PayloadError::NotACredential),
        ] {
            assert_eq!(error.outcome().code, Code::BrokerUnavailable, "{error}");
        }
        assert_eq!(
            FetchError::Local("no file".into()).outcome().code,
            Code::BrokerRejected
        );
    }
}
