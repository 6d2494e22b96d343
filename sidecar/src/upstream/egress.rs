//! The way out of a network that only lets a proxy out: upstream connections begin with HTTP CONNECT (RFC 9110
//! section 9.3.6). The names are still resolved and judged here, and the proxy is asked for the judged address, so
//! that it cannot be made to connect elsewhere.

pub mod bypass;
pub mod credentials;
mod error;
mod tunnel;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use self::bypass::{Bypass, EntryError};
use self::credentials::{CredentialsError, CredentialsFile};
pub use self::error::EgressError;
use super::tls::{self, BundleError};

/// The proxy that upstream connections go through, as the command line has it.
pub struct EgressProxy {
    /// Lower case; an IPv6 address has no brackets.
    pub(super) host: Box<str>,
    /// Default: the scheme's, 80 or 443.
    pub(super) port: u16,
    /// What reaches its upstream directly.
    pub(super) bypass: Bypass,
    tls: Option<Tls>,
    credentials: Option<CredentialsFile>,
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// Why the egress proxy's options cannot be used. Never shows the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum EgressConfigError {
    /// The URL holds a user name or password.
    #[error(
        "--egress-proxy must not hold a user name or password, which process lists would show; give a file with --egress-proxy-credentials"
    )]
    UserInfo,
    /// The URL is not a proxy's.
    #[error("--egress-proxy must be http://HOST:PORT or https://HOST:PORT")]
    Url,
    /// An entry of the list of exceptions cannot be read.
    #[error("--no-egress-proxy: {0}")]
    Bypass(#[source] EntryError),
    /// The credentials cannot be used.
    #[error("--egress-proxy-credentials")]
    Credentials(#[source] CredentialsError),
    /// The file of CA certificates cannot be read.
    #[error("--egress-proxy-ca: {0} cannot be read")]
    CaFile(PathBuf, #[source] std::io::Error),
    /// The file of CA certificates cannot be used.
    #[error("--egress-proxy-ca: {0} {1}")]
    CaBundle(PathBuf, BundleError),
    /// CA certificates for a proxy without TLS.
    #[error("--egress-proxy-ca is for a proxy that is reached over https://")]
    CaWithoutTls,
    /// The cryptography offers no TLS version we speak.
    #[error("TLS with the egress proxy cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl EgressProxy {
    /// Checks the options and reads every file once, so that mistakes show at the start. `bypass` are the entries of
    /// `--no-egress-proxy`.
    pub fn new(
        url: &str,
        bypass: &[String],
        credentials: Option<&Path>,
        ca: Option<&Path>,
    ) -> Result<Self, EgressConfigError> {
        let url = Url::parse(url).map_err(|_| EgressConfigError::Url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EgressConfigError::UserInfo);
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(EgressConfigError::Url);
        };
        let bare = matches!(url.path(), "" | "/") && url.query().is_none();
        let tls = match (url.scheme(), ca) {
            ("http", None) if bare => None,
            ("http", Some(_)) if bare => return Err(EgressConfigError::CaWithoutTls),
            ("https", ca) if bare => Some(Tls::new(&host, ca)?),
            _ => return Err(EgressConfigError::Url),
        };
        let credentials = credentials.map(CredentialsFile::new);
        if let Some(file) = &credentials {
            file.read().map_err(EgressConfigError::Credentials)?;
        }
        Ok(Self {
            host: match host {
                Host::Domain(name) => name.into(),
                Host::Ipv4(ip) => ip.to_string().into(),
                Host::Ipv6(ip) => ip.to_string().into(),
            },
            port,
            bypass: Bypass::new(bypass).map_err(EgressConfigError::Bypass)?,
            tls,
            credentials,
        })
    }
}

impl Tls {
    fn new(host: &Host<&str>, ca: Option<&Path>) -> Result<Self, EgressConfigError> {
        let roots = match ca {
            None => None,
            Some(file) => {
                let pem = std::fs::read(file)
                    .map_err(|error| EgressConfigError::CaFile(file.to_owned(), error))?;
                let roots = tls::bundle_roots(&pem)
                    .map_err(|error| EgressConfigError::CaBundle(file.to_owned(), error))?;
                Some(roots)
            }
        };
        let config: ClientConfig = tls::egress_config(roots).map_err(EgressConfigError::Tls)?;
        let name = match host {
            Host::Domain(name) => {
                ServerName::try_from((*name).to_owned()).map_err(|_| EgressConfigError::Url)?
            }
            Host::Ipv4(ip) => ServerName::from(*ip),
            Host::Ipv6(ip) => ServerName::from(*ip),
        };
        Ok(Self {
            connector: Arc::new(config).into(),
            name,
        })
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressProxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str, ca: Option<&Path>) -> String {
        EgressProxy::new(url, &[], None, ca)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_port_is_the_schemes_unless_it_is_given() {
        for (url, host, port, tls) in [
            ("http://Proxy.example", "proxy.example", 80, false),
            ("http://proxy.example:3128/", "proxy.example", 3128, false),
            ("https://10.0.0.1", "10.0.0.1", 443, true),
            ("https://[FD00::1]:8443", "fd00::1", 8443, true),
        ] {
            let proxy = EgressProxy::new(url, &[], None, None).unwrap();
            assert_eq!((&*proxy.host, proxy.port), (host, port), "{url}");
            assert_eq!(proxy.tls.is_some(), tls, "{url}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_unseen_with_the_flag_for_it() {
        for url in [
            "http://user:hunter2@proxy.example:3128",
            "http://hunter2@proxy.example",
        ] {
            let told = refused(url, None);
            assert!(told.contains("--egress-proxy-credentials"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
        let told = refused("http://user:hunter2@proxy.example:port", None);
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn a_url_that_is_no_proxys_is_refused() {
        for url in [
            "proxy.example:3128",
            "socks5://proxy.example",
            "http://",
            "http://proxy.example/path",
            "http://proxy.example/?query",
        ] {
            assert!(
                refused(url, None).starts_with("--egress-proxy must be"),
                "{url}"
            );
        }
    }

    #[test]
    fn files_are_read_at_the_start_and_named_when_they_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let told = refused("https://proxy.example", Some(&file));
        assert!(
            told.starts_with("--egress-proxy-ca") && told.contains("ca.pem"),
            "{told}"
        );
        std::fs::write(&file, "nothing").unwrap();
        let told = refused("https://proxy.example", Some(&file));
        assert!(
            told.ends_with("ca.pem holds no CERTIFICATE section"),
            "{told}"
        );
        let told = refused("http://proxy.example", Some(&file));
        assert!(told.contains("https://"), "{told}");
        let missing = EgressProxy::new("http://a", &[], Some(&file.with_extension("no")), None);
        let error = anyhow::Error::from(missing.map(|_| ()).unwrap_err());
        let told = format!("{error:#}");
        assert!(
            told.starts_with("--egress-proxy-credentials: ") && told.contains("ca.no"),
            "{told}"
        );
    }
}
