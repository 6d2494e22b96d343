//! What the operator asked of the API server, by the API server's own audit log.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::Cluster;

const LOG: &str = "audit.log";
const POLICY: &str = "audit-policy.json";
/// Anybody else's calls are not of interest.
const OPERATOR: &str = "system:serviceaccount:nexus-system:nexus-operator";

/// Writes the policy into the cluster's folder and gives the arguments of the API server.
pub(super) fn arguments(folder: &Path) -> [String; 2] {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
    });
    let path = folder.join(POLICY);
    std::fs::write(&path, policy.to_string()).unwrap();
    [
        format!("--audit-policy-file={}", path.display()),
        // Written before the call is answered.
        format!("--audit-log-path={}", folder.join(LOG).display()),
    ]
}

/// The operator's calls from a moment on.
#[derive(Debug)]
pub struct Audit {
    log: PathBuf,
    start: u64,
}

/// A call that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// As RBAC has it: `get`, `list`, `watch`, `create`, `patch`, ...
    pub verb: String,
    /// The resource, and its subresource after a slash.
    pub resource: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// Empty where a call names none.
    pub name: String,
    /// The status code of the answer.
    pub code: u16,
}

impl Call {
    /// Whether it was to change something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether it succeeded in changing `resource`, which is as in [`Call::resource`].
    pub fn wrote(&self, resource: &str) -> bool {
        self.is_write() && self.resource == resource && self.code < 300
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verb,
            resource,
            code,
            ..
        } = self;
        write!(f, "{verb} {resource} {code}")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    #[serde(default)]
    object_ref: Reference,
    #[serde(default)]
    response_status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reference {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
}

impl Audit {
    /// What was answered since, in this order.
    ///
    /// # Panics
    ///
    /// When the log cannot be read.
    pub fn calls(&self) -> Vec<Call> {
        let Ok(mut log) = std::fs::File::open(&self.log) else {
            return Vec::new();
        };
        log.seek(SeekFrom::Start(self.start)).unwrap();
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(call).collect()
    }

    /// Those that were to change something.
    pub fn writes(&self) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(Call::is_write);
        calls
    }
}

fn call(line: &str) -> Call {
    let event: Event = serde_json::from_str(line).unwrap();
    let Reference {
        mut resource,
        subresource,
        namespace,
        name,
    } = event.object_ref;
    if !subresource.is_empty() {
        resource = format!("{resource}/{subresource}");
    }
    Call {
        verb: event.verb,
        resource,
        namespace,
        name,
        code: event.response_status.code,
    }
}

impl Cluster {
    /// Listens from now on.
    pub fn audit(&self) -> Audit {
        let log = self.folder.join(LOG);
        let start = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        Audit { log, start }
    }
}
