//! `oauth2`, `header` and `api_key`: ready-made headers.

use bytes::Bytes;
use http::HeaderValue;
use nexus_crds::strategy::HeaderPart;
use zeroize::Zeroizing;

use crate::credential::payload::Fields;
use crate::credential::{PayloadError, Prepared, Secret};

/// `Authorization: Bearer <access_token>` (RFC 6750 section 2.1), whatever `token_type` says.
pub(crate) fn prepare_bearer(fields: &Fields) -> Result<Prepared, PayloadError> {
    let token = fields.require("access_token")?;
    let value = value("access_token", "Bearer ", token)?;
    Ok(Prepared::authorization(value, vec![secret(token)]))
}

/// Each header set from its credential field, with its prefix taken literally.
pub(crate) fn prepare(parts: &[HeaderPart], fields: &Fields) -> Result<Prepared, PayloadError> {
    let mut headers = Vec::with_capacity(parts.len());
    let mut secrets = Vec::with_capacity(parts.len());
    for part in parts {
        let HeaderPart {
            name,
            credential_field,
            value_prefix,
        } = part;
        let field = fields.require(credential_field)?;
        headers.push((name.clone(), value(credential_field, value_prefix, field)?));
        secrets.push(secret(field));
    }
    Ok(Prepared::headers(headers, secrets))
}

/// A sensitive header value made of a prefix and a credential field. Its bytes are overwritten when the last copy of it
/// is gone.
pub(super) fn value(field: &str, prefix: &str, value: &str) -> Result<HeaderValue, PayloadError> {
    let bytes = Zeroizing::new([prefix.as_bytes(), value.as_bytes()].concat());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(bytes))
        .map_err(|_| PayloadError::field(field, "has characters that no header can carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A copy for the redactor.
pub(super) fn secret(value: &str) -> Secret {
    Zeroizing::new(value.as_bytes().to_vec())
}
