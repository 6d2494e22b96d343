//! What a pool connects to and speaks there, and the two forms of a request: HTTP/1.1's with `Host` and an origin-form
//! target, and HTTP/2's with an absolute URI.

use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri, header};
use nexus_crds::matcher::{Upstream, UpstreamProtocol};

use super::error::SendError;
use super::tls::{Alpn, Configs, Tls, TlsError};

/// What is dialled, and what is spoken there.
pub(super) struct Target {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    pub(super) allow_private: bool,
    pub(super) tls: Option<Tls>,
    protocol: UpstreamProtocol,
    scheme: Scheme,
    /// Made ready, since nearly every request has this one.
    authority: Option<Authority>,
}

impl Target {
    pub(super) fn new(configs: &Configs, upstream: &Upstream) -> Result<Self, TlsError> {
        let Upstream {
            tls,
            host,
            port,
            authority,
            base_path: _,
            protocol,
            ca_bundle,
            allow_private_addresses,
        } = upstream;
        let alpn = match protocol {
            UpstreamProtocol::Auto => Alpn::Either,
            UpstreamProtocol::Http1 => Alpn::Http1,
            UpstreamProtocol::Http2 | UpstreamProtocol::H2c => Alpn::Http2,
        };
        Ok(Self {
            host: Arc::clone(host),
            port: *port,
            allow_private: *allow_private_addresses,
            tls: tls
                .then(|| Tls::new(configs, host, ca_bundle.clone(), alpn))
                .transpose()?,
            protocol: *protocol,
            scheme: if *tls { Scheme::HTTPS } else { Scheme::HTTP },
            authority: authority.parse().ok(),
        })
    }

    /// True if only HTTP/1.1 can come of it: clear text cannot negotiate.
    pub(super) fn always_http1(&self) -> bool {
        match self.protocol {
            UpstreamProtocol::Auto => self.tls.is_none(),
            UpstreamProtocol::Http1 => true,
            UpstreamProtocol::Http2 | UpstreamProtocol::H2c => false,
        }
    }

    /// True if nothing but HTTP/2 will do.
    pub(super) fn always_http2(&self) -> bool {
        match self.protocol {
            UpstreamProtocol::Auto | UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 | UpstreamProtocol::H2c => true,
        }
    }

    /// Moves `Host` into the URI, as RFC 9113 section 8.3.1 has it. hyper removes the connection-specific fields
    /// (section 8.2.2).
    pub(super) fn make_http2<B>(&self, request: &mut Request<B>) -> Result<(), SendError> {
        let authority = match (request.headers_mut().remove(header::HOST), &self.authority) {
            (Some(host), Some(own)) if host.as_bytes() == own.as_str().as_bytes() => own.clone(),
            (None, Some(own)) => own.clone(),
            (Some(host), _) => Authority::try_from(host.as_bytes())
                .map_err(|error| SendError::Authority(error.into()))?,
            (None, None) => return Err(SendError::NoHost),
        };
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(authority);
        parts
            .path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
        *request.uri_mut() =
            Uri::from_parts(parts).map_err(|error| SendError::Authority(error.into()))?;
        Ok(())
    }
}

/// Undoes [`Target::make_http2`].
pub(super) fn make_http1<B>(request: &mut Request<B>) -> Result<(), SendError> {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(authority) = parts.authority {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|error| SendError::Authority(error.into()))?;
        request.headers_mut().insert(header::HOST, host);
    }
    if let Some(path) = parts.path_and_query {
        *request.uri_mut() = Uri::from(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(tls: bool, protocol: UpstreamProtocol) -> Target {
        let upstream = Upstream {
            tls,
            host: "api.example".into(),
            port: 8443,
            authority: "api.example:8443".into(),
            base_path: "/v1".into(),
            protocol,
            ca_bundle: None,
            allow_private_addresses: false,
        };
        Target::new(&Configs::new(), &upstream).unwrap()
    }

    fn request(host: &str) -> Request<()> {
        Request::get("/v1/a%2Fb//c?q=%20")
            .header(header::HOST, host)
            .body(())
            .unwrap()
    }

    #[test]
    fn http2_requests_carry_host_and_path_in_their_uri_byte_for_byte() {
        let target = target(true, UpstreamProtocol::Http2);
        for host in ["api.example:8443", "other.example"] {
            let mut request = request(host);
            target.make_http2(&mut request).unwrap();
            let sent = format!("https://{host}/v1/a%2Fb//c?q=%20");
            assert_eq!(request.uri().to_string(), sent);
            assert!(!request.headers().contains_key(header::HOST));
            make_http1(&mut request).unwrap();
            assert_eq!(request.uri().to_string(), "/v1/a%2Fb//c?q=%20");
            assert_eq!(request.headers()[header::HOST], host);
        }
    }

    #[test]
    fn a_host_that_is_no_authority_is_refused() {
        let target = target(true, UpstreamProtocol::Http2);
        let refused = target.make_http2(&mut request("a b")).unwrap_err();
        assert!(matches!(refused, SendError::Authority(_)), "{refused:?}");
    }

    #[test]
    fn clear_text_is_http1_unless_prior_knowledge_is_demanded() {
        assert!(target(false, UpstreamProtocol::Auto).always_http1());
        assert!(target(false, UpstreamProtocol::H2c).always_http2());
        let auto = target(true, UpstreamProtocol::Auto);
        assert!(!auto.always_http1() && !auto.always_http2());
    }
}
