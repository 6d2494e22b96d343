//! The last step before a request is sent: a credential and the finished request come in, headers and query
//! parameters to set go out. One caller applies them. One file per scheme.

pub mod basic;
pub mod header;
pub mod hmac;
pub mod query;
pub mod sigv4;

use std::borrow::Cow;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use nexus_crds::strategy::Strategy;

use crate::credential::payload::Fields;
use crate::credential::{Application, Credential, PayloadError, Prepared, QueryPair};
use crate::error::{Code, ProxyError};

/// A request as it will be sent.
#[derive(Clone, Copy)]
pub struct SignInput<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query, byte for byte as sent.
    pub path_and_query: &'a str,
    /// Headers as sent, `Host` included where the HTTP version has it.
    pub headers: &'a HeaderMap,
    /// `Host` or `:authority`, with the port where it is sent.
    pub host: &'a str,
    /// The upstream is reached over TLS.
    pub tls: bool,
    /// The whole body, empty where there is none; `None` while it streams.
    pub body: Option<&'a [u8]>,
    /// Time of the signature.
    pub now: SystemTime,
    /// Region the route names, for `aws_sigv4`.
    pub region_hint: Option<&'a str>,
}

/// What to put on the request.
pub struct Instructions<'a> {
    /// Headers to set, each replacing all of its name.
    pub headers: Cow<'a, [(HeaderName, HeaderValue)]>,
    /// Query parameters to append.
    pub query: Cow<'a, [QueryPair]>,
}

/// Why a request cannot be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The scheme hashes the body and the body was not read.
    #[error("the body has to be read before the request is signed")]
    BodyNotBuffered,
    /// The body carries signatures of its own, which the agent cannot make.
    #[error(
        "the body is signed chunk by chunk with the caller's own key; send it with an unsigned or plain payload"
    )]
    SignedChunks,
    /// The target or a header is not one the scheme can sign.
    #[error("the request target or a header cannot be signed")]
    Unsignable,
}

/// Computes what puts `credential` on a request.
///
/// Allocates nothing where the headers or parameters are ready-made.
pub fn sign<'a>(
    credential: &'a Credential,
    input: &SignInput<'_>,
) -> Result<Instructions<'a>, SignError> {
    let headers = match credential.application() {
        Application::Headers(headers) => Cow::Borrowed(headers.as_slice()),
        Application::Query(pairs) => {
            return Ok(Instructions {
                headers: Cow::Borrowed(&[]),
                query: Cow::Borrowed(pairs),
            });
        }
        Application::Hmac(signer) => Cow::Owned(vec![signer.sign(input)?]),
        Application::Sigv4(signer) => Cow::Owned(signer.sign(input)?),
    };
    Ok(Instructions {
        headers,
        query: Cow::Borrowed(&[]),
    })
}

/// Prepares what a strategy makes of a credential's fields.
pub(crate) fn prepare(strategy: &Strategy, fields: &Fields) -> Result<Prepared, PayloadError> {
    match strategy {
        Strategy::Oauth2 => header::prepare_bearer(fields),
        Strategy::Header(parts) => header::prepare(parts, fields),
        Strategy::QueryParam(parts) => query::prepare(parts, fields),
        Strategy::BasicAuth {
            username,
            password_field,
        } => basic::prepare(username, password_field, fields),
        Strategy::HmacPayload {
            header_name,
            secret_field,
            algorithm,
            encoding,
        } => hmac::prepare(header_name, secret_field, *algorithm, *encoding, fields),
        Strategy::AwsSigv4 { service, region } => {
            sigv4::prepare(service, region.as_deref(), fields)
        }
    }
}

impl From<SignError> for ProxyError {
    fn from(error: SignError) -> Self {
        let code = match error {
            SignError::BodyNotBuffered => Code::CredentialInvalid,
            SignError::SignedChunks | SignError::Unsignable => Code::BadRequest,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests;
