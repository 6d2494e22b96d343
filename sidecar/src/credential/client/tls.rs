//! TLS towards the control plane, from files that may rotate.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::ControlPlaneConfig;

/// Contents of the files that make up the TLS configuration.
#[derive(PartialEq, Eq)]
pub(super) struct Files {
    ca: Option<File>,
    cert: Option<File>,
    key: Option<File>,
}

#[derive(PartialEq, Eq)]
struct File {
    path: PathBuf,
    content: Zeroizing<Vec<u8>>,
}

impl Files {
    pub(super) fn read(config: &ControlPlaneConfig) -> Result<Self, String> {
        Ok(Self {
            ca: File::read(config.ca_file.as_ref())?,
            cert: File::read(config.client_cert_file.as_ref())?,
            key: File::read(config.client_key_file.as_ref())?,
        })
    }

    /// The CA file, else system roots if there are any, else Mozilla's; a client certificate if there is one.
    pub(super) fn client_config(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            for certificate in ca.certificates()? {
                roots
                    .add(certificate)
                    .map_err(|e| ca.error(&e.to_string()))?;
            }
        } else {
            let system = rustls_native_certs::load_native_certs();
            let (added, _ignored) = roots.add_parsable_certificates(system.certs);
            if added == 0 {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
        }
        let builder = builder()?.with_root_certificates(roots);
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let private_key = PrivateKeyDer::from_pem_slice(&key.content)
                    .map_err(|_| key.error("no PEM private key in it"))?;
                builder
                    .with_client_auth_cert(cert.certificates()?, private_key)
                    .map_err(|e| cert.error(&e.to_string()))?
            }
            (None | Some(_), None) | (None, Some(_)) => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// For clear-text URLs: nothing is trusted, so nothing needs to be loaded.
pub(super) fn no_roots() -> Result<ClientConfig, String> {
    Ok(builder()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
}

impl File {
    fn read(path: Option<&PathBuf>) -> Result<Option<Self>, String> {
        let Some(path) = path else {
            return Ok(None);
        };
        match std::fs::read(path) {
            Ok(content) => Ok(Some(Self {
                path: path.clone(),
                content: Zeroizing::new(content),
            })),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&self.content)
            .collect::<Result<_, _>>()
            .map_err(|_| self.error("not a PEM file of certificates"))?;
        if certificates.is_empty() {
            return Err(self.error("no PEM certificate in it"));
        }
        Ok(certificates)
    }

    fn error(&self, problem: &str) -> String {
        format!("{}: {problem}", self.path.display())
    }
}

#[cfg(test)]
mod tests;
