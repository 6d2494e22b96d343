//! Certificates and kubeconfigs of a control plane.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

/// What clients have to know.
pub(super) struct Pki {
    /// The certificate authority, in PEM.
    pub(super) ca: String,
}

impl Pki {
    /// Writes everything that the components read into `folder`. `url` is where the API server will listen.
    pub(super) fn write(folder: &Path, url: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "test cluster");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("ca.crt", &ca.pem());

        let names = ["localhost", "127.0.0.1", "kubernetes.default.svc"].map(str::to_owned);
        let (certificate, key) = leaf(&ca, "kube-apiserver", None, names.to_vec());
        write("apiserver.crt", &certificate);
        write("apiserver.key", &key);

        // Signs the tokens of service accounts.
        let accounts = KeyPair::generate().unwrap();
        write("sa.key", &accounts.serialize_pem());
        write("sa.pub", &accounts.public_key_pem());

        for (name, group) in [
            ("admin", Some("system:masters")),
            ("kube-controller-manager", None),
        ] {
            let user = match group {
                Some(_) => name.to_owned(),
                None => format!("system:{name}"),
            };
            let (certificate, key) = leaf(&ca, &user, group, Vec::new());
            write(&format!("{name}.crt"), &certificate);
            write(&format!("{name}.key"), &key);
            let user = json!({
                "client-certificate": folder.join(format!("{name}.crt")),
                "client-key": folder.join(format!("{name}.key")),
            });
            let config = kubeconfig(folder, url, &user);
            write(&format!("{name}.kubeconfig"), &config);
        }
        Self { ca: ca.pem() }
    }
}

/// A kubeconfig for the API server at `url`, whose authority is in `folder`. JSON is YAML.
pub(super) fn kubeconfig(folder: &Path, url: &str, user: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": url,
            "certificate-authority": folder.join("ca.crt"),
        }}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    })
    .to_string()
}

/// A certificate and its key in PEM: of a server with these names, or of a client that has none.
fn leaf(
    ca: &CertifiedIssuer<'_, KeyPair>,
    user: &str,
    group: Option<&str>,
    names: Vec<String>,
) -> (String, String) {
    let purpose = if names.is_empty() {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    };
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}
