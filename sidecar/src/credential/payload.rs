//! Parses the body of a token answer: bytes in, the effective strategy and the fields it names out.
//!
//! The payload is read twice, first for its outline (which strategy, where the fields are), then for the fields.
//! All other values, the refresh token among them, are skipped by the JSON reader and never copied. Errors name
//! fields and never carry values.

mod reader;

use std::borrow::Cow;
use std::marker::PhantomData;
use std::time::SystemTime;

use nexus_crds::strategy::{Strategy, StrategyError, StrategySpec, Username};
use serde::Deserialize;
use serde_json::Value;

use super::expiry::{self, Expiry};
pub(crate) use reader::Loose;
use reader::{FieldsSeed, read_at};

/// Why a payload is not a credential that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// There is no credential in it: the gRPC front's empty `token`, a page of a proxy, `{}`, an error object.
    /// Says nothing about the connection, so it counts as an outage.
    #[error("the answer holds no credential")]
    NotACredential,
    /// A part of it has the wrong shape.
    #[error("{part} {problem}")]
    Malformed {
        /// Name of the part.
        part: Cow<'static, str>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A field the strategy names cannot be used.
    #[error("credential field {field:?} {problem}")]
    Field {
        /// Name of the field.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The strategy cannot be applied.
    #[error("the strategy cannot be applied: {0}")]
    Strategy(StrategyError),
}

impl PayloadError {
    pub(crate) fn field(field: &str, problem: &'static str) -> Self {
        Self::Field {
            field: field.to_owned(),
            problem,
        }
    }

    fn malformed(part: impl Into<Cow<'static, str>>, problem: &'static str) -> Self {
        Self::Malformed {
            part: part.into(),
            problem,
        }
    }
}

/// A payload after parsing.
pub(crate) struct Parsed {
    pub(crate) strategy: Strategy,
    pub(crate) fields: Fields,
    /// What the payload says about its end, and what that of the second connection does.
    pub(crate) lives: (Life, Option<Life>),
}

/// How long the credential of one connection lasts, and whether another can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// When it ends.
    pub(crate) expiry: Expiry,
    /// The payload says that it has ended.
    pub(crate) expired: bool,
    /// The payload holds a refresh token.
    pub(crate) refreshable: bool,
}

/// Parses a payload, and that of a second connection whose fields go under the first's.
pub(crate) fn parse(
    payload: &[u8],
    key_payload: Option<&[u8]>,
    route: Option<&StrategySpec>,
) -> Result<Parsed, PayloadError> {
    let document = Document::read(payload)?;
    let strategy =
        Strategy::effective(route, &document.strategy()?).map_err(PayloadError::Strategy)?;
    let names = field_names(&strategy);
    let mut fields = document.fields(&names)?;
    let first = fields.life(&document.outline.expiry)?;
    let mut second = None;
    if let Some(key_payload) = key_payload {
        let key_document = Document::read(key_payload)?;
        let key_fields = key_document.fields(&names)?;
        second = Some(key_fields.life(&key_document.outline.expiry)?);
        fields.fill_from(key_fields);
    }
    Ok(Parsed {
        fields,
        lives: (first, second),
        strategy: strategy.clone(),
    })
}

impl Life {
    /// When it ends, if it was first seen at `seen`.
    pub(crate) fn end(&self, seen: SystemTime) -> Option<SystemTime> {
        let end = match self.expiry {
            Expiry::Never => None,
            Expiry::At(at) => Some(at),
            Expiry::After(life) => Some(seen + life),
        };
        if self.expired {
            return Some(end.map_or(seen, |end| end.min(seen)));
        }
        end
    }
}

/// The values of the fields a strategy names.
#[derive(Default)]
pub(crate) struct Fields {
    values: Vec<(String, Loose)>,
    expires_at: Loose,
    expiry: Loose,
    expires_in: Loose,
    expired: Loose,
    refresh_token: bool,
}

impl Fields {
    /// A field that has to be a non-empty string.
    pub(crate) fn require(&self, name: &str) -> Result<&str, PayloadError> {
        self.optional(name)?
            .ok_or_else(|| PayloadError::field(name, "is missing or empty"))
    }

    /// A field that may be absent, `null`, empty or blank, and is a string otherwise.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<&str>, PayloadError> {
        let value = self.values.iter().find(|(field, _)| field == name);
        match value.map(|(_, value)| value) {
            None | Some(Loose::Null) => Ok(None),
            // Blanks alone would go out as a header without a credential.
            Some(Loose::Text(text)) => Ok(Some(text.as_str()).filter(|t| !t.trim().is_empty())),
            Some(Loose::Bool(_) | Loose::Number(_) | Loose::List | Loose::Object) => {
                Err(PayloadError::field(name, "is not a string"))
            }
        }
    }

    fn expiry(&self, root: &Loose) -> Result<Expiry, PayloadError> {
        let own = match &self.expiry {
            Loose::Null => root,
            other => other,
        };
        expiry::read(&self.expires_at, own, &self.expires_in).map_err(
            |expiry::Unreadable(field)| {
                PayloadError::field(field, "is neither an RFC 3339 time nor a number")
            },
        )
    }

    fn life(&self, root: &Loose) -> Result<Life, PayloadError> {
        Ok(Life {
            expiry: self.expiry(root)?,
            expired: self.expired()?,
            refreshable: self.refresh_token,
        })
    }

    fn expired(&self) -> Result<bool, PayloadError> {
        match self.expired {
            Loose::Null => Ok(false),
            Loose::Bool(expired) => Ok(expired),
            Loose::Number(_) | Loose::Text(_) | Loose::List | Loose::Object => {
                Err(PayloadError::field("expired", "is not a boolean"))
            }
        }
    }

    fn fill_from(&mut self, under: Self) {
        for (name, value) in under.values {
            match self.values.iter_mut().find(|(field, _)| *field == name) {
                Some((_, own @ Loose::Null)) => *own = value,
                Some(_) => {}
                None => self.values.push((name, value)),
            }
        }
    }
}

fn field_names(strategy: &Strategy) -> Vec<&str> {
    match strategy {
        Strategy::Oauth2 => vec!["access_token"],
        Strategy::Header(parts) => parts.iter().map(|p| p.credential_field.as_str()).collect(),
        Strategy::QueryParam(parts) => parts.iter().map(|p| p.credential_field.as_str()).collect(),
        Strategy::BasicAuth {
            username: Username::Field(username),
            password_field,
        } => vec![username, password_field],
        Strategy::BasicAuth {
            username: Username::Literal(_),
            password_field,
        } => vec![password_field],
        Strategy::HmacPayload { secret_field, .. } => vec![secret_field],
        Strategy::AwsSigv4 { .. } => vec!["access_key", "secret_key", "session_token"],
    }
}

/// Where the parts of a payload are.
struct Document<'a> {
    payload: &'a [u8],
    /// `token`, if the gRPC front wrapped the payload.
    wrapper: Option<&'static str>,
    outline: Outline,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Outline {
    token: Loose,
    strategy: Value,
    credentials: Loose,
    access_token: Loose,
    expiry: Loose,
}

impl Outline {
    fn is_blank(&self) -> bool {
        self.strategy.is_null()
            && matches!(self.credentials, Loose::Null)
            && matches!(self.access_token, Loose::Null)
    }
}

impl<'a> Document<'a> {
    fn read(payload: &'a [u8]) -> Result<Self, PayloadError> {
        let mut document = Self {
            payload,
            wrapper: None,
            outline: read_at(payload, &[], PhantomData::<Outline>)
                .map_err(|_| PayloadError::NotACredential)?,
        };
        if document.outline.is_blank() && matches!(document.outline.token, Loose::Object) {
            document.outline = read_at(payload, &["token"], PhantomData::<Outline>)
                .map_err(|_| PayloadError::NotACredential)?;
            document.wrapper = Some("token");
        }
        if document.outline.is_blank() {
            return Err(PayloadError::NotACredential);
        }
        Ok(document)
    }

    /// The strategy delivered; the older flat form has none and is `oauth2`.
    fn strategy(&self) -> Result<StrategySpec, PayloadError> {
        match (&self.outline.strategy, &self.outline.credentials) {
            (Value::Null, Loose::Null) => Ok(StrategySpec {
                kind: "oauth2".to_owned(),
                config: serde_json::Map::new(),
            }),
            (Value::Null, _) => Err(PayloadError::malformed("strategy", "is missing")),
            (value, _) => StrategySpec::deserialize(value).map_err(|_| {
                PayloadError::malformed("strategy", "needs a string `type` and an object `config`")
            }),
        }
    }

    fn fields(&self, names: &[&str]) -> Result<Fields, PayloadError> {
        let mut path: Vec<&'static str> = self.wrapper.into_iter().collect();
        match &self.outline.credentials {
            Loose::Object => path.push("credentials"),
            // Only an oauth2 credential has its fields at the root; others end as missing fields.
            Loose::Null if self.strategy()?.kind == "oauth2" => {}
            Loose::Null => return Err(PayloadError::malformed("credentials", "is missing")),
            Loose::Bool(_) | Loose::Number(_) | Loose::Text(_) | Loose::List => {
                return Err(PayloadError::malformed("credentials", "is not an object"));
            }
        }
        read_at(self.payload, &path, FieldsSeed { names })
            .map_err(|_| PayloadError::malformed("credentials", "has a field twice"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_without_a_credential_are_told_from_malformed_ones() {
        for body in [
            "",
            "{}",
            "null",
            "[]",
            "<html>5551212</html>",
            r#"{"token":{}}"#,
            r#"{"token":null}"#,
            r#"{"token":"5551212"}"#,
            r#"{"error":"broker_unavailable","message":"m"}"#,
            r#"{"code":13,"message":"m","details":[]}"#,
            r#"{"ok":false,"error":"x"}"#,
            r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":"5551212"}} x"#,
            r#"{"strategy":{"type":"oauth2"},"strategy":{"type":"oauth2"}}"#,
        ] {
            let error = parse(body.as_bytes(), None, None).map(|_| ()).unwrap_err();
            assert_eq!(error, PayloadError::NotACredential, "{body}");
        }
    }

    #[test]
    fn a_blank_field_is_no_credential() {
        for value in ["", " ", " \\t\\n"] {
            let body = format!(
                r#"{{"strategy":{{"type":"oauth2"}},"credentials":{{"access_token":"{value}"}}}}"#
            );
            let fields = parse(body.as_bytes(), None, None).unwrap().fields;
            assert!(fields.require("access_token").is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_field_called_token_does_not_hide_the_credential() {
        let body = r#"{"strategy":{"type":"oauth2"},"token":{"access_token":"other"},"credentials":{"access_token":"t","token":{}}}"#;
        let parsed = parse(body.as_bytes(), None, None).unwrap();
        assert_eq!(parsed.fields.require("access_token"), Ok("t"));
    }

    #[test]
    fn the_root_is_read_only_when_credentials_are_absent() {
        let body =
            r#"{"strategy":{"type":"oauth2"},"access_token":"root","credentials":{"scope":"x"}}"#;
        assert!(
            parse(body.as_bytes(), None, None)
                .unwrap()
                .fields
                .require("access_token")
                .is_err()
        );
        let body = r#"{"strategy":{"type":"oauth2"},"access_token":"root","expiry":"2026-11-24T09:11:52Z"}"#;
        let parsed = parse(body.as_bytes(), None, None).unwrap();
        assert_eq!(parsed.fields.require("access_token"), Ok("root"));
        assert!(matches!(parsed.lives.0.expiry, Expiry::At(_)));
    }

    #[test]
    fn only_the_fields_the_strategy_names_are_kept() {
        let body = r#"{"strategy":{"type":"header"},"credentials":{"api_key":"k","refresh_token":"r","password":"p"}}"#;
        let parsed = parse(body.as_bytes(), None, None).unwrap();
        let names: Vec<_> = parsed
            .fields
            .values
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["api_key"]);
        assert!(parsed.lives.0.refreshable);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body, None, None);
        }

        #[test]
        fn no_value_of_a_field_panics_or_shows_in_an_error(value in r#"[a-z0-9{}\[\]",:.-]{0,24}"#) {
            let body = format!(r#"{{"strategy":{{"type":"oauth2"}},"credentials":{{"access_token":"canary5551212","expires_at":{value}}}}}"#);
            if let Err(error) = parse(body.as_bytes(), None, None) {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains("5551212"));
            }
        }
    }
}
