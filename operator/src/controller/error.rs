//! Why a namespace or a provider is not as it should be, and when to try again.

use std::time::Duration;

use nexus_crds::table::TableError;

/// First wait after a conflict, and the longest.
const CONFLICT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// First wait after another failure, and the longest.
const FAILURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// Something else wrote since we read.
    #[error("{what} was changed meanwhile")]
    Conflict {
        /// What was to be written.
        what: String,
    },
    /// The API server refused or did not answer.
    #[error("cannot {verb} {what}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// With what.
        what: String,
        /// What the API server says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The table cannot be encoded.
    #[error("cannot encode the table")]
    Table(#[source] TableError),
    /// A computation was ended.
    #[error("a computation was ended")]
    Task(#[source] tokio::task::JoinError),
}

impl ReconcileError {
    pub(crate) fn api(verb: &'static str, what: &str, source: kube::Error) -> Self {
        let what = what.to_owned();
        match &source {
            kube::Error::Api(status) if status.is_conflict() => Self::Conflict { what },
            _ => Self::Api {
                verb,
                what,
                source: Box::new(source),
            },
        }
    }

    /// Something else wrote since we read; trying again soon is all it takes.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Trying again will not help until somebody changes something: a missing permission, a policy, a limit.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Table(_) => true,
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => {
                    matches!(status.code, 400 | 401 | 403 | 405 | 413 | 422)
                }
                _ => false,
            },
            Self::Conflict { .. } | Self::Task(_) => false,
        }
    }

    /// The error and what caused it, in one line.
    pub(crate) fn chain(&self) -> String {
        if let Self::Api { verb, what, source } = self
            && let kube::Error::Api(status) = &**source
        {
            // The client's own words repeat it, with all of the answer's fields.
            return format!("cannot {verb} {what}: {}: {}", status.code, status.message);
        }
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// How long to wait after so many failures in a row.
pub(crate) fn backoff(error: &ReconcileError, failures: u32) -> Duration {
    let (first, longest) = if error.is_conflict() {
        CONFLICT
    } else {
        FAILURE
    };
    let doublings = failures.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16) -> ReconcileError {
        let reason = if code == 409 { "Conflict" } else { "" };
        let status = Status {
            code,
            message: "because".to_owned(),
            reason: reason.to_owned(),
            ..Status::default()
        };
        ReconcileError::api("write", "ConfigMap x", kube::Error::Api(status.boxed()))
    }

    #[test]
    fn a_refusal_lasts_and_a_conflict_does_not() {
        assert!(refused(403).is_lasting() && !refused(403).is_conflict());
        assert!(refused(409).is_conflict() && !refused(409).is_lasting());
        for passing in [429, 500, 503] {
            assert!(!refused(passing).is_lasting(), "{passing}");
        }
        assert_eq!(
            refused(403).chain(),
            "cannot write ConfigMap x: 403: because"
        );
    }

    #[test]
    fn waits_double_up_to_a_limit() {
        let waits =
            [1, 2, 3, 60, u32::MAX].map(|failures| backoff(&refused(403), failures).as_secs());
        assert_eq!(waits, [1, 2, 4, 300, 300]);
        assert_eq!(backoff(&refused(409), 1), Duration::from_millis(100));
    }
}
