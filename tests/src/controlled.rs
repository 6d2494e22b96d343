//! The operator in front of the process's control plane, shared by the tests that run at the same time, and a
//! namespace with a NexusProvider of its own for each.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nexus_crds::table::RouteTable;
use serde_json::{Value, json};

use crate::apiserver::{Answer, Cluster};
use crate::operator::{Installation, Operator};

/// How long the operator may take for anything on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
/// Tests cannot wait for the 30 seconds of the default.
const QUICK: [&str; 2] = ["--bound-pods-interval=1s", "--pod-sweep-interval=1s"];

/// A test's namespace, and what serves it.
pub struct Scene {
    /// The control plane.
    pub cluster: &'static Cluster,
    /// The operator.
    pub operator: Arc<Operator>,
    /// The namespace; also the name of a NexusProvider that grants `https://api.example.com`.
    pub namespace: String,
}

impl Scene {
    /// Makes a namespace and a NexusProvider of its name; the first caller installs the chart and starts the operator.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub fn new(prefix: &str) -> Self {
        let cluster = Cluster::shared();
        let operator = operator(cluster);
        let scene = Self {
            cluster,
            operator,
            namespace: cluster.namespace(prefix),
        };
        let provider = provider(&scene.namespace);
        cluster.apply(&provider.to_string()).ok();
        scene
    }

    /// A NexusRoute of this namespace and its provider. `fields` are those of its spec that differ.
    ///
    /// # Panics
    ///
    /// When `fields` is no object.
    pub fn route(&self, name: &str, fields: &Value) -> Value {
        route(&self.namespace, name, &self.namespace, fields)
    }

    /// `kubectl apply`.
    pub fn apply(&self, object: &Value) -> Answer {
        self.cluster.apply(&object.to_string())
    }

    /// `kubectl` in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Answer {
        let namespace = format!("--namespace={}", self.namespace);
        let all: Vec<&str> = [namespace.as_str()]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        self.cluster.kubectl(&all)
    }

    /// A NexusRoute as it is.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    pub fn seen(&self, name: &str) -> Value {
        let route = self.cluster.get(&self.namespace, "nexusroute", name);
        route.unwrap_or_else(|| panic!("there is no route {name}"))
    }

    /// Waits until a route's conditions are these, for its present generation, and gives the route.
    ///
    /// # Panics
    ///
    /// When they do not become these.
    pub fn until(&self, name: &str, accepted: &str, programmed: &str) -> Value {
        self.wait(&format!("{name}: {accepted}, {programmed}"), || {
            let route = self.seen(name);
            let is = |type_, reason: &str| {
                let condition = condition(&route, type_);
                condition["reason"] == reason
                    && condition["observedGeneration"] == route["metadata"]["generation"]
            };
            if is("Accepted", accepted) && is("Programmed", programmed) {
                Ok(route)
            } else {
                Err(route["status"].to_string())
            }
        })
    }

    /// The ConfigMap.
    pub fn config_map(&self) -> Option<Value> {
        self.cluster
            .get(&self.namespace, "configmap", "nexus-routes")
    }

    /// The table of the ConfigMap, if there is one.
    pub fn table(&self) -> Option<RouteTable> {
        self.config_map().map(|config_map| table(&config_map))
    }

    /// Waits until the table is as told.
    ///
    /// # Panics
    ///
    /// When it does not become so.
    pub fn until_table(&self, what: &str, is: impl Fn(&RouteTable) -> bool) -> RouteTable {
        self.wait(what, || match self.table() {
            Some(table) if is(&table) => Ok(table),
            table => Err(format!("{table:?}")),
        })
    }

    /// Waits until `look` finds it.
    ///
    /// # Panics
    ///
    /// When it does not, showing what it found last and what the operator said.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        wait(what, &self.operator, look)
    }

    /// Makes a pod that looks as if another version had injected it: nothing runs it.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub fn pod(&self, name: &str, admitted: &Value) {
        self.apply(&pod(&self.namespace, name, &json!({}))).ok();
        let annotations =
            json!({"nexus.io/inject": "true", "nexus.io/admitted": admitted.to_string()});
        let metadata = json!({"labels": {"nexus.io/sidecar": "true"}, "annotations": annotations});
        // Afterwards, since the webhook would write what this version admits; a policy is against that, which no test
        // with such a pod is about.
        let policy = [
            "delete",
            "validatingadmissionpolicybinding",
            "nexus-pod-update",
            "--ignore-not-found",
        ];
        self.cluster.kubectl(&policy).ok();
        let patch = json!({"metadata": metadata}).to_string();
        self.wait("the policy's end", || {
            let patched = self.kubectl(&["patch", "pod", name, "--type=merge", "--patch", &patch]);
            if patched.success {
                Ok(())
            } else {
                Err(patched.refused())
            }
        });
    }
}

fn operator(cluster: &'static Cluster) -> Arc<Operator> {
    // Weak, since nothing drops what a process holds to its end: the last test that uses it ends it.
    static SHARED: Mutex<(Option<Installation>, Weak<Operator>)> = Mutex::new((None, Weak::new()));
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(operator) = shared.1.upgrade() {
        return operator;
    }
    let installation = shared
        .0
        .get_or_insert_with(|| Installation::new(cluster, &[]));
    let port = installation.port();
    let operator = Arc::new(installation.start_with("operator-0", port, &QUICK));
    shared.1 = Arc::downgrade(&operator);
    operator
}

/// Waits until `look` finds it.
///
/// # Panics
///
/// When it does not, showing what it found last and what the operator said.
pub fn wait<T>(what: &str, operator: &Operator, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        let found = match look() {
            Ok(found) => return found,
            Err(found) => found,
        };
        assert!(
            start.elapsed() < LIMIT,
            "waited in vain for {what}; found {found}\n{}",
            operator.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A NexusProvider that grants `https://api.example.com`.
pub fn provider(name: &str) -> Value {
    json!({
        "apiVersion": "nexus.io/v1alpha1",
        "kind": "NexusProvider",
        "metadata": {"name": name},
        "spec": {"upstream": {"url": "https://api.example.com"}},
    })
}

/// A NexusRoute. `fields` are those of its spec beside the provider.
///
/// # Panics
///
/// When `fields` is no object.
pub fn route(namespace: &str, name: &str, provider: &str, fields: &Value) -> Value {
    let mut spec = json!({"provider": provider});
    spec.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    json!({
        "apiVersion": "nexus.io/v1alpha1",
        "kind": "NexusRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// A pod with one container. `fields` are those of its metadata beside name and namespace.
///
/// # Panics
///
/// When `fields` is no object.
pub fn pod(namespace: &str, name: &str, fields: &Value) -> Value {
    let mut metadata = json!({"name": name, "namespace": namespace});
    metadata
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    })
}

/// A condition of an object; null if it has none of this type.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == type_)
        .unwrap_or(&Value::Null)
}

/// Name and bytes of the only file of a ConfigMap, as a volume has it.
///
/// # Panics
///
/// When there is more than one.
pub fn file(config_map: &Value) -> (String, Vec<u8>) {
    let mut files = Vec::new();
    for (name, text) in config_map["data"].as_object().into_iter().flatten() {
        files.push((name.clone(), text.as_str().unwrap().as_bytes().to_vec()));
    }
    for (name, text) in config_map["binaryData"].as_object().into_iter().flatten() {
        files.push((
            name.clone(),
            BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap(),
        ));
    }
    assert_eq!(files.len(), 1, "{config_map}");
    files.remove(0)
}

/// The table of a ConfigMap.
///
/// # Panics
///
/// When it holds another number of files, or no table.
pub fn table(config_map: &Value) -> RouteTable {
    RouteTable::decode(&file(config_map).1).unwrap()
}
