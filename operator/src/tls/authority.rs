//! Authorities and serving certificates: issue, read, judge. Pure but for the random numbers of keys; who stores them
//! and when is decided elsewhere.
//!
//! Private keys have neither `Debug` nor `Serialize` and are wiped from memory where the libraries let us.

use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::policy::after;

/// Certificates are valid from this long before their issue, for readers whose clocks are behind.
const BACKDATED: Duration = Duration::from_mins(5);

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not a PEM certificate.
    #[error("no PEM certificate: {0}")]
    Pem(rustls_pki_types::pem::Error),
    /// Not a PEM private key.
    #[error("no PEM private key: {0}")]
    Key(String),
    /// There is PEM, but not of X.509.
    #[error("not an X.509 certificate: {0}")]
    X509(String),
    /// The key is of another certificate.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// A certificate that may not sign others.
    #[error("the certificate is not one of an authority")]
    NotAnAuthority,
    /// It could not be made.
    #[error("cannot issue a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// The TLS library refuses it.
    #[error("cannot serve with it: {0}")]
    Serve(#[from] rustls::Error),
}

/// From when until when a certificate is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it was issued; it is valid from a little earlier.
    pub issued: Timestamp,
    /// When it ends.
    pub ends: Timestamp,
}

impl Life {
    /// Whether it is valid.
    pub fn includes(&self, now: Timestamp) -> bool {
        now < self.ends && after(now, BACKDATED) >= self.issued
    }

    /// From issue to end.
    pub fn length(&self) -> Duration {
        Duration::try_from(self.issued.duration_until(self.ends)).unwrap_or_default()
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        let time = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        Self {
            issued: after(time(validity.not_before.timestamp()), BACKDATED),
            ends: time(validity.not_after.timestamp()),
        }
    }
}

/// An authority with its key.
pub struct Authority {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Its life.
    pub life: Life,
    key: Zeroizing<KeyPair>,
}

impl Authority {
    /// Issues one.
    pub fn issue(now: Timestamp, life: Duration) -> Result<Self, CertificateError> {
        let key = Zeroizing::new(KeyPair::generate()?);
        let mut params = CertificateParams::default();
        set_life(&mut params, now, after(now, life));
        params.distinguished_name = DistinguishedName::new();
        // Each has a name of its own, so that readers find the right one in a bundle.
        let name = format!("nexus-operator {}", now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ"));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&*key)?.der().clone();
        Self::new(certificate, key)
    }

    /// Reads one from PEM.
    pub fn read(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let certificate = authority_certificate(certificate)?;
        let pem =
            std::str::from_utf8(key).map_err(|error| CertificateError::Key(error.to_string()))?;
        let key =
            KeyPair::from_pem(pem).map_err(|error| CertificateError::Key(error.to_string()))?;
        Self::new(certificate, Zeroizing::new(key))
    }

    fn new(
        certificate: CertificateDer<'static>,
        key: Zeroizing<KeyPair>,
    ) -> Result<Self, CertificateError> {
        let life = {
            let parsed = parse(&certificate)?;
            if parsed.public_key().subject_public_key.data != key.public_key_raw() {
                return Err(CertificateError::Mismatch);
            }
            Life::of(&parsed)
        };
        Ok(Self {
            certificate,
            life,
            key,
        })
    }

    /// The key in PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// Issues a serving certificate, which never outlives the authority.
    pub fn sign(
        &self,
        now: Timestamp,
        life: Duration,
        names: &[String],
    ) -> Result<Leaf, CertificateError> {
        let key = Zeroizing::new(KeyPair::generate()?);
        let ends = after(now, life).min(self.life.ends);
        let mut params = CertificateParams::new(names)?;
        set_life(&mut params, now, ends);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "nexus-operator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key)?;
        let certificate = params.signed_by(&*key, &issuer)?;
        let key = Zeroizing::new(key.serialize_pem());
        Leaf::read(certificate.pem().as_bytes(), key.as_bytes())
    }
}

/// A serving certificate with its key.
pub struct Leaf {
    /// It and what leads to its authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its life.
    pub life: Life,
    /// Its DNS names.
    pub names: Vec<String>,
    certified: Arc<CertifiedKey>,
    key: Zeroizing<Vec<u8>>,
}

impl Leaf {
    /// Reads one from PEM; every part is checked, so that what is read can be served.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(CertificateError::Pem)?;
        let first = chain.first().ok_or(CertificateError::Pem(
            rustls_pki_types::pem::Error::NoItemsFound,
        ))?;
        let (life, names) = {
            let parsed = parse(first)?;
            (Life::of(&parsed), names(&parsed))
        };
        let parsed = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        let certified =
            CertifiedKey::from_der(chain.clone(), parsed, &aws_lc_rs::default_provider()).map_err(
                |error| match error {
                    rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch,
                    error => CertificateError::Serve(error),
                },
            )?;
        Ok(Self {
            chain,
            life,
            names,
            certified: Arc::new(certified),
            key: Zeroizing::new(key.to_vec()),
        })
    }

    /// What the TLS library serves.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The key in PEM.
    pub fn key_pem(&self) -> &[u8] {
        &self.key
    }

    /// Whether the authority of this certificate signed it.
    pub fn is_signed_by(&self, authority: &CertificateDer<'_>) -> bool {
        let Some(leaf) = self.chain.first() else {
            return false;
        };
        let (Ok(leaf), Ok(authority)) = (parse(leaf), parse(authority)) else {
            return false;
        };
        leaf.issuer() == authority.subject()
            && leaf.verify_signature(Some(authority.public_key())).is_ok()
    }
}

/// The first certificate of a PEM text, if it may sign others.
pub fn authority_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, CertificateError> {
    let certificate = CertificateDer::from_pem_slice(pem).map_err(CertificateError::Pem)?;
    if !parse(&certificate)?.is_ca() {
        return Err(CertificateError::NotAnAuthority);
    }
    Ok(certificate)
}

/// When a certificate was issued and when it ends.
pub fn life(certificate: &CertificateDer<'_>) -> Result<Life, CertificateError> {
    Ok(Life::of(&parse(certificate)?))
}

/// Certificates in PEM, one after the other.
pub fn pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        // 48 bytes are 64 characters, the length of a line.
        for line in certificate.chunks(48) {
            text.push_str(&BASE64_STANDARD.encode(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

fn set_life(params: &mut CertificateParams, issued: Timestamp, ends: Timestamp) {
    let epoch = date_time_ymd(1970, 1, 1);
    let seconds = |time: Timestamp| Duration::from_secs(time.as_second().unsigned_abs());
    params.not_before = epoch + seconds(issued).saturating_sub(BACKDATED);
    params.not_after = epoch + seconds(ends);
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|error| CertificateError::X509(error.to_string()))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns).collect()
}
