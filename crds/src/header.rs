//! Header names that documents may not give to a header of their own.

use http::HeaderName;

/// Fields of one hop or of message framing (RFC 9110 section 7.6.1, RFC 9112 section 6), `Host`, and our own.
///
/// A document that set one of these could change where a request ends or goes.
pub fn is_reserved(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "expect"
            | "host"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    ) || name.as_str().starts_with("x-nexus-")
}

/// Fields, in lower case, in which APIs expect a credential. Their values come from a strategy, never from a document.
pub fn is_credential(name: &str) -> bool {
    matches!(
        name,
        "api-key"
            | "apikey"
            | "authorization"
            | "boxapi"
            | "cookie"
            | "dd-api-key"
            | "dd-application-key"
            | "deploy-token"
            | "dpop"
            | "job-token"
            | "ocp-apim-subscription-key"
            | "paypal-auth-assertion"
            | "private-token"
            | "proxy-authorization"
            | "shopify-storefront-private-token"
            | "x-amz-security-token"
            | "x-api-key"
            | "x-auth-email"
            | "x-auth-key"
            | "x-auth-token"
            | "x-auth-user-service-key"
            | "x-figma-token"
            | "x-goog-api-key"
            | "x-sfdc-session"
            | "x-shopify-access-token"
            | "x-shopify-storefront-access-token"
            | "x-subscription-token"
    )
}

/// True for names that servers behind CGI, WSGI or Rack cannot tell apart, since there both `-` and `_` become `_`.
pub fn alike(one: &HeaderName, other: &HeaderName) -> bool {
    let dashed = |byte| if byte == b'_' { b'-' } else { byte };
    let (one, other) = (one.as_str(), other.as_str());
    one.len() == other.len() && one.bytes().map(dashed).eq(other.bytes().map(dashed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_dashes_and_underscores_only_are_alike() {
        let alike_to_key = |name| {
            alike(
                &HeaderName::from_static("x-api-key"),
                &HeaderName::from_static(name),
            )
        };
        assert!(
            alike_to_key("x-api-key") && alike_to_key("x_api-key") && alike_to_key("x_api_key")
        );
        assert!(
            !alike_to_key("x-api-kez") && !alike_to_key("xapikey") && !alike_to_key("x.api.key")
        );
    }

    #[test]
    fn framing_host_and_own_fields_are_reserved() {
        for name in ["host", "content-length", "te", "upgrade", "x-nexus-tenant"] {
            assert!(is_reserved(&HeaderName::from_static(name)), "{name}");
        }
        assert!(!is_reserved(&HeaderName::from_static("authorization")));
    }

    #[test]
    fn credential_fields_are_known_and_ordinary_ones_are_not() {
        for name in ["authorization", "cookie", "private-token", "x-figma-token"] {
            assert!(is_credential(name), "{name}");
        }
        assert!(!is_credential("accept"));
    }
}
