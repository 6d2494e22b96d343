//! How a credential is put on a request: the words of the Nexus protocol, parsed into types.
//!
//! A [`StrategySpec`] is what a document says (a route, or the control plane); a [`Strategy`] is what the
//! sidecar can apply. Neither holds a secret, only the names of credential fields.

use http::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A strategy as written in a document: `{"type": ..., "config": {...}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrategySpec {
    /// The scheme, e.g. `oauth2`, `header`, `aws_sigv4`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The scheme's settings; all values are strings but `set`, a JSON array.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

/// A strategy that can be applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// `Authorization: Bearer <access_token>`.
    Oauth2,
    /// One header or several, each set from a credential field (`header`, and its alias `api_key`).
    Header(Vec<HeaderPart>),
    /// One query parameter or several, each set from a credential field.
    QueryParam(Vec<ParamPart>),
    /// `Authorization: Basic` (RFC 7617).
    BasicAuth {
        /// Where the user name comes from.
        username: Username,
        /// Credential field that holds the password.
        password_field: String,
    },
    /// HMAC of the body bytes in a header.
    HmacPayload {
        /// Header that carries the signature.
        header_name: HeaderName,
        /// Credential field that holds the key.
        secret_field: String,
        /// Hash function.
        algorithm: HmacAlgorithm,
        /// How the signature is written.
        encoding: HmacEncoding,
    },
    /// AWS Signature Version 4.
    AwsSigv4 {
        /// Service name of the credential scope, e.g. `s3`.
        service: String,
        /// Region of the credential scope; `None` leaves it to the host name.
        region: Option<String>,
    },
}

/// One header of a `header` strategy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderPart {
    /// Header to set.
    pub name: HeaderName,
    /// Credential field that holds the value.
    pub credential_field: String,
    /// Put before the value, literally.
    pub value_prefix: String,
}

/// One parameter of a `query_param` strategy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParamPart {
    /// Parameter name, before encoding.
    pub name: String,
    /// Credential field that holds the value.
    pub credential_field: String,
}

/// Where the user name of a `basic_auth` strategy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Username {
    /// A credential field.
    Field(String),
    /// Written in the strategy, e.g. `x-access-token`.
    Literal(String),
}

/// Hash function of an `hmac_payload` strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HmacAlgorithm {
    /// HMAC-SHA-256.
    Sha256,
    /// HMAC-SHA-1.
    Sha1,
}

/// How the signature of an `hmac_payload` strategy is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HmacEncoding {
    /// Lower-case hexadecimal.
    Hex,
    /// Base64 with padding (RFC 4648 section 4).
    Base64,
}

/// Why a strategy cannot be applied. Carries names from the document, never a credential's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategyError {
    /// The scheme is not one we know.
    #[error("strategy type {0:?} is not known")]
    UnknownType(String),
    /// The scheme is known and comes with a later version.
    #[error("strategy type {0:?} is not supported by this version")]
    Unsupported(String),
    /// A setting is missing, of the wrong kind or out of range.
    #[error("config.{field}: {reason}")]
    Config {
        /// The setting's name.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The route asks for a presentation that the delivered credential cannot have.
    #[error("the route presents the credential as {route}, the control plane delivers {delivered}")]
    Mismatch {
        /// Type in the route.
        route: String,
        /// Type delivered.
        delivered: String,
    },
}

impl Strategy {
    /// Parses a strategy with the defaults of the protocol.
    pub fn parse(_spec: &StrategySpec) -> Result<Self, StrategyError> {
        unimplemented!()
    }

    /// The strategy that applies when a route says how to present what the control plane delivers.
    ///
    /// An `oauth2` credential may be presented as `header` or `basic_auth` (its `credential_field` or
    /// `password_field` then defaults to `access_token`); any other difference of type is an error. Where the types are equal, the route's
    /// config wins key by key, except `region`, where the delivered one does.
    pub fn effective(
        _route: Option<&StrategySpec>,
        _delivered: &StrategySpec,
    ) -> Result<Self, StrategyError> {
        unimplemented!()
    }
}
