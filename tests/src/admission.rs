//! Pods that ask for a sidecar, created without end, and what the API server itself counts of the webhook it asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::apiserver::Cluster;
use crate::caller::Caller;
use crate::operator::sum;

/// A pod that asks for a sidecar.
pub fn annotated(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"nexus.io/inject": "true"}},
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    })
}

/// Creates annotated pods one after the other, and deletes them.
#[derive(Debug)]
pub struct Creator {
    stop: Arc<AtomicBool>,
    created: Arc<AtomicUsize>,
    task: JoinHandle<Vec<String>>,
}

impl Creator {
    /// Begins in a namespace; `name` begins the pods' names.
    pub fn start(admin: &Caller, namespace: &str, name: &str) -> Self {
        let (stop, created) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let (stop, created) = (Arc::clone(&stop), Arc::clone(&created));
            let (admin, name) = (admin.clone(), name.to_owned());
            let pods = format!("/api/v1/namespaces/{namespace}/pods");
            async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = created.fetch_add(1, Ordering::Relaxed);
                    let name = format!("{name}-{number}");
                    let answer = admin.post(&pods, &annotated(&name)).await;
                    let injected =
                        answer.body["spec"]["initContainers"][0]["name"] == "nexus-sidecar";
                    if answer.code != 201 || !injected {
                        failures.push(format!("{name}: {} {}", answer.code, answer.body));
                    }
                    let now = json!({"gracePeriodSeconds": 0});
                    admin.delete(&format!("{pods}/{name}"), &now).await;
                }
                failures
            }
        });
        Self {
            stop,
            created,
            task,
        }
    }

    /// Pods so far.
    pub fn created(&self) -> usize {
        self.created.load(Ordering::Relaxed)
    }

    /// Ends it; every pod must have been created, with a sidecar.
    ///
    /// # Panics
    ///
    /// When one was not, showing how the API server refused it.
    pub async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.unwrap();
        assert!(
            failures.is_empty(),
            "{} pods: {failures:#?}",
            failures.len()
        );
        self.created.load(Ordering::Relaxed)
    }
}

/// What the API server counted of calls of the webhook for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Answered with 200 and let in.
    pub admitted: usize,
    /// Not answered, or not well.
    pub failed: usize,
}

impl Calls {
    /// So far.
    pub fn of(cluster: &Cluster) -> Self {
        let text = cluster.metrics();
        let webhook = "name=\"inject.nexus.io\"";
        let rejections = "apiserver_admission_webhook_rejection_count";
        let open = "apiserver_admission_webhook_fail_open_count";
        let requests = "apiserver_admission_webhook_request_total";
        let good = ["code=\"200\"", "rejected=\"false\"", webhook];
        let count = |name: &str, labels: &[&str]| number(sum(&text, name, labels));
        let admitted = count(requests, &good);
        Self {
            admitted,
            failed: count(rejections, &[webhook])
                + count(open, &[webhook])
                + count(requests, &[webhook])
                - admitted,
        }
    }
}

/// A counter is a whole number, written as a floating one.
fn number(counted: f64) -> usize {
    format!("{counted:.0}")
        .trim_start_matches('-')
        .parse()
        .unwrap()
}
