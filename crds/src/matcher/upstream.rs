//! An upstream's URL and certificates, from text to parts.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::{Host, Url};

use crate::matcher::intern::Interner;
use crate::matcher::{Upstream, UpstreamProtocol};
use crate::path;
use crate::spec::UpstreamSpec;
use crate::status::{Problem, Reason};

/// Parses the upstream of a route.
pub(super) fn parse(spec: &UpstreamSpec, interner: &mut Interner<'_>) -> Result<Upstream, Problem> {
    let UpstreamSpec {
        url: text,
        protocol,
        allow_insecure,
        ca_bundle,
        allow_private_addresses,
    } = spec;
    let text = text
        .as_deref()
        .ok_or_else(|| bad_url("is missing; set it here or in a NexusProvider of this name"))?;
    let UpstreamUrl {
        tls,
        host,
        port,
        base_path,
    } = UpstreamUrl::parse(text)?;
    let protocol = protocol.unwrap_or_default();
    if !tls && !allow_insecure.unwrap_or(false) {
        return Err(bad_url(
            "is http://, over which the credential travels unencrypted; use https:// or set allowInsecure: true",
        ));
    }
    let wrong_protocol = match protocol {
        UpstreamProtocol::H2c if tls => Some("H2C is for http:// upstreams; use HTTP2"),
        UpstreamProtocol::Http2 if !tls => Some("HTTP2 is for https:// upstreams; use H2C"),
        UpstreamProtocol::Auto
        | UpstreamProtocol::Http1
        | UpstreamProtocol::Http2
        | UpstreamProtocol::H2c => None,
    };
    if let Some(message) = wrong_protocol {
        return Err(Problem::new(
            Reason::InvalidUpstream,
            "spec.upstream.protocol",
            message,
        ));
    }
    if let Some(pem) = ca_bundle {
        check_ca_bundle(pem)?;
    }
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let authority = if port == default_port(tls) {
        bracketed
    } else {
        format!("{bracketed}:{port}")
    };
    Ok(Upstream {
        tls,
        host: interner.text(&host),
        port,
        authority: interner.text(&authority),
        base_path: interner.text(base_path),
        protocol,
        ca_bundle: ca_bundle.as_deref().map(|pem| interner.text(pem)),
        allow_private_addresses: allow_private_addresses.unwrap_or(false),
    })
}

/// The port that a URL without one means.
pub(crate) fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// The parts of an upstream URL.
pub(crate) struct UpstreamUrl<'a> {
    pub(crate) tls: bool,
    /// Lower case, IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As written, without a trailing slash.
    pub(crate) base_path: &'a str,
}

impl<'a> UpstreamUrl<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, Problem> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| bad_url("is not a URL such as https://api.example.com"))?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(bad_url("must begin with https:// or http://")),
        };
        // A URL parser repairs what it meets; what it would repair is refused.
        if text.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
            return Err(bad_url("has a backslash, white space or control character"));
        }
        if rest.contains(['?', '#']) {
            return Err(bad_url("must not have a query or fragment"));
        }
        if rest.contains(['{', '}']) {
            return Err(bad_url("is templated, which this version does not support"));
        }
        let (authority, base_path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(bad_url("has no host"));
        }
        if authority.contains('@') {
            return Err(bad_url("must not have a user name or password"));
        }
        let url = Url::parse(text).map_err(|error| bad_url(&format!("is not a URL: {error}")))?;
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(bad_url("has no host")),
        };
        if host.ends_with('.') {
            return Err(bad_url("must not have a host that ends in a dot"));
        }
        let port = url.port().unwrap_or(default_port(tls));
        if port == 0 {
            return Err(bad_url("must not have port 0"));
        }
        Ok(Self {
            tls,
            host,
            port,
            base_path: parse_base_path(base_path)?,
        })
    }
}

fn parse_base_path(path: &str) -> Result<&str, Problem> {
    if path.is_empty() {
        return Ok(path);
    }
    path::check(path).map_err(|error| bad_url(&format!("has a bad base path: {error}")))?;
    if path.contains("//") {
        return Err(bad_url("has an empty segment in its base path"));
    }
    Ok(path.strip_suffix('/').unwrap_or(path))
}

fn check_ca_bundle(pem: &str) -> Result<(), Problem> {
    let problem =
        |message: &str| Problem::new(Reason::InvalidCaBundle, "spec.upstream.caBundle", message);
    let mut certificates = 0_usize;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| {
            problem(&format!("certificate {certificates} is malformed: {error}"))
        })?;
        // The very reading that the sidecar's TLS makes of a root, so that what is accepted loads.
        webpki::anchor_from_trusted_cert(&certificate).map_err(|error| {
            problem(&format!(
                "certificate {certificates} cannot be a root: {error}"
            ))
        })?;
        certificates += 1;
    }
    if certificates == 0 {
        return Err(problem("has no PEM certificate"));
    }
    if pem.contains("PRIVATE KEY") {
        return Err(problem(
            "has a private key; remove it and replace the key, it can be read by many",
        ));
    }
    Ok(())
}

fn bad_url(message: &str) -> Problem {
    Problem::new(Reason::InvalidUpstream, "spec.upstream.url", message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upstream(url: &str) -> Result<Upstream, Problem> {
        let spec = UpstreamSpec {
            url: Some(url.to_owned()),
            allow_insecure: Some(true),
            ..UpstreamSpec::default()
        };
        parse(&spec, &mut Interner::default())
    }

    #[test]
    fn a_url_becomes_its_parts() {
        for (url, tls, host, port, authority, base_path) in [
            (
                "https://api.example.com",
                true,
                "api.example.com",
                443,
                "api.example.com",
                "",
            ),
            (
                "https://API.Example.com/",
                true,
                "api.example.com",
                443,
                "api.example.com",
                "",
            ),
            ("https://h:443/api/v4/", true, "h", 443, "h", "/api/v4"),
            ("https://h:8443/a%20b", true, "h", 8443, "h:8443", "/a%20b"),
            ("http://h:443", false, "h", 443, "h:443", ""),
            (
                "http://127.0.0.1:9000/x",
                false,
                "127.0.0.1",
                9000,
                "127.0.0.1:9000",
                "/x",
            ),
            ("http://[::1]:9000", false, "::1", 9000, "[::1]:9000", ""),
            (
                "https://[2001:DB8::1]",
                true,
                "2001:db8::1",
                443,
                "[2001:db8::1]",
                "",
            ),
            (
                "https://b\u{fc}cher.example",
                true,
                "xn--bcher-kva.example",
                443,
                "xn--bcher-kva.example",
                "",
            ),
        ] {
            let found = upstream(url).unwrap();
            assert_eq!(
                (
                    found.tls,
                    &*found.host,
                    found.port,
                    &*found.authority,
                    &*found.base_path
                ),
                (tls, host, port, authority, base_path),
                "{url}"
            );
        }
    }

    #[test]
    fn anything_but_origin_and_base_path_is_refused() {
        for url in [
            "",
            "api.example.com",
            "ftp://h",
            "HTTPS://h",
            "https://",
            "https:///a",
            "https://u@h",
            "https://u:p@h",
            "https://@h",
            "https://h?x",
            "https://h/#x",
            "https://h/?",
            "https://h/a/../b",
            "https://h/%2e%2e/b",
            "https://h\\a",
            "https://h/a\\b",
            "https://h /a",
            "https://h/a//b",
            "https://h:0",
            "https://h:99999",
            "https://h/%zz",
            "https://h/\u{e9}",
            "https://{sub}.example.com",
            "https://h./a",
            "https://h/a\tb",
        ] {
            let problem = upstream(url).unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidUpstream, "{url}");
            assert_eq!(problem.field, "spec.upstream.url", "{url}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_has_a_host_that_reads_the_same_again(
            rest in "[a-z0-9@:/?#\\\\%.;{}\\[\\] \u{e9}\\t-]{0,24}",
        ) {
            if let Ok(found) = upstream(&format!("https://{rest}")) {
                let again = upstream(&format!("https://{}{}", found.authority, found.base_path));
                prop_assert!(!found.host.is_empty());
                prop_assert_eq!(again, Ok(found));
            }
        }
    }

    #[test]
    fn clear_text_needs_consent_and_a_fitting_protocol() {
        let with = |url: &str, insecure, protocol| {
            let spec = UpstreamSpec {
                url: Some(url.to_owned()),
                allow_insecure: insecure,
                protocol: Some(protocol),
                ..UpstreamSpec::default()
            };
            parse(&spec, &mut Interner::default()).map_err(|problem| problem.field)
        };
        let url = || Some("spec.upstream.url".to_owned());
        let protocol = || Some("spec.upstream.protocol".to_owned());
        for (at, insecure, version, expected) in [
            ("http://h", None, UpstreamProtocol::Auto, url()),
            ("http://h", Some(false), UpstreamProtocol::Auto, url()),
            ("http://h", Some(true), UpstreamProtocol::H2c, None),
            ("http://h", Some(true), UpstreamProtocol::Http2, protocol()),
            ("https://h", None, UpstreamProtocol::Http2, None),
            ("https://h", None, UpstreamProtocol::H2c, protocol()),
        ] {
            assert_eq!(
                with(at, insecure, version).err(),
                expected,
                "{at} {version:?}"
            );
        }
    }

    fn root() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .pem()
    }

    #[test]
    fn a_ca_bundle_holds_certificates_and_nothing_else() {
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let certificate = root();
        assert!(check_ca_bundle(&certificate).is_ok());
        for bundle in [
            String::new(),
            "nonsense".to_owned(),
            pem("CERTIFICATE", "AAAA"),
            pem("CERTIFICATE", "MAMCAQE="),
            pem("CERTIFICATE", "%%%%"),
            pem("PRIVATE KEY", "MAA="),
            certificate + &pem("PRIVATE KEY", "MAA="),
        ] {
            let problem = check_ca_bundle(&bundle).unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidCaBundle, "{bundle}");
        }
    }
}
