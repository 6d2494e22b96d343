//! What there is to say about a pod, collected while it is judged, so that one answer names every mistake.

use std::fmt::Display;

/// More are counted and not named: the answer is an event, a condition or a line of kubectl.
const NAMED: usize = 8;

/// Why a pod cannot have a sidecar, and what its owner should know.
#[derive(Debug, Default)]
pub(super) struct Findings {
    refusals: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    /// The pod cannot have a sidecar because of `field`; `why` ends with what to do.
    pub(super) fn refuse(&mut self, field: impl Display, why: impl Display) {
        self.refusals.push(format!("{field}: {why}"));
    }

    /// The pod can have a sidecar, yet something about `field` is probably not meant.
    pub(super) fn warn(&mut self, field: impl Display, why: impl Display) {
        self.warnings.push(format!("{field}: {why}"));
    }

    /// Whether the pod cannot have a sidecar.
    pub(super) fn refuses(&self) -> bool {
        !self.refusals.is_empty()
    }

    /// The warnings, or all refusals in one text.
    pub(super) fn into_warnings(self) -> Result<Vec<String>, String> {
        if self.refusals.is_empty() {
            let mut warnings = self.warnings;
            if let Some(more) = warnings.len().checked_sub(NAMED).filter(|more| *more > 0) {
                warnings.truncate(NAMED);
                warnings.push(format!("there are {more} more warnings"));
            }
            return Ok(warnings);
        }
        let named = self.refusals.len().min(NAMED);
        let mut message = format!(
            "the annotation nexus.io/inject asks for a sidecar that this pod cannot have: {}",
            self.refusals[..named].join("; ")
        );
        if self.refusals.len() > named {
            let more = self.refusals.len() - named;
            message = format!("{message}; and {more} more");
        }
        Err(message)
    }
}
