//! A private certificate authority and server certificates of every kind a test needs.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A private certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Which server certificate to issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// For `localhost` and the loopback addresses.
    Valid,
    /// For a name nobody asks for.
    WrongName,
    /// Ended in 2001.
    Expired,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    /// The authority's certificate, as `caBundle` takes it.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server configuration that offers the ALPN protocols in order.
    pub fn server(&self, leaf: Leaf, alpn: &[&str]) -> Arc<ServerConfig> {
        let (chain, key) = self.issue(leaf);
        serving_with(chain, key, alpn)
    }

    /// A server configuration that demands a client certificate of `clients`.
    pub fn server_for_clients_of(&self, leaf: Leaf, clients: &Self) -> Arc<ServerConfig> {
        let (chain, key) = self.issue(leaf);
        serving_clients_of(chain, key, clients.roots())
    }

    /// A client certificate and its private key, in PEM.
    pub fn client(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server certificate and its private key, in PEM.
    pub fn serving(&self, leaf: Leaf) -> (String, String) {
        let (params, key) = leaf_params(leaf);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server certificate for these names and its private key, in PEM.
    pub fn serving_as(&self, names: &[&str]) -> (String, String) {
        let (params, key) = named(names);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Sends bytes to a server of this authority over TLS, and returns the answer's bytes up to the first pause.
    ///
    /// # Errors
    ///
    /// When either side refuses the other.
    pub async fn exchange(
        &self,
        addr: SocketAddr,
        identity: Option<(&str, &str)>,
        request: &str,
    ) -> std::io::Result<String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from(der(certificate))];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(addr).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = vec![0; 64 << 10];
        let length = stream.read(&mut answer).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        answer.truncate(length);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    fn issue(&self, leaf: Leaf) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let (params, key) = leaf_params(leaf);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (certificate.der().clone(), PrivateKeyDer::from(key))
    }
}

fn leaf_params(leaf: Leaf) -> (CertificateParams, KeyPair) {
    let names: &[&str] = match leaf {
        Leaf::Valid | Leaf::Expired => &["localhost", "127.0.0.1", "::1"],
        Leaf::WrongName => &["elsewhere.example"],
    };
    let (mut params, key) = named(names);
    if leaf == Leaf::Expired {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    }
    (params, key)
}

fn named(names: &[&str]) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
    let params = CertificateParams::new(names).unwrap();
    (params, KeyPair::generate().unwrap())
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// A server configuration with a certificate and its private key, both in PEM, that offers the ALPN protocols in order.
pub fn server_of(certificate: &str, key: &str, alpn: &[&str]) -> Arc<ServerConfig> {
    let chain = CertificateDer::from(der(certificate));
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    serving_with(chain, key, alpn)
}

/// The same that demands a client certificate of the authority `clients`, in PEM.
pub fn server_for_clients_of(certificate: &str, key: &str, clients: &str) -> Arc<ServerConfig> {
    let chain = CertificateDer::from(der(certificate));
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(der(clients))).unwrap();
    serving_clients_of(chain, key, roots)
}

fn serving_clients_of(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    clients: RootCertStore,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

fn serving_with(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    alpn: &[&str],
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// The bytes of the first certificate in a PEM text.
pub fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .unwrap()
        .to_vec()
}
