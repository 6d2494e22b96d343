//! The container that is injected.

use nexus_crds::names::{ADMITTED_ANNOTATION, SIDECAR_CONTAINER};
use serde_json::{Value, json};

use super::annotations::Wishes;
use super::config::{Auth, InjectConfig};
use super::volumes::{AUTH_PATH, CA_FILE, ROUTES_PATH};

/// Where the image has the program.
const PROGRAM: &str = "/nexus-sidecar";
/// What the sidecar listens on unless told otherwise.
const USUAL_PORT: u16 = 8080;
const USUAL_ADMIN_PORT: u16 = 9901;
/// Seconds until a sidecar that does not become ready is started again. It needs well under one; the rest is for nodes
/// that are busy with more important things.
const PATIENCE: u32 = 300;

/// What the sidecar is made of beside the operator's settings.
pub(super) struct Parts {
    pub(super) mounts: Vec<Value>,
    pub(super) resources: Value,
    /// The pull policy that a plugin has forced meanwhile.
    pub(super) forced_pull_policy: Option<String>,
}

/// The sidecar of a pod.
pub(super) fn container(config: &InjectConfig, wishes: &Wishes, parts: Parts) -> Value {
    let Parts {
        mounts,
        resources,
        forced_pull_policy,
    } = parts;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut container = json!({
        "name": SIDECAR_CONTAINER,
        "image": config.image,
        "args": arguments(config, wishes),
        // Outlives the containers of the pod, and ends after them.
        "restartPolicy": "Always",
        "env": [
            field("NEXUS_ADMITTED", &format!("metadata.annotations['{ADMITTED_ANNOTATION}']")),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_UID", "metadata.uid"),
        ],
        "ports": [{"name": "nexus-admin", "containerPort": config.admin_port, "protocol": "TCP"}],
        // Not httpGet: a mesh that demands mutual TLS would refuse kubelet.
        "startupProbe": {
            "exec": {"command": [PROGRAM, "probe", "--admin", format!("127.0.0.1:{}", config.admin_port)]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": PATIENCE,
        },
        "resources": resources,
        "securityContext": security_context(config),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    });
    if wishes.readiness {
        container["readinessProbe"] = json!({
            "httpGet": {"path": "/readyz", "port": config.admin_port},
            "periodSeconds": 5,
            "timeoutSeconds": 2,
        });
    }
    if let Some(policy) = forced_pull_policy.or_else(|| config.pull_policy.clone()) {
        container["imagePullPolicy"] = policy.into();
    }
    container
}

fn arguments(config: &InjectConfig, wishes: &Wishes) -> Vec<String> {
    let mut arguments = vec!["run".to_owned()];
    let mut flag = |name: &str, value: String| arguments.push(format!("{name}={value}"));
    flag("--routes", ROUTES_PATH.to_owned());
    flag(config.control.flag, config.control.url.to_string());
    match &config.auth {
        Auth::None => {}
        Auth::ApiKey { .. } => flag("--api-key-file", format!("{AUTH_PATH}/api-key")),
        Auth::ClientCertificate { .. } => {
            flag("--client-cert", format!("{AUTH_PATH}/tls.crt"));
            flag("--client-key", format!("{AUTH_PATH}/tls.key"));
        }
        Auth::Token => flag("--token-file", format!("{AUTH_PATH}/token")),
    }
    if config.ca_config_map.is_some() {
        flag("--gateway-ca", CA_FILE.to_owned());
    }
    // Unasked the sidecar takes what the node has of IPv4 and IPv6, which no address can say.
    if wishes.port != USUAL_PORT {
        flag("--listen", format!("127.0.0.1:{}", wishes.port));
    }
    if config.admin_port != USUAL_ADMIN_PORT {
        flag("--admin", format!("[::]:{}", config.admin_port));
    }
    flag("--log-level", wishes.log_level.clone());
    if config.control.insecure {
        arguments.push("--allow-insecure-gateway".to_owned());
    }
    arguments
}

/// What the Pod Security Standard `restricted` asks for, and no write to the root file system.
fn security_context(config: &InjectConfig) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let Some(user) = config.run_as_user {
        context["runAsUser"] = user.into();
        context["runAsGroup"] = user.into();
    }
    context
}
