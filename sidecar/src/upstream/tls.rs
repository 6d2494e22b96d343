//! rustls for upstreams: which roots are trusted, what ALPN offers, and what a failed handshake means in plain words.
//! Configurations are shared by every pool with the same roots and offer, so sessions resume across routes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// Sessions kept for resumption per configuration. A server costs a few KiB, so the bound is small; a forgotten one
/// only costs a full handshake.
const SESSIONS: usize = 64;

/// Why TLS cannot be set up for an upstream.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA bundle is not PEM.
    #[error("caBundle is not valid PEM: {0}")]
    BundlePem(pem::Error),
    /// The CA bundle holds no certificate.
    #[error("caBundle holds no CERTIFICATE section")]
    BundleEmpty,
    /// A certificate of the CA bundle cannot be a root.
    #[error("caBundle: certificate {number} cannot be used as a root: {reason}")]
    BundleCertificate {
        /// Position in the bundle, from 1.
        number: usize,
        /// What is wrong with it.
        reason: rustls::Error,
    },
    /// The host is neither a DNS name nor an address.
    #[error("the upstream's host is not a valid DNS name or address")]
    ServerName(#[source] InvalidDnsNameError),
    /// The cryptography offers no TLS version we speak.
    #[error("the cryptography provider has no usable TLS version")]
    Versions(#[source] rustls::Error),
    /// The configuration was not built because the process is ending.
    #[error("the sidecar is shutting down")]
    Abandoned,
}

/// What ALPN offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Alpn {
    /// `h2`, then `http/1.1`.
    Either,
    /// `http/1.1` only.
    Http1,
    /// `h2` only.
    Http2,
}

/// Every client configuration of the process.
#[derive(Debug)]
pub(super) struct Configs {
    provider: Arc<CryptoProvider>,
    built: Mutex<Built>,
}

/// By CA bundle and offer. No bundle is the public roots, built when the first connection needs them.
type Built = HashMap<(Option<Arc<str>>, Alpn), Arc<ClientConfig>>;

/// How one upstream is spoken to over TLS.
#[derive(Debug)]
pub(super) struct Tls {
    /// The name its certificate must be valid for.
    pub(super) name: ServerName<'static>,
    alpn: Alpn,
    /// PEM roots that replace the public ones.
    pub(super) ca_bundle: Option<Arc<str>>,
}

impl Tls {
    /// Checks the host name and, by building its configuration, the CA bundle.
    pub(super) fn new(
        configs: &Configs,
        host: &str,
        ca_bundle: Option<Arc<str>>,
        alpn: Alpn,
    ) -> Result<Self, TlsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(TlsError::ServerName)?;
        if ca_bundle.is_some() {
            configs.get(ca_bundle.clone(), alpn)?;
        }
        Ok(Self {
            name,
            alpn,
            ca_bundle,
        })
    }

    /// The configuration to connect with. Loads the public roots where that was not done before.
    pub(super) async fn config(
        &self,
        configs: &Arc<Configs>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let key = (self.ca_bundle.clone(), self.alpn);
        if let Some(config) = configs.lock().get(&key) {
            return Ok(Arc::clone(config));
        }
        let configs = Arc::clone(configs);
        // Reading a few hundred certificate files would hold up everything else on this thread.
        tokio::task::spawn_blocking(move || configs.get(key.0, key.1))
            .await
            .map_err(|_| TlsError::Abandoned)?
    }
}

impl Configs {
    pub(super) fn new() -> Self {
        Self {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            built: Mutex::default(),
        }
    }

    /// Forgets the configurations of CA bundles no pool uses.
    pub(super) fn retain(&self, used: impl Fn(&Arc<str>) -> bool) {
        self.lock()
            .retain(|(bundle, _), _| bundle.as_ref().is_none_or(&used));
    }

    fn get(&self, ca_bundle: Option<Arc<str>>, alpn: Alpn) -> Result<Arc<ClientConfig>, TlsError> {
        let mut built = self.lock();
        if let Some(config) = built.get(&(ca_bundle.clone(), alpn)) {
            return Ok(Arc::clone(config));
        }
        let roots = match &ca_bundle {
            Some(pem) => bundle_roots(pem)?,
            None => public_roots(),
        };
        let config = Arc::new(self.build(roots, alpn)?);
        built.insert((ca_bundle, alpn), Arc::clone(&config));
        Ok(config)
    }

    fn build(&self, roots: RootCertStore, alpn: Alpn) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (h2, http1) = (b"h2".to_vec(), b"http/1.1".to_vec());
        config.alpn_protocols = match alpn {
            Alpn::Either => vec![h2, http1],
            Alpn::Http1 => vec![http1],
            Alpn::Http2 => vec![h2],
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(config)
    }

    fn lock(&self) -> MutexGuard<'_, Built> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bundle_roots(bundle: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(bundle.as_bytes()).enumerate() {
        let certificate = certificate.map_err(TlsError::BundlePem)?;
        roots
            .add(certificate)
            .map_err(|reason| TlsError::BundleCertificate {
                number: index + 1,
                reason,
            })?;
    }
    if roots.is_empty() {
        return Err(TlsError::BundleEmpty);
    }
    Ok(roots)
}

/// The system's roots where it has any, else Mozilla's as built in.
fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a system root certificate cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        tracing::debug!("no system root certificates, using the built-in ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// What a failed handshake means, for the agent.
pub(super) fn explain(error: &io::Error) -> Cow<'static, str> {
    let Some(error) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return "the upstream closed the connection during the TLS handshake".into();
    };
    match error {
        rustls::Error::InvalidCertificate(reason) => format!(
            "the upstream's certificate is not valid: {}",
            explain_certificate(reason)
        )
        .into(),
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | rustls::Error::NoApplicationProtocol => {
            "the upstream does not offer the HTTP version the route demands".into()
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::AccessDenied,
        ) => "the upstream demands a client certificate".into(),
        rustls::Error::AlertReceived(alert) => {
            format!("the upstream refused the TLS handshake: {alert:?}").into()
        }
        rustls::Error::InvalidMessage(_) => "the upstream does not speak TLS on this port".into(),
        rustls::Error::PeerIncompatible(_) => {
            "the upstream speaks neither TLS 1.2 nor 1.3 with a cipher suite that is safe".into()
        }
        _ => "the TLS handshake with the upstream failed".into(),
    }
}

fn explain_certificate(reason: &CertificateError) -> &'static str {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "not valid yet"
        }
        CertificateError::UnknownIssuer => "unknown issuer (for a private CA set caBundle)",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "issued for another name"
        }
        CertificateError::BadSignature => "bad signature",
        CertificateError::Revoked => "revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "not issued for servers"
        }
        CertificateError::BadEncoding => "badly encoded",
        _ => "it cannot be verified",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(host: &str, bundle: Option<&str>) -> Result<Tls, TlsError> {
        Tls::new(&Configs::new(), host, bundle.map(Arc::from), Alpn::Either)
    }

    #[test]
    fn a_bundle_without_certificates_is_refused_with_the_reason() {
        let empty = tls("a.example", Some("# nothing here\n")).unwrap_err();
        assert!(matches!(empty, TlsError::BundleEmpty), "{empty:?}");
        let garbled = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let garbled = tls("a.example", Some(garbled)).unwrap_err();
        assert!(matches!(garbled, TlsError::BundlePem(_)), "{garbled:?}");
        let no_root = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_root = tls("a.example", Some(no_root)).unwrap_err();
        assert!(
            no_root.to_string().starts_with("caBundle: certificate 1 "),
            "{no_root}"
        );
    }

    #[test]
    fn hosts_may_be_names_or_addresses() {
        for host in ["a.example", "192.0.2.1", "2001:db8::1"] {
            assert!(tls(host, None).is_ok(), "{host}");
        }
        assert!(matches!(
            tls("a b", None).unwrap_err(),
            TlsError::ServerName(_)
        ));
    }

    #[tokio::test]
    async fn configurations_are_shared_by_roots_and_offer() {
        let configs = Arc::new(Configs::new());
        let public = |host, alpn| Tls::new(&configs, host, None, alpn).unwrap();
        let (a, b) = (
            public("a.example", Alpn::Http1),
            public("b.example", Alpn::Http1),
        );
        assert!(configs.lock().is_empty(), "public roots load when needed");
        let first = a.config(&configs).await.unwrap();
        assert!(Arc::ptr_eq(&first, &b.config(&configs).await.unwrap()));
        let other = public("a.example", Alpn::Http2);
        assert!(!Arc::ptr_eq(&first, &other.config(&configs).await.unwrap()));
    }
}
