//! The volumes that only the sidecar mounts.
//!
//! A Secret or ConfigMap that is missing keeps the pod waiting with an event that names it, since the sidecar would end at
//! once without the file. Only the table is optional: a namespace has none before its first route.

use nexus_crds::names::{ROUTES_CONFIG_MAP, TOKEN_AUDIENCE};
use serde_json::{Value, json};

use super::config::{Auth, InjectConfig};

/// What the names of our volumes begin with; such names are ours.
pub(super) const PREFIX: &str = "nexus-sidecar-";
/// Where the table is.
pub(super) const ROUTES_PATH: &str = "/etc/nexus/routes";
/// Where the CA of the control plane is.
pub(super) const CA_FILE: &str = "/etc/nexus/ca/ca.crt";
/// Where what the sidecar shows to the control plane is.
pub(super) const AUTH_PATH: &str = "/var/run/secrets/nexus";

const ROUTES: &str = "nexus-sidecar-routes";
const CA: &str = "nexus-sidecar-ca";
const CA_PATH: &str = "/etc/nexus/ca";
const CA_KEY: &str = "ca.crt";
const AUTH: &str = "nexus-sidecar-auth";
const NO_API_TOKEN: &str = "nexus-sidecar-no-api-token";
const API_TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of a token in seconds; kubelet brings a new one after four fifths of it.
const TOKEN_LIFE: u32 = 3600;
/// Readable for the sidecar, whose user the files do not belong to. Kubelet narrows a token to 0600 where it can give it
/// to the one user of all containers, and to 0640 where the pod has an fsGroup, which the sidecar is in as well.
const MODE: u32 = 0o444;

/// The volumes to add, and the mounts of the sidecar.
#[derive(Debug)]
pub(super) struct Volumes {
    pub(super) volumes: Vec<Value>,
    pub(super) mounts: Vec<Value>,
}

impl Volumes {
    /// What the sidecar needs under these settings.
    pub(super) fn new(config: &InjectConfig) -> Self {
        let mut all = Self {
            volumes: Vec::new(),
            mounts: Vec::new(),
        };
        // No subPath: kubelet would never bring changes.
        let routes = json!({"name": ROUTES_CONFIG_MAP, "optional": true, "defaultMode": MODE});
        all.push(ROUTES, ROUTES_PATH, "configMap", &routes);
        if let Some((kind, source)) = auth(&config.auth) {
            all.push(AUTH, AUTH_PATH, kind, &source);
        }
        if let Some(name) = &config.ca_config_map {
            let items = [json!({"key": CA_KEY, "path": CA_KEY})];
            let ca = json!({"name": name, "items": items, "defaultMode": MODE});
            all.push(CA, CA_PATH, "configMap", &ca);
        }
        // The ServiceAccount plugin, which runs again after our patch, gives every container the pod's API token that has
        // no mount at this path.
        all.push(NO_API_TOKEN, API_TOKEN_PATH, "emptyDir", &json!({}));
        all
    }

    fn push(&mut self, name: &str, path: &str, kind: &str, source: &Value) {
        self.volumes.push(json!({"name": name, kind: source}));
        self.mounts
            .push(json!({"name": name, "mountPath": path, "readOnly": true}));
    }
}

/// The kind and the source of the volume with what the sidecar shows to the control plane.
fn auth(auth: &Auth) -> Option<(&'static str, Value)> {
    let secret = |name: &str, keys: &[&str]| {
        let items: Vec<_> = keys
            .iter()
            .map(|key| json!({"key": key, "path": key}))
            .collect();
        json!({"secretName": name, "items": items, "defaultMode": MODE})
    };
    let token = || {
        let token = json!({
            "audience": TOKEN_AUDIENCE,
            "expirationSeconds": TOKEN_LIFE,
            "path": "token",
        });
        json!({"sources": [{"serviceAccountToken": token}], "defaultMode": MODE})
    };
    Some(match auth {
        Auth::None => return None,
        Auth::ApiKey { secret: name } => ("secret", secret(name, &["api-key"])),
        Auth::ClientCertificate { secret: name } => {
            ("secret", secret(name, &["tls.crt", "tls.key"]))
        }
        Auth::Token => ("projected", token()),
    })
}
