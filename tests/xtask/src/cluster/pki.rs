//! Certificates, keys and kubeconfigs of the node's components.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use super::components::{API, API_ADDRESS, NODE_ADDRESS, NODE_NAME};

/// Names by which the API server is called.
const API_NAMES: [&str; 7] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    API_ADDRESS,
    NODE_ADDRESS,
];

/// Signs what the node's components know each other by.
struct Authority<'a> {
    folder: &'a Path,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Writes all of it into `folder`, which only its owner may enter.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let authority = Authority::new(folder)?;
    let node = format!("system:node:{NODE_NAME}");
    authority.server("apiserver", "kube-apiserver", &API_NAMES)?;
    authority.server("kubelet-server", &node, &[NODE_NAME, NODE_ADDRESS])?;
    authority.client(
        "apiserver-kubelet",
        "kube-apiserver",
        Some("system:masters"),
    )?;

    // Signs the tokens of service accounts.
    let accounts = KeyPair::generate()?;
    keep(folder, "sa.key", &accounts.serialize_pem())?;
    keep(folder, "sa.pub", &accounts.public_key_pem())?;

    for (name, user, group) in [
        ("admin", "admin", Some("system:masters")),
        (
            "kube-controller-manager",
            "system:kube-controller-manager",
            None,
        ),
        ("kube-scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
        ("kubelet", &node, Some("system:nodes")),
    ] {
        authority.client(name, user, group)?;
        keep(
            folder,
            &format!("{name}.kubeconfig"),
            &kubeconfig(folder, name),
        )?;
    }
    Ok(())
}

impl<'a> Authority<'a> {
    fn new(folder: &'a Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "nexus test cluster");
        let key = KeyPair::generate()?;
        keep(folder, "ca.key", &key.serialize_pem())?;
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        keep(folder, "ca.crt", &issuer.pem())?;
        Ok(Self { folder, issuer })
    }

    fn server(&self, file: &str, user: &str, names: &[&str]) -> anyhow::Result<()> {
        let names = names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>();
        let params = CertificateParams::new(names)?;
        self.issue(
            file,
            params,
            user,
            None,
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    fn client(&self, file: &str, user: &str, group: Option<&str>) -> anyhow::Result<()> {
        let params = CertificateParams::default();
        self.issue(
            file,
            params,
            user,
            group,
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    fn issue(
        &self,
        file: &str,
        mut params: CertificateParams,
        user: &str,
        group: Option<&str>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<()> {
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        keep(self.folder, &format!("{file}.crt"), &certificate.pem())?;
        keep(self.folder, &format!("{file}.key"), &key.serialize_pem())
    }
}

/// JSON is YAML.
fn kubeconfig(folder: &Path, name: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "nexus", "cluster": {
            "server": API,
            "certificate-authority": folder.join("ca.crt"),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate": folder.join(format!("{name}.crt")),
            "client-key": folder.join(format!("{name}.key")),
        }}],
        "contexts": [{"name": "nexus", "context": {"cluster": "nexus", "user": name}}],
        "current-context": "nexus",
    })
    .to_string()
}

fn keep(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(folder.join(name))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {name} into {}", folder.display()))
}
