//! Before step 1: whom the sidecar does not answer at all. Pure.

use http::HeaderValue;
use http::header::{HOST, ORIGIN};
use http::request::Parts;

use super::resolve::bad_request;
use crate::error::{Code, ProxyError};

/// Refuses requests that a browser sent for some web page: the sidecar answers whoever reaches it, so pages
/// must not (DNS rebinding, cross-site requests).
#[derive(Debug)]
pub struct BrowserGuard {
    allowed: Vec<Box<str>>,
}

impl BrowserGuard {
    /// `allowed` are Host names beside the loopback ones.
    pub fn new(allowed: &[String]) -> Self {
        Self {
            allowed: allowed
                .iter()
                .map(|host| host.to_ascii_lowercase().into())
                .collect(),
        }
    }

    /// Judges `Host`, `Origin` and `Sec-Fetch-Site`. `Sec-Fetch-Mode` says nothing: Node's fetch sends it.
    pub fn check(&self, parts: &Parts) -> Result<(), ProxyError> {
        let mut hosts = 0;
        for (name, value) in &parts.headers {
            if name == HOST {
                hosts += 1;
                if parts.uri.scheme().is_none() {
                    self.check_host(value)?;
                }
            } else if name == ORIGIN {
                if !self.is_own_origin(value) {
                    return Err(forbidden(
                        "a web page of another origin may not call the sidecar",
                    ));
                }
            } else if name.as_str() == "sec-fetch-site"
                && [&b"cross-site"[..], b"same-site"]
                    .iter()
                    .any(|site| value.as_bytes().eq_ignore_ascii_case(site))
            {
                return Err(forbidden(
                    "a web page of another site may not call the sidecar",
                ));
            }
        }
        match hosts {
            0 if parts.uri.scheme().is_none() => Err(bad_request("the request has no Host header")),
            0 | 1 => Ok(()),
            _ => Err(bad_request("Host occurs more than once")),
        }
    }

    fn check_host(&self, host: &HeaderValue) -> Result<(), ProxyError> {
        if host
            .to_str()
            .is_ok_and(|host| self.is_own(without_port(host)))
        {
            return Ok(());
        }
        Err(forbidden(
            "Host is not localhost; address the sidecar as localhost, or start it with --allowed-host",
        ))
    }

    fn is_own_origin(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .is_some_and(|authority| self.is_own(without_port(authority)))
    }

    fn is_own(&self, host: &str) -> bool {
        is_loopback_name(host)
            || self
                .allowed
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// `localhost`, a name under it, or a loopback address as it stands in a URL.
pub(super) fn is_loopback_name(host: &str) -> bool {
    if host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]" {
        return true;
    }
    if host.len() > 10 && host.as_bytes()[host.len() - 10..].eq_ignore_ascii_case(b".localhost") {
        return true;
    }
    host.parse::<std::net::Ipv4Addr>()
        .is_ok_and(|address| address.is_loopback())
}

fn forbidden(detail: &'static str) -> ProxyError {
    ProxyError::new(Code::OriginForbidden, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn guard(request: http::request::Builder) -> Result<(), Code> {
        BrowserGuard::new(&["sidecar.internal".to_owned()])
            .check(&parts(request))
            .map_err(|e| e.code)
    }

    #[test]
    fn origin_form_needs_a_loopback_or_allowed_host() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "api.localhost",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:1",
            "Sidecar.internal:80",
        ] {
            assert_eq!(
                guard(http::Request::get("/").header("host", host)),
                Ok(()),
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "0.0.0.0",
            "[::2]",
        ] {
            assert_eq!(
                guard(http::Request::get("/").header("host", host)),
                Err(Code::OriginForbidden),
                "{host}"
            );
        }
        assert_eq!(guard(http::Request::get("/")), Err(Code::BadRequest));
        assert_eq!(
            guard(
                http::Request::get("/")
                    .header("host", "localhost")
                    .header("host", "localhost")
            ),
            Err(Code::BadRequest)
        );
    }

    #[test]
    fn browsers_are_refused_and_node_fetch_is_not() {
        let local = || http::Request::get("/").header("host", "localhost");
        assert_eq!(guard(local().header("sec-fetch-mode", "cors")), Ok(()));
        assert_eq!(guard(local().header("sec-fetch-site", "none")), Ok(()));
        assert_eq!(
            guard(local().header("sec-fetch-site", "cross-site")),
            Err(Code::OriginForbidden)
        );
        assert_eq!(
            guard(local().header("sec-fetch-site", "same-site")),
            Err(Code::OriginForbidden)
        );
        assert_eq!(
            guard(local().header("origin", "http://localhost:3000")),
            Ok(())
        );
        assert_eq!(
            guard(local().header("origin", "null")),
            Err(Code::OriginForbidden)
        );
        assert_eq!(
            guard(local().header("origin", "https://evil.example")),
            Err(Code::OriginForbidden)
        );
        let absolute =
            http::Request::get("http://api.example.com/").header("origin", "https://evil.example");
        assert_eq!(guard(absolute), Err(Code::OriginForbidden));
    }
}
