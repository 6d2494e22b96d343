//! A team's namespace: what it may use, and pods in which an agent does as it is told.

use nexus_tests::apiserver::Answer;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::lab::{self, AUTHORITY, LIMIT, apply, get, kubectl, kubectl_command, lab, until};

/// A NexusProvider that every team may use.
pub(crate) const PROVIDER: &str = "upstream";
/// Another one, of the second upstream.
pub(crate) const SECOND: &str = "second";
/// Programs of agents, by the path of the tests' own files.
const TOOLS: [&str; 4] = ["call.py", "load.py", "scan.py", "attack.py"];

/// A namespace that is removed at the end.
pub(crate) struct Team {
    /// Its name.
    pub(crate) namespace: String,
}

/// What an agent got.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Reply {
    /// Status; 0 if there was no answer.
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: std::collections::BTreeMap<String, String>,
    /// Content, or why there is no answer.
    pub(crate) body: String,
}

impl Reply {
    /// The connection that the upstream saw.
    pub(crate) fn connection(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        let facts: Value = serde_json::from_str(&self.body).unwrap();
        facts["connection"].as_str().unwrap().to_owned()
    }

    /// The sidecar's own error code, if it answered itself.
    pub(crate) fn error(&self) -> &str {
        self.headers.get("x-nexus-error").map_or("", String::as_str)
    }
}

impl Team {
    /// Makes one that enforces the strictest Pod Security.
    pub(crate) fn new(prefix: &str) -> Self {
        Self::with(prefix, "restricted")
    }

    /// Makes one with this level of Pod Security.
    pub(crate) fn with(prefix: &str, level: &str) -> Self {
        let namespace = lab().unused(prefix);
        let config_map = |name: &str, data: Value| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": namespace}, "data": data,
            })
        };
        let tools: serde_json::Map<String, Value> = TOOLS
            .iter()
            .map(|name| ((*name).to_owned(), lab::file(name).into()))
            .collect();
        apply(&[
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {
                    "name": namespace,
                    "labels": {"e2e": "true", "pod-security.kubernetes.io/enforce": level},
                },
            }),
            config_map(AUTHORITY, json!({"ca.crt": lab().authority()})),
            config_map("tools", tools.into()),
        ])
        .ok();
        until("a service account", || {
            get(&namespace, "serviceaccount", "default").ok_or_else(|| namespace.clone())
        });
        Self { namespace }
    }

    /// `kubectl` in the namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Answer {
        let namespace = format!("--namespace={}", self.namespace);
        kubectl(&[&[namespace.as_str()], arguments].concat())
    }

    /// A route of a provider to a connection of its own; `tenant` may be empty. Returns once it is programmed.
    pub(crate) fn route(&self, provider: &str, tenant: &str) -> String {
        let id = lab().connection();
        self.connect(provider, &json!([{"tenant": tenant, "connectionId": id}]));
        id
    }

    /// A route of a provider with these connections, for whoever has none of a tenant's name.
    pub(crate) fn connect(&self, provider: &str, connections: &Value) {
        let mut connections = connections.clone();
        for connection in connections.as_array_mut().unwrap() {
            let connection = connection.as_object_mut().unwrap();
            if connection.get("tenant").is_some_and(|tenant| tenant == "") {
                connection.remove("tenant");
            }
        }
        self.apply_route(&json!({
            "metadata": {"name": provider},
            "spec": {"provider": provider, "connections": connections},
        }));
    }

    /// `kubectl apply` of a NexusRoute, of which kind and namespace may be missing. Returns once it is programmed.
    pub(crate) fn apply_route(&self, route: &Value) {
        let mut route = route.clone();
        route["apiVersion"] = "nexus.io/v1alpha1".into();
        route["kind"] = "NexusRoute".into();
        route["metadata"]["namespace"] = self.namespace.as_str().into();
        let name = route["metadata"]["name"].as_str().unwrap().to_owned();
        apply(&[route]).ok();
        until("the route is programmed", || {
            let route = get(&self.namespace, "nexusroute", &name).ok_or("it is not there")?;
            let programmed = route["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| {
                    condition["type"] == "Programmed"
                        && condition["status"] == "True"
                        && condition["observedGeneration"] == route["metadata"]["generation"]
                });
            if programmed {
                Ok(())
            } else {
                Err(route["status"].to_string())
            }
        });
    }

    /// Creates a pod, which must be admitted, and waits until it is ready.
    pub(crate) fn start(&self, pod: &Value) {
        self.create(pod).ok();
        self.ready(pod["metadata"]["name"].as_str().unwrap());
    }

    /// Creates pods of this name until one was given this gateway, and waits until it is ready: for a while after an
    /// upgrade the operator before it admits.
    pub(crate) fn start_with(&self, name: &str, gateway: &str) {
        until("the new settings", || {
            self.create(&agent(name)).ok();
            let pod = self.object("pod", name);
            if pod["spec"]["initContainers"][0]
                .to_string()
                .contains(gateway)
            {
                return Ok(());
            }
            self.kubectl(&["delete", "pod", name, "--grace-period=1"])
                .ok();
            Err("those before are used".to_owned())
        });
        self.ready(name);
    }

    /// Creates an object in the namespace.
    pub(crate) fn create(&self, object: &Value) -> Answer {
        let mut object = object.clone();
        object["metadata"]["namespace"] = self.namespace.as_str().into();
        let mut command = kubectl_command(&["create", "--filename=-"]);
        Answer::of(&mut command, &object.to_string())
    }

    /// Waits until a pod is ready.
    pub(crate) fn ready(&self, pod: &str) {
        let timeout = format!("--timeout={}s", LIMIT.as_secs());
        let pod = format!("pod/{pod}");
        let answer = self.kubectl(&["wait", "--for=condition=Ready", &timeout, &pod]);
        if !answer.success {
            let about = self.kubectl(&["describe", &pod]).stdout;
            let log = self
                .kubectl(&["logs", &pod, "--container=nexus-sidecar"])
                .stdout;
            panic!("{pod}: {}\n{about}\n{log}", answer.stderr);
        }
    }

    /// An object of the namespace.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Value {
        get(&self.namespace, kind, name).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// Runs a command in the agent's container of a pod.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Answer {
        self.exec_in(pod, "agent", command, "")
    }

    /// Runs a command with `input` in a container of a pod.
    pub(crate) fn exec_in(
        &self,
        pod: &str,
        container: &str,
        command: &[&str],
        input: &str,
    ) -> Answer {
        let namespace = format!("--namespace={}", self.namespace);
        let container = format!("--container={container}");
        let arguments = [&namespace, "exec", "--stdin", pod, &container, "--"];
        Answer::of(
            &mut kubectl_command(&[&arguments[..], command].concat()),
            input,
        )
    }

    /// A request by the agent of a pod: a path of the sidecar, or any URL.
    pub(crate) fn call(&self, pod: &str, url: &str) -> Reply {
        self.call_with(pod, url, &[])
    }

    /// The same with headers such as `X-Nexus-Provider: github`.
    pub(crate) fn call_with(&self, pod: &str, url: &str, headers: &[&str]) -> Reply {
        let command = [&["python3", "/tools/call.py", "GET", url], headers].concat();
        let text = self.exec(pod, &command).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Asks until the sidecar's answer comes from the upstream.
    pub(crate) fn served(&self, pod: &str, path: &str) -> Reply {
        until("a request is served", || {
            let reply = self.call(pod, path);
            if reply.status == 200 {
                Ok(reply)
            } else {
                Err(format!("{reply:?}"))
            }
        })
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
        }
    }
}

/// A pod with an agent that waits to be told what to do, as `restricted` wants it.
pub(crate) fn agent(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "annotations": {"nexus.io/inject": "true"},
        },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container("agent", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")],
            "volumes": [{"name": "tools", "configMap": {"name": "tools"}}],
        },
    })
}

/// A container that runs a script of the shell, as `restricted` wants it.
pub(crate) fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": lab::python(),
        "command": ["sh", "-c", script],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tools", "mountPath": "/tools"}],
    })
}

/// A pod without a sidecar that sees all processes of its node and may do anything.
pub(crate) fn on_node(name: &str) -> Value {
    let mut pod = agent(name);
    pod["metadata"]["annotations"] = json!({});
    pod["spec"]["hostPID"] = true.into();
    pod["spec"]["securityContext"] = json!({});
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true, "runAsUser": 0});
    pod
}

/// Runs a command with `input` beside a pod: in one [on its node](on_node). Returns what it prints.
pub(crate) fn on_node_of(beside: &Value, command: &[&str], input: &str) -> String {
    let team = Team::with("node", "privileged");
    let mut pod = on_node("agent");
    pod["spec"]["nodeName"] = beside["spec"]["nodeName"].clone();
    team.start(&pod);
    team.exec_in("agent", "agent", command, input).ok()
}

/// Applies the NexusProviders of all teams.
pub(crate) fn grant() {
    let provider = |name: &str, urls: [&str; 2]| {
        json!({
            "apiVersion": "nexus.io/v1alpha1",
            "kind": "NexusProvider",
            "metadata": {"name": name},
            "spec": {
                "upstream": {
                    "url": urls[0],
                    "caBundle": lab().authority(),
                    "allowPrivateAddresses": true,
                },
                "origins": urls,
            },
        })
    };
    apply(&[
        provider(PROVIDER, [lab::UPSTREAM, lab::OTHER]),
        provider(SECOND, [lab::OTHER, lab::UPSTREAM]),
    ])
    .ok();
}
