//! What can go wrong with a request, and what the agent is told: RFC 9457 problem details with a stable code.
//!
//! Every failure has two messages: `detail` is for the agent and never carries a token, a connection id or a
//! control-plane address; `internal` is for the log.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use nexus_crds::names::{ERROR_HEADER, REQUEST_ID_HEADER};

/// `X-Nexus-Error`.
pub const ERROR: HeaderName = HeaderName::from_static(ERROR_HEADER);
/// `X-Nexus-Request-Id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID_HEADER);

/// The stable codes of `X-Nexus-Error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request names no provider.
    ProviderMissing,
    /// The route needs a tenant and the request names none.
    TenantMissing,
    /// The request is malformed.
    BadRequest,
    /// An upgrade that cannot be carried.
    UpgradeRefused,
    /// The tenant is not one this process may act for.
    TenantForbidden,
    /// An access rule refuses the request.
    RequestDenied,
    /// A browser sent the request.
    OriginForbidden,
    /// No route has the provider or host.
    ProviderUnknown,
    /// The connection is pending, revoked, failed or expired.
    ConnectionInactive,
    /// The user has to consent again.
    AttentionRequired,
    /// The control plane does not know the connection, or the tenant has none.
    ConnectionUnknown,
    /// `CONNECT`, `TRACE` or `TRACK`.
    MethodNotAllowed,
    /// The body is larger than can be signed.
    BodyTooLarge,
    /// The rate limit of the route is used up.
    RateLimited,
    /// The credential or its strategy cannot be used.
    CredentialInvalid,
    /// The upstream cannot be connected to, or broke off before it answered.
    UpstreamUnreachable,
    /// The upstream's address is one that must not be connected to.
    UpstreamRefusedAddress,
    /// The control plane does not accept this sidecar.
    BrokerRejected,
    /// The control plane is out of reach or out of order.
    BrokerUnavailable,
    /// The route needs a newer sidecar, or no table is loaded yet.
    NotReady,
    /// A bound of the process is reached.
    Overloaded,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The request came back to the sidecar.
    LoopDetected,
}

/// How a code is presented.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// Value of `X-Nexus-Error` and of the problem's `code`.
    pub code: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// The problem's `title`.
    pub title: &'static str,
    /// Status for gRPC callers (<https://grpc.io/docs/guides/status-codes/>).
    pub grpc_status: u8,
}

impl Code {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 23] = [
        Self::ProviderMissing,
        Self::TenantMissing,
        Self::BadRequest,
        Self::UpgradeRefused,
        Self::TenantForbidden,
        Self::RequestDenied,
        Self::OriginForbidden,
        Self::ProviderUnknown,
        Self::ConnectionInactive,
        Self::AttentionRequired,
        Self::ConnectionUnknown,
        Self::MethodNotAllowed,
        Self::BodyTooLarge,
        Self::RateLimited,
        Self::CredentialInvalid,
        Self::UpstreamUnreachable,
        Self::UpstreamRefusedAddress,
        Self::BrokerRejected,
        Self::BrokerUnavailable,
        Self::NotReady,
        Self::Overloaded,
        Self::UpstreamTimeout,
        Self::LoopDetected,
    ];

    /// The one table of codes, statuses and titles.
    #[expect(clippy::too_many_lines, reason = "one table, one row a code")]
    pub const fn class(self) -> Class {
        let (code, status, grpc_status, title) = match self {
            Self::ProviderMissing => (
                "provider_missing",
                StatusCode::BAD_REQUEST,
                3,
                "The request names no provider",
            ),
            Self::TenantMissing => (
                "tenant_missing",
                StatusCode::BAD_REQUEST,
                3,
                "The request names no tenant",
            ),
            Self::BadRequest => (
                "bad_request",
                StatusCode::BAD_REQUEST,
                3,
                "The request is malformed",
            ),
            Self::UpgradeRefused => (
                "upgrade_refused",
                StatusCode::BAD_REQUEST,
                12,
                "The upgrade cannot be carried",
            ),
            Self::TenantForbidden => (
                "tenant_forbidden",
                StatusCode::FORBIDDEN,
                7,
                "The tenant is not allowed here",
            ),
            Self::RequestDenied => (
                "request_denied",
                StatusCode::FORBIDDEN,
                7,
                "An access rule denies the request",
            ),
            Self::OriginForbidden => (
                "origin_forbidden",
                StatusCode::FORBIDDEN,
                7,
                "Browsers may not call the sidecar",
            ),
            Self::ProviderUnknown => (
                "provider_unknown",
                StatusCode::NOT_FOUND,
                5,
                "No route has this provider",
            ),
            Self::ConnectionInactive => (
                "connection_inactive",
                StatusCode::FORBIDDEN,
                9,
                "The connection is not active",
            ),
            Self::AttentionRequired => (
                "attention_required",
                StatusCode::FORBIDDEN,
                9,
                "The user has to authorize the connection again",
            ),
            Self::ConnectionUnknown => (
                "connection_unknown",
                StatusCode::NOT_FOUND,
                5,
                "There is no such connection",
            ),
            Self::MethodNotAllowed => (
                "method_not_allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                12,
                "The method is never forwarded",
            ),
            Self::BodyTooLarge => (
                "body_too_large",
                StatusCode::PAYLOAD_TOO_LARGE,
                11,
                "The body is too large to be signed",
            ),
            Self::RateLimited => (
                "rate_limited",
                StatusCode::TOO_MANY_REQUESTS,
                8,
                "The route's rate limit is used up",
            ),
            Self::CredentialInvalid => (
                "credential_invalid",
                StatusCode::BAD_GATEWAY,
                9,
                "The credential cannot be used",
            ),
            Self::UpstreamUnreachable => (
                "upstream_unreachable",
                StatusCode::BAD_GATEWAY,
                14,
                "The upstream cannot be reached",
            ),
            Self::UpstreamRefusedAddress => (
                "upstream_refused_address",
                StatusCode::BAD_GATEWAY,
                7,
                "The upstream's address must not be connected to",
            ),
            Self::BrokerRejected => (
                "broker_rejected",
                StatusCode::BAD_GATEWAY,
                14,
                "The control plane does not accept the sidecar",
            ),
            Self::BrokerUnavailable => (
                "broker_unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "The control plane is not available",
            ),
            Self::NotReady => (
                "not_ready",
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "The route cannot be served yet",
            ),
            Self::Overloaded => (
                "overloaded",
                StatusCode::SERVICE_UNAVAILABLE,
                8,
                "The sidecar is at its limits",
            ),
            Self::UpstreamTimeout => (
                "upstream_timeout",
                StatusCode::GATEWAY_TIMEOUT,
                4,
                "The upstream did not answer in time",
            ),
            Self::LoopDetected => (
                "loop_detected",
                StatusCode::LOOP_DETECTED,
                9,
                "The request came back to the sidecar",
            ),
        };
        Class {
            code,
            status,
            title,
            grpc_status,
        }
    }
}

/// A request that failed before an upstream's answer could be passed on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", code.class().code)]
pub struct ProxyError {
    /// What happened.
    pub code: Code,
    /// For the agent: what to do about it.
    pub detail: Cow<'static, str>,
    /// For the log only.
    pub internal: Option<Box<str>>,
    /// When another try makes sense (`Retry-After`, RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
}

impl ProxyError {
    /// A failure with a message for the agent.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            internal: None,
            retry_after: None,
        }
    }

    /// Adds what only the log may say.
    #[must_use]
    pub fn internal(mut self, internal: impl std::fmt::Display) -> Self {
        self.internal = Some(internal.to_string().into());
        self
    }

    /// Adds `Retry-After`, at least one second.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The answer: problem JSON, or trailers-only for gRPC callers.
    pub fn response(&self, request_id: &HeaderValue, grpc: bool) -> Response<Bytes> {
        let class = self.code.class();
        let (mut response, body) = if grpc {
            self.grpc(class)
        } else {
            self.problem(class, request_id)
        };
        let headers = response.headers_mut();
        headers.insert(ERROR, HeaderValue::from_static(class.code));
        headers.insert(REQUEST_ID, request_id.clone());
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.code == Code::MethodNotAllowed {
            headers.insert(
                ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        response.map(|()| body)
    }

    fn problem(&self, class: Class, request_id: &HeaderValue) -> (Response<()>, Bytes) {
        let body = serde_json::json!({
            "type": format!("urn:nexus:error:{}", class.code),
            "title": class.title,
            "status": class.status.as_u16(),
            "detail": self.detail,
            "code": class.code,
            "requestId": request_id.to_str().unwrap_or_default(),
        });
        let mut response = Response::new(());
        *response.status_mut() = class.status;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        (response, Bytes::from(body.to_string()))
    }

    fn grpc(&self, class: Class) -> (Response<()>, Bytes) {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            "grpc-status",
            HeaderValue::from(u16::from(class.grpc_status)),
        );
        let message =
            percent_encoding::utf8_percent_encode(&self.detail, percent_encoding::CONTROLS)
                .to_string();
        if let Ok(value) = HeaderValue::from_str(&format!("{}: {message}", class.code)) {
            headers.insert("grpc-message", value);
        }
        (response, Bytes::new())
    }
}

/// True if the caller speaks gRPC, whose errors travel in `grpc-status`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .to_ascii_lowercase()
            .starts_with(b"application/grpc")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_json_carries_code_status_and_request_id_and_nothing_internal() {
        for code in Code::ALL {
            let error = ProxyError::new(code, "what to do").internal("http://broker/secret");
            let response = error.response(&HeaderValue::from_static("abc"), false);
            let class = code.class();
            assert_eq!(response.status(), class.status);
            assert_eq!(response.headers()[ERROR], class.code);
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["code"], class.code);
            assert_eq!(body["requestId"], "abc");
            assert!(!body.to_string().contains("broker/secret"));
        }
    }

    #[test]
    fn grpc_callers_get_trailers_only_with_the_matching_status() {
        let response = ProxyError::new(Code::RateLimited, "slow down")
            .response(&HeaderValue::from_static("1"), true);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert!(response.body().is_empty());
    }

    #[test]
    fn retry_after_is_never_zero() {
        let error = ProxyError::new(Code::RateLimited, "x").retry_after(Duration::ZERO);
        assert_eq!(
            error
                .response(&HeaderValue::from_static("1"), false)
                .headers()[RETRY_AFTER],
            "1"
        );
    }
}
