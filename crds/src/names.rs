//! Names that are fixed across the project: headers, identifiers, defaults.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Request header that names the provider.
pub const PROVIDER_HEADER: &str = "x-nexus-provider";
/// Request header that names the tenant.
pub const TENANT_HEADER: &str = "x-nexus-tenant";
/// Request header that names a connection the caller can reach anyway, instead of provider and tenant.
pub const CONNECTION_ID_HEADER: &str = "x-nexus-connection-id";
/// Answer header that carries the error code of an answer made by the sidecar itself.
pub const ERROR_HEADER: &str = "x-nexus-error";
/// Answer header that carries the request id, also found in the access log.
pub const REQUEST_ID_HEADER: &str = "x-nexus-request-id";

/// True for `[a-z0-9][a-z0-9._-]{0,62}`.
pub fn is_provider(name: &str) -> bool {
    let bytes = name.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes[0].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

/// True for `[A-Za-z0-9._:-]{1,128}`.
pub fn is_tenant(name: &str) -> bool {
    matches!(name.len(), 1..=128)
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

/// A connection of the Nexus control plane: a UUID, shown in its canonical lower-case form.
///
/// `FromStr` takes the spellings that the gateway takes (upper case, no dashes, braces, `urn:uuid:`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    /// The id as a number, for use as a key.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }
}

impl FromStr for ConnectionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text.trim()).map(Self)
    }
}

impl From<Uuid> for ConnectionId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
