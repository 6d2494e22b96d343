//! `basic_auth`: a ready-made `Authorization: Basic` (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nexus_crds::strategy::Username;
use zeroize::Zeroizing;

use super::header::{secret, value};
use crate::credential::payload::Fields;
use crate::credential::{PayloadError, Prepared};

/// Base64 of the UTF-8 bytes of `user:password`. An empty part, a colon in the user name and control
/// characters are refused (RFC 7617 section 2).
pub(crate) fn prepare(
    username: &Username,
    password_field: &str,
    fields: &Fields,
) -> Result<Prepared, PayloadError> {
    let (name, user) = match username {
        Username::Field(field) => (field.as_str(), fields.require(field)?),
        Username::Literal(literal) => ("username", literal.as_str()),
    };
    if user.is_empty() || user.contains(|c: char| c == ':' || c.is_control()) {
        return Err(PayloadError::field(
            name,
            "cannot be a user name: it is empty or has a colon or a control character",
        ));
    }
    let password = fields.require(password_field)?;
    if password.contains(char::is_control) {
        return Err(PayloadError::field(
            password_field,
            "cannot be a password: it has a control character",
        ));
    }
    let pair = Zeroizing::new([user, ":", password].concat());
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    Ok(Prepared::authorization(
        value(password_field, "Basic ", &encoded)?,
        vec![secret(password), secret(&pair)],
    ))
}
