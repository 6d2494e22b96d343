//! Identities for clients of a control plane.

use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::crypto::aws_lc_rs;
use serde_json::json;

use super::Cluster;
use super::pki;

impl Cluster {
    /// A client of an administrator, for the runtime of the caller.
    ///
    /// # Panics
    ///
    /// When its kubeconfig cannot be read.
    pub async fn client(&self) -> Client {
        self.client_of(self.kubeconfig()).await
    }

    /// A client with a kubeconfig, for the runtime of the caller.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    pub async fn client_of(&self, kubeconfig: PathBuf) -> Client {
        // Another test of the process may have been first.
        aws_lc_rs::default_provider().install_default().ok();
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        Client::try_from(config).unwrap()
    }

    /// A kubeconfig of a service account.
    ///
    /// # Panics
    ///
    /// When it has no token.
    pub fn service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self
            .kubectl(&[
                "--namespace",
                namespace,
                "create",
                "token",
                name,
                "--duration=1h",
            ])
            .ok();
        let user = json!({"token": token.trim()});
        let path = self.folder.join(format!("{namespace}-{name}.kubeconfig"));
        std::fs::write(&path, pki::kubeconfig(&self.folder, &self.url, &user)).unwrap();
        path
    }
}
