//! What is reported about an object: verdicts of the compiler, and the status that the operator writes.

use std::fmt;

/// Condition type: the object is valid, and its namespace may have what it asks for.
pub const ACCEPTED: &str = "Accepted";
/// Condition type: the object is in the table that sidecars read.
pub const PROGRAMMED: &str = "Programmed";

/// Reason of a condition. The text is part of the interface and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing is wrong.
    Accepted,
    /// An older route of the namespace has this provider and overlapping selectors.
    ProviderConflict,
    /// A tenant occurs twice, in one route or in routes that would merge.
    DuplicateTenant,
    /// The upstream is missing or not usable.
    InvalidUpstream,
    /// The strategy is unknown or malformed.
    InvalidStrategy,
    /// An access rule cannot be compiled.
    InvalidAccessRule,
    /// The CA bundle holds no certificate, or something else.
    InvalidCaBundle,
    /// Another field is malformed.
    InvalidValue,
    /// No administrator granted the upstream's origin to this provider.
    OriginNotGranted,
    /// The connection belongs to another namespace.
    ConnectionClaimed,
}

impl Reason {
    /// The constant, as it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ProviderConflict => "ProviderConflict",
            Self::DuplicateTenant => "DuplicateTenant",
            Self::InvalidUpstream => "InvalidUpstream",
            Self::InvalidStrategy => "InvalidStrategy",
            Self::InvalidAccessRule => "InvalidAccessRule",
            Self::InvalidCaBundle => "InvalidCABundle",
            Self::InvalidValue => "InvalidValue",
            Self::OriginNotGranted => "OriginNotGranted",
            Self::ConnectionClaimed => "ConnectionClaimed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reason of the `Programmed` condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgrammedReason {
    /// The table holds the route.
    Programmed,
    /// The table is being written.
    Pending,
    /// The table has no room for the route.
    TableTooLarge,
}

impl ProgrammedReason {
    /// The constant, as it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::Pending => "Pending",
            Self::TableTooLarge => "TableTooLarge",
        }
    }
}

/// Why an object is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// The condition's reason.
    pub reason: Reason,
    /// Path of the offending field, e.g. `spec.upstream.url`.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(
        reason: Reason,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            reason,
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Something that is allowed and probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Path of the field, e.g. `spec.access`.
    pub field: String,
    /// What may surprise and what to do.
    pub message: String,
}

/// Kind of a judged object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A NexusRoute.
    Route,
    /// A NexusProvider.
    Provider,
}

impl Kind {
    /// The kind as written in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Route => "NexusRoute",
            Self::Provider => "NexusProvider",
        }
    }
}

/// What the compiler says about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Kind of the object.
    pub kind: Kind,
    /// Place in the list of its kind given to the compiler.
    pub index: usize,
    /// Namespace; empty for a NexusProvider.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// `Ok` if the object will be served.
    pub result: Result<(), Problem>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Warning>,
}

impl Verdict {
    /// `true` if the object will be served.
    pub fn accepted(&self) -> bool {
        self.result.is_ok()
    }

    /// Reason for the `Accepted` condition.
    pub fn reason(&self) -> Reason {
        match &self.result {
            Ok(()) => Reason::Accepted,
            Err(problem) => problem.reason,
        }
    }
}
