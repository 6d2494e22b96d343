//! The chart's admission policies in force on the process's control plane, without the operator: what the webhook would
//! refuse or mend reaches the policies as it was sent. Each test gets a namespace and somebody hostile in it, who may do
//! with pods whatever RBAC can give, so that only a policy can say no.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::apiserver::Cluster;
use crate::caller::{Answer, Caller};
use crate::chart;

/// Repository of the sidecar's image, as the chart has it.
pub const REPOSITORY: &str = "ghcr.io/nexus/nexus-sidecar";

/// Kinds of the chart that are applied.
const APPLIED: [&str; 7] = [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// A test's namespace and who acts in it.
pub struct Scene {
    /// The control plane.
    pub cluster: &'static Cluster,
    /// The namespace.
    pub namespace: String,
    /// An administrator of the cluster.
    pub admin: Caller,
    /// A service account with the role `edit`, and with every verb for every subresource of pods.
    pub mallory: Caller,
    /// The operator.
    pub operator: Caller,
    /// A kubelet.
    pub kubelet: Caller,
}

impl Scene {
    /// Makes a namespace; the first caller applies the policies and waits until they are in force.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub async fn new(prefix: &str) -> Self {
        static READY: OnceCell<()> = OnceCell::const_new();
        let cluster = Cluster::shared();
        let admin = Caller::new(cluster.client().await);
        READY.get_or_init(|| ready(cluster, &admin)).await;
        let namespace = cluster.namespace(prefix);
        let binding = |role: &str| {
            json!({
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
            })
        };
        let bindings =
            format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
        for role in ["edit", "mallory"] {
            admin.post(&bindings, &binding(role)).await.ok();
        }
        let mallory = admin.service_account(&namespace, "default");
        let allowed = || async {
            let of_edit = mallory
                .get(&format!("/api/v1/namespaces/{namespace}/secrets"))
                .await;
            let of_mallory = mallory
                .get(&format!("/api/v1/namespaces/{namespace}/pods/none/status"))
                .await;
            (of_edit.code, of_mallory.code) == (200, 404)
        };
        until("the role bindings", allowed).await;
        Self {
            mallory,
            operator: admin.service_account(chart::NAMESPACE, "nexus-operator"),
            kubelet: admin.user("system:node:node-1", &["system:nodes"]),
            admin,
            cluster,
            namespace,
        }
    }

    /// Path of a kind of the core group in the namespace, e.g. `pods` or `pods/agent/status`.
    pub fn core(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    /// Creates a pod as the webhook makes it, and returns it as it was stored.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn injected(&self, name: &str) -> Value {
        let mut pod = injected();
        pod["metadata"]["name"] = name.into();
        self.admin.post(&self.core("pods"), &pod).await.ok()
    }
}

/// A pod as the webhook makes it where sidecars show a token.
pub fn injected() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "agent",
            "labels": {"app": "agent", "nexus.io/sidecar": "true"},
            "annotations": {
                "nexus.io/inject": "true",
                "nexus.io/tenants": "tenant_1",
                "nexus.io/admitted": r#"{"version":1,"tenants":["tenant_1"]}"#,
            },
        },
        "spec": {
            "containers": [{"name": "agent", "image": "localhost/agent:1"}],
            "initContainers": [
                {
                    "name": "nexus-sidecar",
                    "image": format!("{REPOSITORY}:0.1.0"),
                    "restartPolicy": "Always",
                    "volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/var/run/secrets/nexus"}],
                },
                {"name": "prepare", "image": "localhost/agent:1"},
            ],
            "volumes": [{
                "name": "nexus-sidecar-auth",
                "projected": {"sources": [{"serviceAccountToken": {
                    "audience": "nexus-gateway", "path": "token", "expirationSeconds": 3600,
                }}]},
            }],
        },
    })
}

/// Asserts that one of the chart's policies denied a request, with a text that contains `why`.
///
/// # Panics
///
/// When it did not.
#[track_caller]
pub fn assert_denied(answer: &Answer, policy: &str, why: &str) {
    match answer.denial() {
        Some((name, text)) if name == policy && text.contains(why) => {}
        _ => panic!(
            "not denied by {policy} with {why:?}: {} {}",
            answer.code,
            answer.message()
        ),
    }
}

/// Waits until something is so.
///
/// # Panics
///
/// When it is not after a minute.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "waited in vain for {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn ready(cluster: &Cluster, admin: &Caller) {
    let namespace = json!({"metadata": {"name": chart::NAMESPACE}});
    admin.post("/api/v1/namespaces", &namespace).await.ok();
    let mut items = chart::render(&[("sidecar.auth", "token")]);
    items.retain(|object| APPLIED.iter().any(|&kind| object["kind"] == kind));
    items.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "mallory"},
        "rules": [{"apiGroups": [""], "resources": [
            "bindings", "pods", "pods/attach", "pods/binding", "pods/ephemeralcontainers", "pods/exec", "pods/resize", "pods/status",
        ], "verbs": ["*"]}],
    }));
    // What the node authoriser would allow.
    items.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "kubelets"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
    }));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster
        .kubectl_with(
            &["apply", "--server-side", "--filename=-"],
            &list.to_string(),
        )
        .ok();
    in_force(admin).await;
}

/// Waits until the API server has loaded the policies, which it does some time after it has stored them.
async fn in_force(admin: &Caller) {
    let probe = |path: &'static str, body: Value| async move {
        let denied = || async {
            let path = format!("/api/v1/namespaces/default/{path}");
            admin.post(&path, &body).await.denial().is_some()
        };
        until(&format!("the policy of {path}"), denied).await;
    };
    probe(
        "serviceaccounts/default/token?dryRun=All",
        json!({"spec": {"audiences": ["nexus-gateway"]}}),
    )
    .await;
    probe(
        "configmaps?dryRun=All",
        json!({"metadata": {"name": "nexus-routes"}}),
    )
    .await;
    let mut pod = injected();
    pod["metadata"]["annotations"] = json!({});
    probe("pods?dryRun=All", pod).await;
    let binding = json!({
        "metadata": {"name": "agent", "annotations": {"nexus.io/admitted": "forged"}},
        "target": {"kind": "Node", "name": "node-1"},
    });
    probe("bindings?dryRun=All", binding).await;
    probe("pods/nobody/exec?container=nexus-sidecar", Value::Null).await;
}
