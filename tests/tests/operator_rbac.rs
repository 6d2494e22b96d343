//! The operator runs with exactly the chart's rules. They suffice, and one that is taken away is reported, harms nothing
//! else, and is made up for when it is back.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use nexus_tests::apiserver::{Audit, Call, Cluster};
use nexus_tests::caller::Caller;
use nexus_tests::chart::NAMESPACE;
use nexus_tests::controlled::condition;
use nexus_tests::operator::{Installation, Operator, sum};
use nexus_tests::policies::until;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
/// What only trouble needs, and what the API server asks for without a call of that name.
const RARE: [&str; 5] = [
    // Of server-side apply, when there is none.
    "create configmaps",
    // One that is immutable.
    "delete secrets",
    // A pod is admitted before the watch shows its namespace.
    "get namespaces",
    // The status of objects that cannot be read.
    "get nexusproviders",
    "get nexusroutes",
];
const LEAF: &str = "nexus-operator-webhook-tls";

/// Who acts, and on what.
struct Stage {
    cluster: &'static Cluster,
    admin: Caller,
    operator: Operator,
}

impl Stage {
    /// Path of a kind of the operator's namespace.
    fn own(api: &str, rest: &str) -> String {
        format!("{api}/namespaces/{NAMESPACE}/{rest}")
    }

    async fn exists(&self, path: &str) -> bool {
        self.admin.get(path).await.code == 200
    }

    /// Makes a namespace with a route, and gives the namespace's name.
    async fn route(&self, prefix: &str) -> String {
        let namespace = self.cluster.namespace(prefix);
        let route = json!({
            "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute", "metadata": {"name": "example"},
            "spec": {
                "upstream": {"url": "https://api.example.com"},
                "connections": [{"connectionId": uuid(&namespace)}],
            },
        });
        let path = format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes");
        self.admin.post(&path, &route).await.ok();
        namespace
    }

    async fn has_table(&self, namespace: &str) -> bool {
        self.exists(&table(namespace)).await
    }

    async fn has_verdict(&self, namespace: &str) -> bool {
        let path = format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes/example");
        let route = self.admin.get(&path).await.ok();
        let conditions = route["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == "Programmed" && one["status"] == "True")
        })
    }

    /// Why the route is not in the table.
    async fn pending(&self, namespace: &str) -> String {
        let path = format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes/example");
        let route = self.admin.get(&path).await.ok();
        let condition = condition(&route, "Programmed");
        assert_ne!(condition["status"], "True");
        let is_pending = condition["reason"] == "Pending";
        let message = condition["message"].as_str().filter(|_| is_pending);
        message.unwrap_or_default().to_owned()
    }

    async fn has_event(&self, namespace: &str) -> bool {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let events = self.admin.get(&path).await.ok();
        let events = events["items"].as_array().unwrap();
        events
            .iter()
            .any(|event| event["regarding"]["kind"] == "NexusRoute")
    }

    /// Whether a pod that asks for a sidecar gets it; nothing is left of it.
    async fn injects(&self, namespace: &str) -> bool {
        let pod = json!({
            "metadata": {"name": "agent", "annotations": {"nexus.io/inject": "true"}},
            "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let answer = self.admin.post(&path, &pod).await;
        let first = &answer.body["spec"]["initContainers"][0]["name"];
        answer.code == 201 && first == "nexus-sidecar"
    }

    fn leads(&self) -> bool {
        self.operator.metric("nexus_operator_leader", &[]) > 0.0
    }

    /// Takes a verb out of the rules that name a resource, and gives the role as it was.
    async fn without(&self, role: &str, resource: &str, verb: &str) -> Value {
        let whole = self.admin.get(role).await.ok();
        let mut less = whole.clone();
        let mut taken = 0;
        for rule in less["rules"].as_array_mut().unwrap() {
            let named = |list: &Value, name: &str| list.as_array().unwrap().contains(&name.into());
            if named(&rule["resources"], resource) && named(&rule["verbs"], verb) {
                rule["verbs"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|one| one != verb);
                taken += 1;
            }
        }
        assert_eq!(taken, 1, "{role} {resource} {verb}");
        less["rules"]
            .as_array_mut()
            .unwrap()
            .retain(|rule| rule["verbs"] != json!([]));
        self.put(role, less).await;
        whole
    }

    async fn put(&self, role: &str, mut wanted: Value) {
        wanted["metadata"]["resourceVersion"] = Value::Null;
        self.admin.put(role, &wanted).await.ok();
    }

    /// What was logged since `mark`.
    fn said(&self, mark: usize) -> String {
        self.operator.log()[mark..].to_owned()
    }

    /// Waits for a line of the log that has every one of `words`.
    async fn reports(&self, mark: usize, words: &[&str]) {
        let found = || async {
            let said = self.said(mark);
            said.lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        until(&format!("a line with {words:?}"), found).await;
    }

    fn mark(&self) -> usize {
        self.operator.log().len()
    }
}

fn cluster_role() -> String {
    format!("{RBAC}/clusterroles/nexus-operator")
}

fn role() -> String {
    Stage::own(RBAC, "roles/nexus-operator")
}

fn table(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/nexus-routes")
}

/// A connection of each namespace's own, since the first to name one has it.
fn uuid(namespace: &str) -> String {
    let (_, number) = namespace.rsplit_once('-').unwrap();
    nexus_tests::connection(number.parse().unwrap())
}

/// What the roles allow and nothing of [`everything`] needed.
async fn unused(stage: &Stage, audit: &Audit) -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    for role in [cluster_role(), role()] {
        let role = stage.admin.get(&role).await.ok();
        for rule in role["rules"].as_array().unwrap() {
            let texts = |list: &Value| -> Vec<String> {
                let texts = list.as_array().unwrap().iter();
                texts
                    .map(|text| text.as_str().unwrap().to_owned())
                    .collect()
            };
            for resource in texts(&rule["resources"]) {
                let verbs = texts(&rule["verbs"]).into_iter();
                granted.extend(verbs.map(|verb| format!("{verb} {resource}")));
            }
        }
    }
    for call in audit.calls() {
        granted.remove(&format!("{} {}", call.verb, call.resource));
    }
    granted
}

fn refusals(cluster: &Cluster) -> f64 {
    sum(
        &cluster.metrics(),
        "apiserver_request_total",
        &["code=\"403\""],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_suffice_and_one_that_is_missing_is_reported_and_made_up_for() {
    let cluster = Cluster::shared();
    let values = [("sidecar.auth", "token")];
    let installation = Installation::new(cluster, &values);
    let before = refusals(cluster);
    let audit = cluster.audit();
    let quick = [
        "--lease-duration=3s",
        "--bound-pods-interval=1s",
        "--pod-sweep-interval=1s",
    ];
    let start = || installation.start_with("operator-0", installation.port(), &quick);
    let mut stage = Stage {
        cluster,
        admin: Caller::new(cluster.client().await),
        operator: start(),
    };
    everything(&stage).await;
    stage.operator.terminate();
    assert_eq!(stage.operator.wait().0, Some(0), "{}", stage.operator.log());
    let lease = Stage::own("/apis/coordination.k8s.io/v1", "leases/nexus-operator");
    let lease = stage.admin.get(&lease).await.ok();
    assert_eq!(
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default(),
        ""
    );
    assert!(
        !stage.operator.log().contains("forbidden"),
        "{}",
        stage.operator.log()
    );

    stage.operator = start();
    until("the lead", || async { stage.leads() }).await;
    assert!(
        !stage.operator.log().contains("forbidden"),
        "{}",
        stage.operator.log()
    );
    let after = refusals(cluster);
    assert!(
        (after - before).abs() < 0.5,
        "{} requests were refused",
        after - before
    );

    assert_eq!(
        unused(&stage, &audit).await,
        BTreeSet::from(RARE.map(str::to_owned))
    );

    without_writing_tables(&stage).await;
    without_writing_conditions(&stage).await;
    without_writing_events(&stage).await;
    without_making_secrets(&stage).await;
    without_publishing_the_authority(&stage).await;
    without_renewing_the_lease(&stage).await;
    assert!(stage.operator.runs());
}

/// Makes the operator do all that it does.
async fn everything(stage: &Stage) {
    until("the lead", || async { stage.leads() }).await;
    let provider = json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusProvider", "metadata": {"name": "example"},
        "spec": {"upstream": {"url": "https://api.example.com"}},
    });
    let providers = "/apis/nexus.io/v1alpha1/nexusproviders";
    stage.admin.post(providers, &provider).await.ok();
    let judged = || async {
        let path = format!("{providers}/example");
        !stage.admin.get(&path).await.ok()["status"]["conditions"].is_null()
    };
    until("the provider's conditions", judged).await;

    let namespace = stage.route("work").await;
    until("the table", || stage.has_table(&namespace)).await;
    until("the verdict", || stage.has_verdict(&namespace)).await;
    until("the event", || stage.has_event(&namespace)).await;
    // What was told before is told again.
    for host in ["elsewhere", "api", "elsewhere", "api"] {
        let upstream =
            json!({"spec": {"upstream": {"url": format!("https://{host}.example.com")}}});
        let path = format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes/example");
        stage.admin.merge(&path, &upstream).await.ok();
        let judged = || async { stage.has_verdict(&namespace).await == (host == "api") };
        until(&format!("the verdict on {host}"), judged).await;
    }
    // The token's policies let pass what the webhook made.
    until("an injected pod", || stage.injects(&namespace)).await;

    stage
        .admin
        .delete(&table(&namespace), &Value::Null)
        .await
        .ok();
    until("the table again", || stage.has_table(&namespace)).await;
    let leaf = Stage::own("/api/v1", &format!("secrets/{LEAF}"));
    stage.admin.delete(&leaf, &Value::Null).await.ok();
    until("the certificate again", || stage.exists(&leaf)).await;
    let route = format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes/example");
    stage.admin.delete(&route, &Value::Null).await.ok();
    until("the table's end", || async {
        !stage.has_table(&namespace).await
    })
    .await;
    // Two sweeps, two counts.
    tokio::time::sleep(Duration::from_secs(3)).await;
}

async fn without_writing_tables(stage: &Stage) {
    let failed = || {
        stage
            .operator
            .metric("nexus_operator_reconciles_total", &["ailed"])
    };
    let (mark, before) = (stage.mark(), failed());
    let whole = stage.without(&cluster_role(), "configmaps", "patch").await;
    let namespace = stage.route("table").await;
    stage
        .reports(mark, &[&namespace, "nexus-routes", "forbidden"])
        .await;
    assert!(failed() > before);
    assert!(!stage.has_table(&namespace).await);
    // Its author sees it too.
    let told = || async {
        let why = stage.pending(&namespace).await;
        why.contains("nexus-routes") && why.contains("forbidden")
    };
    until("the reason in the condition", told).await;
    assert!(stage.injects(&namespace).await);
    stage.put(&cluster_role(), whole).await;
    until("the table", || stage.has_table(&namespace)).await;
    until("the verdict", || stage.has_verdict(&namespace)).await;
}

async fn without_writing_conditions(stage: &Stage) {
    let failed = || {
        stage
            .operator
            .metric("nexus_operator_reconciles_total", &["ailed"])
    };
    let (mark, before) = (stage.mark(), failed());
    let whole = stage
        .without(&cluster_role(), "nexusroutes/status", "patch")
        .await;
    let namespace = stage.route("verdict").await;
    stage.reports(mark, &[&namespace, "forbidden"]).await;
    assert!(failed() > before);
    until("the table", || stage.has_table(&namespace)).await;
    assert!(!stage.has_verdict(&namespace).await);
    stage.put(&cluster_role(), whole).await;
    until("the verdict", || stage.has_verdict(&namespace)).await;
}

async fn without_writing_events(stage: &Stage) {
    let mark = stage.mark();
    let whole = stage.without(&cluster_role(), "events", "create").await;
    let namespace = stage.route("untold").await;
    until("the verdict", || stage.has_verdict(&namespace)).await;
    stage
        .reports(mark, &[&namespace, "cannot publish an event", "forbidden"])
        .await;
    stage.put(&cluster_role(), whole).await;
    let namespace = stage.route("told").await;
    until("the event", || stage.has_event(&namespace)).await;
}

async fn without_making_secrets(stage: &Stage) {
    let mark = stage.mark();
    let whole = stage.without(&role(), "secrets", "create").await;
    let leaf = Stage::own("/api/v1", &format!("secrets/{LEAF}"));
    stage.admin.delete(&leaf, &Value::Null).await.ok();
    stage.reports(mark, &["secrets", "forbidden"]).await;
    // What it serves with it still has.
    let namespace = stage.cluster.namespace("sealed");
    until("an injected pod", || stage.injects(&namespace)).await;
    stage.put(&role(), whole).await;
    until("the certificate", || stage.exists(&leaf)).await;
}

async fn without_publishing_the_authority(stage: &Stage) {
    let mark = stage.mark();
    let resource = "mutatingwebhookconfigurations";
    let whole = stage.without(&cluster_role(), resource, "patch").await;
    let path = format!("/apis/admissionregistration.k8s.io/v1/{resource}/nexus-operator");
    let mut configuration = stage.admin.get(&path).await.ok();
    let client = &mut configuration["webhooks"][0]["clientConfig"];
    client.as_object_mut().unwrap().remove("caBundle").unwrap();
    stage.admin.put(&path, &configuration).await.ok();
    stage.reports(mark, &[resource, "forbidden"]).await;
    let namespace = stage.cluster.namespace("unknown");
    assert!(!stage.injects(&namespace).await);
    stage.put(&cluster_role(), whole).await;
    until("an injected pod", || stage.injects(&namespace)).await;
}

async fn without_renewing_the_lease(stage: &Stage) {
    let mark = stage.mark();
    let whole = stage.without(&role(), "leases", "update").await;
    stage.reports(mark, &["leases", "forbidden"]).await;
    until("the end of the lead", || async { !stage.leads() }).await;
    // Told once whatever was under way is ended.
    stage.reports(mark, &["the Lease is lost"]).await;
    let audit = stage.cluster.audit();
    let namespace = stage.route("led").await;
    assert!(stage.injects(&namespace).await);
    // A controller that goes on writes a tenth of it later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!stage.has_table(&namespace).await);
    let tried = audit.writes();
    let of_controller =
        |call: &&Call| call.resource == "configmaps" || call.resource == "nexusroutes/status";
    let tried: Vec<&Call> = tried.iter().filter(of_controller).collect();
    assert!(tried.is_empty(), "{tried:?}");
    stage.put(&role(), whole).await;
    until("the lead", || async { stage.leads() }).await;
    until("the table", || stage.has_table(&namespace)).await;
}
