//! `hmac_payload`: an HMAC of the body in a header, also of an empty body.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use nexus_crds::strategy::{HmacAlgorithm, HmacEncoding};

use super::header::secret;
use super::{SignError, SignInput};
use crate::credential::payload::Fields;
use crate::credential::{Application, PayloadError, Prepared};

/// A key that is ready to use.
pub struct Signer {
    header_name: HeaderName,
    key: Box<hmac::Key>,
    encoding: HmacEncoding,
}

/// Makes the key from the credential field's UTF-8 bytes.
pub(crate) fn prepare(
    header_name: &HeaderName,
    secret_field: &str,
    algorithm: HmacAlgorithm,
    encoding: HmacEncoding,
    fields: &Fields,
) -> Result<Prepared, PayloadError> {
    let value = fields.require(secret_field)?;
    let algorithm = match algorithm {
        HmacAlgorithm::Sha256 => hmac::HMAC_SHA256,
        HmacAlgorithm::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
    };
    Ok(Prepared {
        application: Application::Hmac(Signer {
            header_name: header_name.clone(),
            key: Box::new(hmac::Key::new(algorithm, value.as_bytes())),
            encoding,
        }),
        secrets: vec![secret(value)],
        sets_headers: vec![header_name.clone()],
    })
}

impl Signer {
    pub(super) fn sign(
        &self,
        input: &SignInput<'_>,
    ) -> Result<(HeaderName, HeaderValue), SignError> {
        let body = input.body.ok_or(SignError::BodyNotBuffered)?;
        let tag = hmac::sign(&self.key, body);
        let text = match self.encoding {
            HmacEncoding::Hex => hex(tag.as_ref()),
            HmacEncoding::Base64 => STANDARD.encode(tag.as_ref()),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| SignError::Unsignable)?;
        value.set_sensitive(true);
        Ok((self.header_name.clone(), value))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hmac")
            .field("header_name", &self.header_name)
            .finish_non_exhaustive()
    }
}
