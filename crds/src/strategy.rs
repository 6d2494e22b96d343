//! How a credential is put on a request: the words of the Nexus protocol, parsed into types.
//!
//! A [`StrategySpec`] is what a document says (a route, or the control plane); a [`Strategy`] is what the
//! sidecar can apply. Neither holds a secret, only the names of credential fields.

mod parse;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::parse::{Defaults, parse_as};

/// A strategy as written in a document: `{"type": ..., "config": {...}}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StrategySpec {
    /// The scheme, e.g. `oauth2`, `header`, `aws_sigv4`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub kind: String,
    /// The scheme's settings; all values are strings but `set`, a JSON array.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub config: Map<String, Value>,
}

/// The settings differ by type, so the API server keeps them as they are and `compile` judges them.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
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
    /// Put before the value, and encoded with it. Empty by default.
    pub value_prefix: String,
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

/// The scheme's name in a document, with `api_key` read as its other spelling `header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Oauth2,
    Header,
    QueryParam,
    BasicAuth,
    HmacPayload,
    AwsSigv4,
    /// Named by the protocol, built by a later version.
    Later,
}

impl Kind {
    fn named(name: &str) -> Result<Self, StrategyError> {
        Ok(match name {
            "oauth2" => Self::Oauth2,
            "header" | "api_key" => Self::Header,
            "query_param" => Self::QueryParam,
            "basic_auth" => Self::BasicAuth,
            "hmac_payload" => Self::HmacPayload,
            "aws_sigv4" => Self::AwsSigv4,
            "dpop" | "oauth1" | "mtls" | "hmac_template" | "path" => Self::Later,
            unknown => return Err(StrategyError::UnknownType(unknown.to_owned())),
        })
    }
}

/// The settings that a type knows; `None` where a later version says.
pub(crate) fn settings(kind: &str) -> Option<&'static [&'static str]> {
    Some(match Kind::named(kind).ok()? {
        Kind::Oauth2 => &[],
        Kind::Header => &["header_name", "credential_field", "value_prefix", "set"],
        Kind::QueryParam => &["param_name", "credential_field", "set"],
        Kind::BasicAuth => &["username", "username_field", "password_field"],
        Kind::HmacPayload => &["header_name", "secret_field", "algo", "encoding"],
        Kind::AwsSigv4 => &["service", "region"],
        Kind::Later => return None,
    })
}

impl Strategy {
    /// Parses a strategy with the defaults of the protocol.
    pub fn parse(spec: &StrategySpec) -> Result<Self, StrategyError> {
        parse_as(spec, Defaults::PROTOCOL)
    }

    /// The strategy that applies when a route says how to present what the control plane delivers.
    ///
    /// An `oauth2` credential may be presented as `header` or `basic_auth` (its `credential_field` or
    /// `password_field` then defaults to `access_token`); any other difference of type is an error. Where the types are equal, the route's
    /// config wins key by key, except `region`, where the delivered one does.
    pub fn effective(
        route: Option<&StrategySpec>,
        delivered: &StrategySpec,
    ) -> Result<Self, StrategyError> {
        let Some(route) = route else {
            return Self::parse(delivered);
        };
        let (ours, theirs) = (Kind::named(&route.kind)?, Kind::named(&delivered.kind)?);
        let same = ours == theirs && (ours != Kind::Later || route.kind == delivered.kind);
        if same {
            return Self::parse(&merge(route, delivered));
        }
        match (ours, theirs) {
            (Kind::Header | Kind::BasicAuth, Kind::Oauth2) => parse_as(route, Defaults::OAUTH2),
            (Kind::Later, Kind::Oauth2) => Err(StrategyError::Unsupported(route.kind.clone())),
            (
                Kind::Oauth2
                | Kind::Header
                | Kind::QueryParam
                | Kind::BasicAuth
                | Kind::HmacPayload
                | Kind::AwsSigv4
                | Kind::Later,
                _,
            ) => Err(StrategyError::Mismatch {
                route: route.kind.clone(),
                delivered: delivered.kind.clone(),
            }),
        }
    }
}

/// Settings of which a document has one or the other: naming one takes the place of the other.
const ALTERNATIVES: [(&str, &[&str]); 2] = [
    (
        "set",
        &[
            "header_name",
            "param_name",
            "credential_field",
            "value_prefix",
        ],
    ),
    ("username", &["username_field"]),
];

fn merge(route: &StrategySpec, delivered: &StrategySpec) -> StrategySpec {
    let mut config = delivered.config.clone();
    for (key, value) in &route.config {
        if key == "region" && config.contains_key(key) {
            continue;
        }
        for (one, others) in ALTERNATIVES {
            if key == one {
                config.retain(|key, _| !others.contains(&key.as_str()));
            } else if others.contains(&key.as_str()) {
                config.remove(one);
            }
        }
        config.insert(key.clone(), value.clone());
    }
    StrategySpec {
        kind: delivered.kind.clone(),
        config,
    }
}

#[cfg(test)]
mod tests;
