//! The certificate that connections are accepted with: whoever keeps certificates publishes one, every handshake from
//! then on shows it, and the server hears that it changed.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

/// What the server accepts connections with. Cheap to clone; all clones show the same certificate.
#[derive(Clone)]
pub struct ServingCertificate {
    config: Arc<ServerConfig>,
    changes: watch::Receiver<u64>,
}

/// The other end: whoever has it decides which certificate is shown.
pub struct Publisher {
    shown: Arc<Shown>,
    changes: watch::Sender<u64>,
}

/// No certificate yet: handshakes fail until one is published.
pub fn pair() -> Result<(Publisher, ServingCertificate), rustls::Error> {
    let shown = Arc::new(Shown(ArcSwapOption::empty()));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session shows no certificate, so a client would go on with one that has ended.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let (sender, changes) = watch::channel(0);
    let publisher = Publisher {
        shown,
        changes: sender,
    };
    let config = Arc::new(config);
    Ok((publisher, ServingCertificate { config, changes }))
}

impl ServingCertificate {
    /// For the TLS acceptor.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Counts the certificates that were published, and tells of those to come. Read before a handshake, the handshake
    /// shows this one or a later.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        changes
    }
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCertificate")
            .field("changes", &*self.changes.borrow())
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// Shows this certificate from now on.
    pub fn publish(&self, certified: Arc<CertifiedKey>) {
        self.shown.0.store(Some(certified));
        self.changes.send_modify(|count| *count += 1);
    }

    /// The certificate that is shown.
    pub fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.shown.0.load_full()
    }
}

struct Shown(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}
