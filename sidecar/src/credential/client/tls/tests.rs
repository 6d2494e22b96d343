use std::net::SocketAddr;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::super::{ControlPlane, Flavour};
use super::*;
use crate::credential::status::FetchError;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key for a name, as PEM.
fn leaf(ca: &Ca, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (
        params.signed_by(&key, ca).unwrap().pem(),
        key.serialize_pem(),
    )
}

fn server_config(ca: &Ca) -> ServerConfig {
    let (cert, key) = leaf(ca, "localhost");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// A gateway that wants a client certificate of `ca` and answers with the HTTP version.
async fn serve(ca: &Ca) -> SocketAddr {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(ca)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let answer = service_fn(|request: Request<Incoming>| async move {
                    let body = format!("{:?}", request.version());
                    Ok::<_, std::convert::Infallible>(Response::new(body))
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    address
}

struct Setup {
    folder: TempDir,
    config: ControlPlaneConfig,
}

impl Setup {
    async fn new(server: &Ca) -> Self {
        let url = format!("https://localhost:{}", serve(server).await.port());
        Self {
            folder: TempDir::new().unwrap(),
            config: ControlPlaneConfig::new(Flavour::Gateway, url.parse().unwrap()),
        }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn identity(&mut self, ca: &Ca) {
        let (cert, key) = leaf(ca, "sidecar");
        self.config.client_cert_file = Some(self.write("cert.pem", &cert));
        self.config.client_key_file = Some(self.write("key.pem", &key));
    }
}

async fn token(control: &ControlPlane) -> Result<String, FetchError> {
    let id = "160c6817-f20c-4a5b-9a6f-443f9b22a14f".parse().unwrap();
    let body = control.token(id).await?;
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_private_root_and_a_client_certificate_are_used_over_h2() {
    let ca = ca();
    let mut setup = Setup::new(&ca).await;
    setup.config.ca_file = Some(setup.write("ca.pem", &ca.pem()));
    setup.identity(&ca);
    let control = ControlPlane::new(setup.config).unwrap();
    assert_eq!(token(&control).await.unwrap(), "HTTP/2.0");
}

#[tokio::test]
async fn a_server_of_an_unknown_root_is_refused() {
    let ca = ca();
    let mut setup = Setup::new(&ca).await;
    setup.identity(&ca);
    let control = ControlPlane::new(setup.config.clone()).unwrap();
    let error = token(&control).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_client_certificate_that_is_replaced_is_used_from_the_next_call_on() {
    let (ca, stranger) = (ca(), ca());
    let mut setup = Setup::new(&ca).await;
    setup.config.ca_file = Some(setup.write("ca.pem", &ca.pem()));
    setup.identity(&stranger);
    let control = ControlPlane::new(setup.config.clone()).unwrap();
    assert!(token(&control).await.is_err());
    setup.identity(&ca);
    assert!(token(&control).await.is_ok());
    setup.write("key.pem", "broken");
    let error = token(&control).await.unwrap_err();
    assert!(error.to_string().contains("key.pem"), "{error}");
}
