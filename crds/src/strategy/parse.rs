//! A strategy's settings, from JSON to types.

use std::borrow::Cow;
use std::collections::HashSet;

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::header::is_reserved;
use crate::strategy::{
    HeaderPart, HmacAlgorithm, HmacEncoding, Kind, ParamPart, Strategy, StrategyError,
    StrategySpec, Username,
};

/// Credential fields that are meant where a document names none.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    value: &'static str,
    password: &'static str,
}

impl Defaults {
    pub(super) const PROTOCOL: Self = Self {
        value: "api_key",
        password: "password",
    };
    pub(super) const OAUTH2: Self = Self {
        value: "access_token",
        password: "access_token",
    };
}

/// Parses a strategy; `defaults` are the fields that are meant where it names none.
pub(super) fn parse_as(spec: &StrategySpec, defaults: Defaults) -> Result<Strategy, StrategyError> {
    let kind = Kind::named(&spec.kind)?;
    let config = Config::new(&spec.config)?;
    Ok(match kind {
        Kind::Oauth2 => Strategy::Oauth2,
        Kind::Header => Strategy::Header(header_parts(&config, defaults)?),
        Kind::QueryParam => Strategy::QueryParam(param_parts(&config, defaults)?),
        Kind::BasicAuth => Strategy::BasicAuth {
            username: match config.text("username")? {
                Some(literal) => Username::Literal(user_name(literal)?),
                None => Username::Field(config.field("username_field", "username")?),
            },
            password_field: config.field("password_field", defaults.password)?,
        },
        Kind::HmacPayload => Strategy::HmacPayload {
            header_name: header_name("header_name", config.required("header_name")?)?,
            secret_field: config.field("secret_field", "api_secret")?,
            algorithm: match config.text("algo")?.unwrap_or("sha256") {
                "sha256" => HmacAlgorithm::Sha256,
                "sha1" => HmacAlgorithm::Sha1,
                other => return Err(one_of("algo", other, "sha256, sha1")),
            },
            encoding: match config.text("encoding")?.unwrap_or("hex") {
                "hex" => HmacEncoding::Hex,
                "base64" => HmacEncoding::Base64,
                other => return Err(one_of("encoding", other, "hex, base64")),
            },
        },
        Kind::AwsSigv4 => Strategy::AwsSigv4 {
            service: scope_part("service", config.required("service")?)?,
            region: config
                .text("region")?
                .filter(|region| !region.is_empty())
                .map(|region| scope_part("region", region))
                .transpose()?,
        },
        Kind::Later => return Err(StrategyError::Unsupported(spec.kind.clone())),
    })
}

fn header_parts(config: &Config<'_>, defaults: Defaults) -> Result<Vec<HeaderPart>, StrategyError> {
    let part = |config: &Config<'_>, key: &str, default: Option<&str>| {
        let name = match default {
            Some(default) => config.text(key)?.unwrap_or(default),
            None => config.required(key)?,
        };
        let value_prefix = config.text("value_prefix")?.unwrap_or_default();
        if HeaderValue::from_str(value_prefix).is_err() {
            return Err(invalid(
                "value_prefix",
                "has a character that a header value cannot have",
            ));
        }
        Ok(HeaderPart {
            name: header_name(key, name)?,
            credential_field: config.field("credential_field", defaults.value)?,
            value_prefix: value_prefix.to_owned(),
        })
    };
    let Some(set) = config.set(&["header_name", "credential_field", "value_prefix"])? else {
        return Ok(vec![part(config, "header_name", Some("Authorization"))?]);
    };
    let parts = each_of(&set, |entry| part(entry, "name", None))?;
    distinct(parts.iter().map(|part| part.name.as_str()))?;
    Ok(parts)
}

fn param_parts(config: &Config<'_>, defaults: Defaults) -> Result<Vec<ParamPart>, StrategyError> {
    let part = |config: &Config<'_>, key: &str| {
        Ok(ParamPart {
            name: config.required(key)?.to_owned(),
            credential_field: config.field("credential_field", defaults.value)?,
            value_prefix: config.text("value_prefix")?.unwrap_or_default().to_owned(),
        })
    };
    let Some(set) = config.set(&["param_name", "credential_field", "value_prefix"])? else {
        return Ok(vec![part(config, "param_name")?]);
    };
    let parts = each_of(&set, |entry| part(entry, "name"))?;
    distinct(parts.iter().map(|part| part.name.as_str()))?;
    Ok(parts)
}

/// Parses the entries of `set`, naming the entry in an error.
fn each_of<T>(
    set: &[Value],
    parse: impl Fn(&Config<'_>) -> Result<T, StrategyError>,
) -> Result<Vec<T>, StrategyError> {
    let entry = |(index, value): (usize, &Value)| {
        let Value::Object(entry) = value else {
            return Err(invalid(&format!("set[{index}]"), "must be an object"));
        };
        Config::new(entry)
            .and_then(|config| parse(&config))
            .map_err(|error| match error {
                StrategyError::Config { field, reason } => StrategyError::Config {
                    field: format!("set[{index}].{field}"),
                    reason,
                },
                other @ (StrategyError::UnknownType(_)
                | StrategyError::Unsupported(_)
                | StrategyError::Mismatch { .. }) => other,
            })
    };
    set.iter().enumerate().map(entry).collect()
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), StrategyError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(invalid("set", &format!("{name:?} is set twice")));
        }
    }
    Ok(())
}

/// Settings of a strategy, known to be strings but for `set`.
struct Config<'a>(&'a Map<String, Value>);

impl<'a> Config<'a> {
    fn new(settings: &'a Map<String, Value>) -> Result<Self, StrategyError> {
        let odd = settings
            .iter()
            .find(|(key, value)| key.as_str() != "set" && !value.is_string());
        match odd {
            Some((key, _)) => Err(invalid(key, "must be a string")),
            None => Ok(Self(settings)),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, StrategyError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(key, "must be a string")),
        }
    }

    fn required(&self, key: &str) -> Result<&'a str, StrategyError> {
        match self.text(key)? {
            Some("") => Err(invalid(key, "must not be empty")),
            Some(text) => Ok(text),
            None => Err(invalid(key, "is required")),
        }
    }

    /// Name of a credential field.
    fn field(&self, key: &str, default: &str) -> Result<String, StrategyError> {
        match self.text(key)? {
            Some("") => Err(invalid(key, "must not be empty")),
            Some(text) => Ok(text.to_owned()),
            None => Ok(default.to_owned()),
        }
    }

    /// The entries of `set`, which takes the place of the settings in `instead_of`.
    fn set(&self, instead_of: &[&str]) -> Result<Option<Cow<'a, [Value]>>, StrategyError> {
        let entries: Cow<'a, [Value]> = match self.0.get("set") {
            None => return Ok(None),
            Some(Value::Array(entries)) => Cow::Borrowed(entries),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(entries)) => Cow::Owned(entries),
                Ok(_) | Err(_) => return Err(invalid("set", "does not hold a JSON array")),
            },
            Some(_) => return Err(invalid("set", "must be a JSON array")),
        };
        if entries.is_empty() {
            return Err(invalid("set", "must have at least one entry"));
        }
        if let Some(both) = instead_of.iter().find(|key| self.0.contains_key(**key)) {
            return Err(invalid(both, "cannot be combined with set"));
        }
        Ok(Some(entries))
    }
}

fn header_name(field: &str, name: &str) -> Result<HeaderName, StrategyError> {
    let name = HeaderName::try_from(name)
        .map_err(|_| invalid(field, &format!("{name:?} is not a header name")))?;
    if is_reserved(&name) {
        let reason = format!("{name} belongs to the connection or to the sidecar, no credential");
        return Err(invalid(field, &reason));
    }
    Ok(name)
}

/// RFC 7617 section 2: a user name has no colon, neither part has control characters.
fn user_name(name: &str) -> Result<String, StrategyError> {
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
        let reason = "must not be empty or have a colon or control characters";
        return Err(invalid("username", reason));
    }
    Ok(name.to_owned())
}

fn scope_part(field: &str, text: &str) -> Result<String, StrategyError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.bytes().all(word) {
        return Err(invalid(field, "may have letters, digits, `-`, `_` and `.`"));
    }
    Ok(text.to_owned())
}

fn one_of(field: &str, found: &str, known: &str) -> StrategyError {
    invalid(field, &format!("{found:?} is not one of {known}"))
}

fn invalid(field: &str, reason: &str) -> StrategyError {
    StrategyError::Config {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}
