//! `aws_sigv4`: AWS Signature Version 4 in headers, computed by the SDK's own crate.
//!
//! The path is signed exactly as it is sent: S3 escapes keys once and never normalizes them, every other
//! service escapes the escaped path again after normalizing it.

use std::fmt;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SessionTokenMode, SignableBody, SignableRequest,
    SignatureLocation, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::header::{AUTHORIZATION, HOST, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::header::secret;
use super::{SignError, SignInput};
use crate::credential::payload::Fields;
use crate::credential::{Application, BodyMode, PayloadError, Prepared};

mod region;

const X_AMZ_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Services that escape the path once.
const S3_SERVICES: [&str; 4] = ["s3", "s3express", "s3-object-lambda", "s3-outposts"];

/// Headers that something between here and the service may add, alter or drop.
const UNSIGNED_HEADERS: [&str; 25] = [
    "accept-encoding",
    "authorization",
    "baggage",
    "cache-control",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "keep-alive",
    "pragma",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-amzn-trace-id",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];

/// An access key with the scope it signs for.
pub struct Signer {
    credentials: Credentials,
    service: String,
    region: Option<String>,
}

/// Takes `access_key`, `secret_key` and the optional `session_token`.
pub(crate) fn prepare(
    service: &str,
    region: Option<&str>,
    fields: &Fields,
) -> Result<Prepared, PayloadError> {
    let access_key = fields.require("access_key")?;
    let secret_key = fields.require("secret_key")?;
    let session_token = fields.optional("session_token")?;
    for (name, value) in [
        ("access_key", access_key),
        ("session_token", session_token.unwrap_or_default()),
    ] {
        // Both travel in headers, and the signing crate refuses what is not visible ASCII.
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(PayloadError::field(
                name,
                "has characters that AWS never uses",
            ));
        }
    }
    let secrets = std::iter::once(secret_key)
        .chain(session_token)
        .map(secret)
        .collect();
    Ok(Prepared {
        application: Application::Sigv4(Signer {
            credentials: Credentials::new(
                access_key,
                secret_key,
                session_token.map(str::to_owned),
                None,
                "nexus",
            ),
            service: service.to_owned(),
            region: region.map(str::to_owned),
        }),
        secrets,
        sets_headers: vec![AUTHORIZATION, X_AMZ_DATE, X_AMZ_SECURITY_TOKEN],
    })
}

/// What the agent's `X-Amz-Content-Sha256` says about the body.
enum Payload<'a> {
    /// To be hashed here.
    Plain,
    /// Signed as given: a hash, or a word S3 knows for payloads that are not hashed.
    AsGiven(&'a str),
    /// Chunks signed by the agent.
    SignedChunks,
}

impl Signer {
    /// Streams what the agent has hashed itself, and what S3 takes unhashed.
    pub(crate) fn body_mode(&self, headers: &HeaderMap) -> BodyMode {
        match self.payload(headers) {
            Payload::Plain => BodyMode::Buffer,
            Payload::AsGiven(_) | Payload::SignedChunks => BodyMode::Stream,
        }
    }

    fn payload<'h>(&self, headers: &'h HeaderMap) -> Payload<'h> {
        let Some(value) = headers
            .get(X_AMZ_CONTENT_SHA256)
            .and_then(|v| v.to_str().ok())
        else {
            return Payload::Plain;
        };
        let unhashed = ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"];
        if value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit())
            || self.is_s3() && unhashed.contains(&value)
        {
            Payload::AsGiven(value)
        } else if value.starts_with("STREAMING-") {
            Payload::SignedChunks
        } else {
            Payload::Plain
        }
    }

    fn is_s3(&self) -> bool {
        S3_SERVICES.contains(&self.service.as_str())
    }

    pub(super) fn sign(
        &self,
        input: &SignInput<'_>,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, SignError> {
        let body = match self.payload(input.headers) {
            Payload::Plain => SignableBody::Bytes(input.body.ok_or(SignError::BodyNotBuffered)?),
            Payload::AsGiven(value) => SignableBody::Precomputed(value.to_owned()),
            Payload::SignedChunks => return Err(SignError::SignedChunks),
        };
        let scheme = if input.tls { "https" } else { "http" };
        let request = SignableRequest::new(
            input.method.as_str(),
            format!("{scheme}://{}{}", input.host, input.path_and_query),
            signed_headers(input).into_iter(),
            body,
        )
        .map_err(|_| SignError::Unsignable)?;
        let region = self
            .region
            .as_deref()
            .or(input.region_hint)
            .or_else(|| region::of_host(input.host))
            .unwrap_or("us-east-1");
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(&self.service)
            .time(input.now)
            .settings(self.settings())
            .build()
            .map_err(|_| SignError::Unsignable)?
            .into();
        let (instructions, _signature) = sign(request, &params)
            .map_err(|_| SignError::Unsignable)?
            .into_parts();
        instructions
            .headers()
            .map(|(name, value)| {
                let mut value = HeaderValue::from_str(value).map_err(|_| SignError::Unsignable)?;
                value.set_sensitive(true);
                let name =
                    HeaderName::from_bytes(name.as_bytes()).map_err(|_| SignError::Unsignable)?;
                Ok((name, value))
            })
            .collect()
    }

    fn settings(&self) -> SigningSettings {
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.signature_location = SignatureLocation::Headers;
        settings.session_token_mode = SessionTokenMode::Include;
        settings.excluded_headers = None;
        if self.is_s3() {
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        } else {
            settings.percent_encoding_mode = PercentEncodingMode::Double;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Enabled;
        }
        settings
    }
}

/// `Host` and every header that arrives unchanged. Values outside ASCII cannot be signed and are left out.
fn signed_headers<'a>(input: &SignInput<'a>) -> Vec<(&'a str, &'a str)> {
    let host = (!input.headers.contains_key(HOST)).then_some((HOST_NAME, input.host));
    input
        .headers
        .iter()
        .filter(|(name, _)| UNSIGNED_HEADERS.binary_search(&name.as_str()).is_err())
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .chain(host)
        .collect()
}

const HOST_NAME: &str = "host";

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sigv4")
            .field("service", &self.service)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
