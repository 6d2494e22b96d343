//! The operator in front of a control plane, a namespace for each test, and the rules for what is stored.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use nexus_tests::apiserver::Cluster;
use nexus_tests::operator::{Installation, Operator};
use serde_json::{Value, json};

/// How long controllers may take to make a pod on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);
pub(crate) const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The operator, for as long as a test holds it.
fn operator() -> Arc<Operator> {
    static INSTALLATION: OnceLock<Installation> = OnceLock::new();
    static OPERATOR: Mutex<Weak<Operator>> = Mutex::new(Weak::new());
    let mut running = OPERATOR.lock().unwrap();
    if let Some(operator) = running.upgrade() {
        return operator;
    }
    let values = [("sidecar.auth", "token")];
    let installation = INSTALLATION.get_or_init(|| Installation::new(Cluster::shared(), &values));
    let operator = Arc::new(installation.start());
    *running = Arc::downgrade(&operator);
    until_injecting();
    operator
}

/// The API server follows a configuration that changed after a moment.
fn until_injecting() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("ready");
    let manifest = pod("probe", &json!({})).to_string();
    let arguments = [
        "--namespace",
        &namespace,
        "create",
        "--dry-run=server",
        "--output=json",
        "--filename=-",
    ];
    let start = Instant::now();
    loop {
        let answer = cluster.kubectl_with(&arguments, &manifest);
        if answer.success && answer.stdout.contains("NEXUS_SIDECAR_URL") {
            return;
        }
        assert!(
            start.elapsed() < LIMIT,
            "{} {}",
            answer.stdout,
            answer.stderr
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) struct Scene {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: String,
    pub(crate) operator: Arc<Operator>,
}

impl Scene {
    pub(crate) fn new(name: &str) -> Self {
        let operator = operator();
        let cluster = Cluster::shared();
        Self {
            cluster,
            namespace: cluster.namespace(name),
            operator,
        }
    }

    pub(crate) fn kubectl(
        &self,
        arguments: &[&str],
        input: &str,
    ) -> nexus_tests::apiserver::Answer {
        let scoped: Vec<&str> = ["--namespace", &self.namespace]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        self.cluster.kubectl_with(&scoped, input)
    }

    pub(crate) fn create(&self, object: &Value) -> nexus_tests::apiserver::Answer {
        self.kubectl(&["create", "--filename=-"], &object.to_string())
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.cluster.get(&self.namespace, "pod", name).unwrap()
    }

    /// What is stored of a pod that was sent.
    pub(crate) fn stored(&self, pod: &Value) -> Value {
        self.create(pod).ok();
        self.pod(pod["metadata"]["name"].as_str().unwrap())
    }

    /// The first pod with this label `app`, once its controller has made one.
    pub(crate) fn pod_of(&self, app: &str) -> Value {
        let selector = format!("--selector=app={app}");
        let start = Instant::now();
        loop {
            let answer = self
                .kubectl(&["get", "pods", &selector, "--output=json"], "")
                .ok();
            let mut list: Value = serde_json::from_str(&answer).unwrap();
            if let Some(pod) = list["items"].as_array_mut().unwrap().pop() {
                return pod;
            }
            let events = || self.kubectl(&["get", "events"], "").stdout;
            assert!(start.elapsed() < LIMIT, "no pod of {app}: {}", events());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A pod that asks for a sidecar, with more of what `spec` says.
pub(crate) fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"nexus.io/inject": "true"}},
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    });
    pod["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    pod
}

pub(crate) fn annotated(mut pod: Value, annotations: &[(&str, &str)]) -> Value {
    for (name, value) in annotations {
        pod["metadata"]["annotations"][name] = (*value).into();
    }
    pod
}

pub(crate) fn names(list: &Value) -> Vec<&str> {
    let elements = list.as_array().into_iter().flatten();
    elements
        .map(|element| element["name"].as_str().unwrap())
        .collect()
}

/// The mounts of a container as (volume, path).
pub(crate) fn mounts(container: &Value) -> Vec<(&str, &str)> {
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    mounts
        .map(|mount| {
            (
                mount["name"].as_str().unwrap(),
                mount["mountPath"].as_str().unwrap(),
            )
        })
        .collect()
}

/// The rules for every stored pod that asked for a sidecar.
pub(crate) fn assert_injected(pod: &Value) {
    let spec = &pod["spec"];
    let (sidecar, others) = spec["initContainers"]
        .as_array()
        .unwrap()
        .split_first()
        .unwrap();
    assert_eq!(sidecar["name"], "nexus-sidecar");
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert!(
        sidecar["image"]
            .as_str()
            .unwrap()
            .starts_with("ghcr.io/nexus/nexus-sidecar:")
    );
    assert!(sidecar.get("command").is_none() && sidecar["securityContext"]["runAsNonRoot"] == true);
    // Nothing but ours, and at the place of the API token an empty volume.
    assert_eq!(
        mounts(sidecar),
        [
            ("nexus-sidecar-routes", "/etc/nexus/routes"),
            ("nexus-sidecar-auth", "/var/run/secrets/nexus"),
            ("nexus-sidecar-no-api-token", API_TOKEN),
        ]
    );
    let volumes = spec["volumes"].as_array().unwrap();
    let ours: Vec<&Value> = volumes
        .iter()
        .filter(|v| v["name"].as_str().unwrap().starts_with("nexus-sidecar-"))
        .collect();
    assert_eq!(ours.len(), 3, "{volumes:?}");
    assert!(ours[2]["emptyDir"].is_object());
    let agents = others.iter().chain(spec["containers"].as_array().unwrap());
    for agent in agents {
        assert_ne!(agent["name"], "nexus-sidecar");
        for (volume, path) in mounts(agent) {
            assert!(!volume.starts_with("nexus-sidecar-"), "{agent}");
            // The agent has the token of its service account, as ever.
            assert!(
                path != API_TOKEN || volume.starts_with("kube-api-access-"),
                "{agent}"
            );
        }
        let urls = agent["env"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|env| env["name"] == "NEXUS_SIDECAR_URL");
        assert_eq!(urls.count(), 1, "{agent}");
    }
    assert_eq!(pod["metadata"]["labels"]["nexus.io/sidecar"], "true");
    let admitted = pod["metadata"]["annotations"]["nexus.io/admitted"]
        .as_str()
        .unwrap();
    let admitted: Value = serde_json::from_str(admitted).unwrap();
    assert_eq!(admitted["version"], 1);
    assert_eq!(admitted["serviceAccount"], "default");
    assert_eq!(admitted["labels"]["app"], pod["metadata"]["labels"]["app"]);
    assert!(admitted["labels"].get("nexus.io/sidecar").is_none());
}

pub(crate) fn assert_untouched(pod: &Value) {
    assert!(pod["spec"].get("initContainers").is_none(), "{pod}");
    assert!(!pod.to_string().contains("nexus"), "{pod}");
}
