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
    /// The CA bundle cannot be used.
    #[error("caBundle {0}")]
    Bundle(BundleError),
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

/// Why a bundle of CA certificates cannot be used. Reads on from the name of what holds it.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is not PEM.
    #[error("is not valid PEM: {0}")]
    Pem(pem::Error),
    /// It holds no certificate.
    #[error("holds no CERTIFICATE section")]
    Empty,
    /// One of its certificates cannot be a root.
    #[error("has a certificate, number {number}, that cannot be used as a root: {reason}")]
    Certificate {
        /// Position in the bundle, from 1.
        number: usize,
        /// What is wrong with it.
        reason: rustls::Error,
    },
}

/// Who a TLS handshake is with, for the words about its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// An upstream.
    Upstream,
    /// The proxy of `--egress-proxy`.
    EgressProxy,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Upstream => "the upstream",
            Self::EgressProxy => "the egress proxy",
        }
    }

    fn private_ca(self) -> &'static str {
        match self {
            Self::Upstream => "caBundle",
            Self::EgressProxy => "--egress-proxy-ca",
        }
    }
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
            Some(pem) => bundle_roots(pem.as_bytes()).map_err(TlsError::Bundle)?,
            None => public_roots(),
        };
        let config = build(&self.provider, roots, alpn).map_err(TlsError::Versions)?;
        let config = Arc::new(config);
        built.insert((ca_bundle, alpn), Arc::clone(&config));
        Ok(config)
    }

    fn lock(&self) -> MutexGuard<'_, Built> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The configuration of an egress proxy's connections, which speak HTTP/1.1. Without `roots` the public ones are
/// trusted, which are read here and now.
pub(super) fn egress_config(roots: Option<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    build(&provider, roots.unwrap_or_else(public_roots), Alpn::Http1)
}

fn build(
    provider: &Arc<CryptoProvider>,
    roots: RootCertStore,
    alpn: Alpn,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
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

/// The certificates of a PEM bundle, all of which must be usable.
pub(super) fn bundle_roots(bundle: &[u8]) -> Result<RootCertStore, BundleError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(bundle).enumerate() {
        let certificate = certificate.map_err(BundleError::Pem)?;
        roots
            .add(certificate)
            .map_err(|reason| BundleError::Certificate {
                number: index + 1,
                reason,
            })?;
    }
    if roots.is_empty() {
        return Err(BundleError::Empty);
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
pub(super) fn explain(error: &io::Error, peer: Peer) -> Cow<'static, str> {
    let who = peer.name();
    let Some(error) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return format!("{who} closed the connection during the TLS handshake").into();
    };
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            let reason = explain_certificate(reason, peer);
            format!("{who}'s certificate is not valid: {reason}")
        }
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | rustls::Error::NoApplicationProtocol => match peer {
            Peer::Upstream => {
                "the upstream does not offer the HTTP version the route demands".into()
            }
            Peer::EgressProxy => "the egress proxy does not offer HTTP/1.1".into(),
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::AccessDenied,
        ) => format!("{who} demands a client certificate"),
        rustls::Error::AlertReceived(alert) => {
            format!("{who} refused the TLS handshake: {alert:?}")
        }
        rustls::Error::InvalidMessage(_) => format!("{who} does not speak TLS on this port"),
        rustls::Error::PeerIncompatible(_) => {
            format!("{who} speaks neither TLS 1.2 nor 1.3 with a cipher suite that is safe")
        }
        _ => format!("the TLS handshake with {who} failed"),
    }
    .into()
}

fn explain_certificate(reason: &CertificateError, peer: Peer) -> Cow<'static, str> {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "not valid yet"
        }
        CertificateError::UnknownIssuer => {
            let option = peer.private_ca();
            return format!("unknown issuer (for a private CA set {option})").into();
        }
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
    .into()
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
        assert!(
            matches!(empty, TlsError::Bundle(BundleError::Empty)),
            "{empty:?}"
        );
        let garbled = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let garbled = tls("a.example", Some(garbled)).unwrap_err();
        assert!(
            matches!(garbled, TlsError::Bundle(BundleError::Pem(_))),
            "{garbled:?}"
        );
        let no_root = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_root = tls("a.example", Some(no_root)).unwrap_err();
        assert!(
            no_root
                .to_string()
                .starts_with("caBundle has a certificate, number 1, "),
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
