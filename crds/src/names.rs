//! Names that are fixed across the project: headers, identifiers, labels, annotations, objects.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

/// Annotation of pods that want a sidecar; its value is `"true"`.
pub const INJECT_ANNOTATION: &str = "nexus.io/inject";
/// Annotation of pods, and of Namespaces as their limit: tenants that a pod may name, separated by commas.
pub const TENANTS_ANNOTATION: &str = "nexus.io/tenants";
/// Annotation of Namespaces: connections that may be used although another namespace named them first.
pub const CONNECTIONS_ANNOTATION: &str = "nexus.io/connections";
/// Annotation: what was decided when the pod was admitted, see [`crate::admitted`].
pub const ADMITTED_ANNOTATION: &str = "nexus.io/admitted";
/// Label of pods that have a sidecar; its value is `"true"`.
pub const SIDECAR_LABEL: &str = "nexus.io/sidecar";
/// Prefix of every label and annotation of the project.
pub const PREFIX: &str = "nexus.io/";
/// Name of the sidecar's container.
pub const SIDECAR_CONTAINER: &str = "nexus-sidecar";
/// Name of the ConfigMap that holds a namespace's table.
pub const ROUTES_CONFIG_MAP: &str = "nexus-routes";
/// Audience of the token that only the sidecar's container mounts.
pub const TOKEN_AUDIENCE: &str = "nexus-gateway";

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

    /// The id of these bytes, the first one first in the text form too.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
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

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = Uuid::encode_buffer();
        serializer.serialize_str(self.0.hyphenated().encode_lower(&mut buffer))
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = ConnectionId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a connection id (a UUID)")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ConnectionId, E> {
                text.parse().map_err(E::custom)
            }
        }

        // A visitor, since a `String` for each of 100,000 ids would be made only to be dropped.
        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for ConnectionId {
    fn schema_name() -> Cow<'static, str> {
        "ConnectionId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "uuid"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_and_tenant_names_are_judged_byte_by_byte() {
        for (name, provider, tenant) in [
            ("github", true, true),
            ("a.b_c-1", true, true),
            ("0", true, true),
            ("-a", false, true),
            ("A", false, true),
            ("a:b", false, true),
            ("", false, false),
            ("a b", false, false),
            ("*", false, false),
            ("\u{e9}", false, false),
        ] {
            assert_eq!(is_provider(name), provider, "{name:?}");
            assert_eq!(is_tenant(name), tenant, "{name:?}");
        }
        assert!(is_provider(&"a".repeat(63)) && !is_provider(&"a".repeat(64)));
        assert!(is_tenant(&"a".repeat(128)) && !is_tenant(&"a".repeat(129)));
    }

    #[test]
    fn a_connection_id_has_one_form_whatever_its_spelling() {
        let canonical = "7d6f3c1e-0000-4000-8000-00000000abcd";
        for text in [
            canonical,
            "7D6F3C1E-0000-4000-8000-00000000ABCD",
            "7d6f3c1e00004000800000000000abcd",
            "{7d6f3c1e-0000-4000-8000-00000000abcd}",
            "urn:uuid:7d6f3c1e-0000-4000-8000-00000000abcd",
            " 7d6f3c1e-0000-4000-8000-00000000abcd ",
        ] {
            let id: ConnectionId = text.parse().unwrap();
            assert_eq!(id.to_string(), canonical);
            assert_eq!(format!("{id:?}"), canonical);
            assert_eq!(serde_json::to_value(id).unwrap(), canonical);
            assert_eq!(
                serde_json::from_value::<ConnectionId>(text.into()).unwrap(),
                id
            );
        }
        assert!("nonsense".parse::<ConnectionId>().is_err());
    }
}
