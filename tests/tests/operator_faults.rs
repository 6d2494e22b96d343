//! What goes wrong around the operator: objects that it cannot read, an admission that was not asked or said no, a
//! gateway that knows the providers.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::{Duration, Instant};

use nexus_tests::admission::annotated;
use nexus_tests::caller::Caller;
use nexus_tests::connection;
use nexus_tests::controlled::{condition, provider, route, table};
use nexus_tests::operator::{NAMESPACE, Operator};
use nexus_tests::raw::Message;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::turn::Turn;
use nexus_tests::upstream::{Refusal, Seen, Upstream};
use nexus_tests::wire;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(1);
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PROVIDERS: &str = "/apis/nexus.io/v1alpha1/nexusproviders";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nexus-operator";
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// A turn, and a namespace for it.
struct Scene {
    turn: Turn,
    namespace: String,
}

impl Deref for Scene {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.turn
    }
}

impl Scene {
    async fn new(prefix: &str) -> Self {
        let turn = Turn::new(&[]).await;
        let namespace = turn.cluster.namespace(prefix);
        turn.cluster.apply(&provider(&namespace).to_string()).ok();
        Self { turn, namespace }
    }

    fn start(&self) -> Operator {
        self.installation.start()
    }

    /// A route to a port of this machine.
    fn on_port(&self, name: &str, provider: &str, port: u16, number: u32) -> Value {
        let mut fields = one(number);
        fields["upstream"] = json!({
            "url": format!("http://127.0.0.1:{port}/{provider}"),
            "allowInsecure": true,
            "allowPrivateAddresses": true,
        });
        route(&self.namespace, name, provider, &fields)
    }

    fn routes(&self) -> String {
        format!(
            "/apis/nexus.io/v1alpha1/namespaces/{}/nexusroutes",
            self.namespace
        )
    }

    /// A route of this namespace's provider.
    fn route(&self, name: &str, fields: &Value) -> Value {
        route(&self.namespace, name, &self.namespace, fields)
    }

    async fn create(&self, route: &Value) {
        self.admin.post(&self.routes(), route).await.ok();
    }

    /// Stores a route as soon as the API server knows that what would refuse it is no longer there: it learns so by
    /// a watch, a moment after the deletion.
    async fn create_when_free(&self, route: &Value) {
        let start = Instant::now();
        loop {
            let answer = self.admin.post(&self.routes(), route).await;
            if answer.code == 201 {
                return;
            }
            assert!(start.elapsed() < LIMIT, "{}", answer.body);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn seen(&self, name: &str) -> Value {
        let path = format!("{}/{name}", self.routes());
        self.admin.get(&path).await.ok()
    }

    /// Waits until a route's conditions are these, for its present generation.
    async fn until(&self, operator: &Operator, name: &str, reasons: (&str, &str)) -> Value {
        let start = Instant::now();
        loop {
            let route = self.seen(name).await;
            let is = |type_, reason: &str| {
                let condition = condition(&route, type_);
                condition["reason"] == reason
                    && condition["observedGeneration"] == route["metadata"]["generation"]
            };
            if is("Accepted", reasons.0) && is("Programmed", reasons.1) {
                return route;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{name}: {} instead of {reasons:?}\n{}",
                route["status"],
                operator.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The names of the routes in the table.
    fn table(&self) -> Vec<String> {
        let config_map = self
            .cluster
            .get(&self.namespace, "configmap", "nexus-routes");
        let table = config_map.map(|config_map| table(&config_map));
        let routes = table.map(|table| table.routes).unwrap_or_default();
        routes.into_iter().map(|route| route.name).collect()
    }
}

/// The operator's rules with a verb of a resource taken away.
struct Less {
    rules: Value,
}

impl Less {
    /// Takes it away, and waits until `path` shows that the API server knows.
    async fn new(admin: &Caller, resource: &str, verb: &str, path: &str) -> Self {
        let mut role = admin.get(ROLE).await.ok();
        let rules = role["rules"].clone();
        let names = |rule: &Value| {
            rule["resources"]
                .as_array()
                .unwrap()
                .contains(&resource.into())
        };
        for rule in role["rules"].as_array_mut().unwrap() {
            if names(rule) {
                rule["verbs"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|one| one != verb);
            }
        }
        admin.put(ROLE, &role).await.ok();
        let operator = admin.service_account(NAMESPACE, "nexus-operator");
        let start = Instant::now();
        while operator.get(path).await.code != 403 {
            assert!(start.elapsed() < LIMIT, "the API server does not learn it");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { rules }
    }

    async fn back(self, admin: &Caller) {
        let mut role = admin.get(ROLE).await.ok();
        role["rules"] = self.rules;
        admin.put(ROLE, &role).await.ok();
    }
}

const GOOD: (&str, &str) = ("Accepted", "Programmed");

fn one(number: u32) -> Value {
    json!({"connections": [{"connectionId": connection(number)}]})
}

/// What only the webhook finds, not the schema.
fn mistake() -> Value {
    json!({"access": {"deny": [{"paths": ["/orders/{id"]}]}})
}

/// A copy that can be created again.
fn renewed(object: &Value) -> Value {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|field, _| field == "name" || field == "labels");
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_cannot_be_read_stop_nobody_and_are_told_so() {
    let scene = Scene::new("unreadable").await;
    let routes = Open::new(&scene.admin, "nexusroutes.nexus.io").await;
    let providers = Open::new(&scene.admin, "nexusproviders.nexus.io").await;
    let unreadable = |name: &str| {
        let mut route = scene.route(name, &one(1));
        route["spec"]["connections"] = json!("none");
        route
    };
    scene.create_when_free(&unreadable("first")).await;
    scene.create(&scene.route("before", &one(1))).await;
    let mut bad = provider("unreadable");
    bad["spec"]["origins"] = json!({"not": "a list"});
    let start = Instant::now();
    while scene.admin.post(PROVIDERS, &bad).await.code != 201 {
        assert!(start.elapsed() < LIMIT, "the schema stays as it was");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let operator = scene.start();
    scene.until(&operator, "before", GOOD).await;
    let told = scene
        .until(&operator, "first", ("InvalidValue", "Pending"))
        .await;
    let accepted = condition(&told, "Accepted");
    let message = accepted["message"].as_str().unwrap();
    assert!(message.contains("spec.connections: "), "{message}");
    assert_eq!(accepted["status"], "False");
    let start = Instant::now();
    let bad = format!("{PROVIDERS}/unreadable");
    loop {
        let provider = scene.admin.get(&bad).await.ok();
        let accepted = condition(&provider, "Accepted");
        if accepted["reason"] == "InvalidValue" {
            let message = accepted["message"].as_str().unwrap();
            assert!(message.contains("spec.origins: "), "{message}");
            break;
        }
        assert!(start.elapsed() < LIMIT, "{provider}\n{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Another one while the watch runs, past a webhook that would have refused it.
    let path = format!("{WEBHOOKS}/nexus-operator");
    let configuration = scene.admin.get(&path).await.ok();
    let refused = scene.admin.post(&scene.routes(), &unreadable("no")).await;
    assert!(refused.code >= 400, "{}", refused.body);
    scene.admin.delete(&path, &Value::Null).await.ok();
    scene.create_when_free(&unreadable("second")).await;
    let other = json!({"connections": [{"tenant": "u", "connectionId": connection(2)}]});
    scene.create(&scene.route("after", &other)).await;
    scene
        .until(&operator, "second", ("InvalidValue", "Pending"))
        .await;
    scene.until(&operator, "after", GOOD).await;
    let unreadable_objects = "nexus_operator_unreadable_objects";
    assert!((operator.metric(unreadable_objects, &["NexusRoute"]) - 2.0).abs() < 0.5);

    // One is mended, the other goes.
    let connections =
        json!({"spec": {"connections": [{"tenant": "t", "connectionId": connection(3)}]}});
    let second = format!("{}/second", scene.routes());
    scene.admin.merge(&second, &connections).await.ok();
    let first = format!("{}/first", scene.routes());
    scene.admin.delete(&first, &Value::Null).await.ok();
    scene.until(&operator, "second", GOOD).await;
    assert!(operator.metric(unreadable_objects, &["NexusRoute"]) < 0.5);

    scene.admin.delete(&bad, &Value::Null).await.ok();
    routes.close(&scene.admin).await;
    providers.close(&scene.admin).await;
    scene
        .admin
        .post(WEBHOOKS, &renewed(&configuration))
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_whose_status_cannot_be_read_keeps_no_other_from_being_served() {
    let scene = Scene::new("unseen").await;
    let schema = Open::new(&scene.admin, "nexusroutes.nexus.io").await;
    let mut bad = scene.route("bad", &one(51));
    bad["spec"]["connections"] = json!("none");
    scene.create_when_free(&bad).await;
    scene.create(&scene.route("good", &one(51))).await;
    let path = format!("{}/bad", scene.routes());
    let less = Less::new(&scene.admin, "nexusroutes", "get", &path).await;
    let operator = scene.start();
    scene.until(&operator, "good", GOOD).await;
    let start = Instant::now();
    let tells = |line: &str| {
        ["WARN", "cannot get NexusRoute bad", "forbidden"]
            .iter()
            .all(|word| line.contains(word))
    };
    while !operator.log().lines().any(tells) {
        assert!(start.elapsed() < LIMIT, "{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(scene.seen("bad").await["status"].is_null());
    assert_eq!(scene.table(), ["good"]);

    less.back(&scene.admin).await;
    scene
        .until(&operator, "bad", ("InvalidValue", "Pending"))
        .await;
    scene.admin.delete(&path, &Value::Null).await.ok();
    schema.close(&scene.admin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_controller_reads_is_not_waited_for_to_admit() {
    let scene = Scene::new("unlisted").await;
    let pods = format!("/api/v1/namespaces/{}/pods", scene.namespace);
    let tables = "/api/v1/configmaps?fieldSelector=metadata.name%3Dnexus-routes";
    for (number, resource, list) in [(61, "pods", "/api/v1/pods"), (62, "configmaps", tables)] {
        let less = Less::new(&scene.admin, resource, "list", list).await;
        // It is ready.
        let operator = scene.start();
        let pod = annotated(&format!("without-{resource}"));
        let pod = scene.admin.post(&pods, &pod).await.ok();
        assert_eq!(pod["spec"]["initContainers"][0]["name"], "nexus-sidecar");
        let mistake = scene.route("mistake", &mistake());
        let refused = scene.admin.post(&scene.routes(), &mistake).await;
        assert_eq!(refused.code, 403, "{}", refused.body);
        let start = Instant::now();
        while operator.metric("nexus_operator_leader", &[]) < 0.5 {
            assert!(start.elapsed() < LIMIT, "{}", operator.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        // The leader writes nothing before it knows what is there.
        let tenant = json!({"tenant": resource, "connectionId": connection(number)});
        let route = scene.route(resource, &json!({"connections": [tenant]}));
        scene.create(&route).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(scene.seen(resource).await["status"].is_null());
        less.back(&scene.admin).await;
        scene.until(&operator, resource, GOOD).await;
    }
}

/// A kind whose objects may be anything, as after an upgrade by which a field got another type.
struct Open {
    path: String,
    spec: Value,
}

impl Open {
    async fn new(admin: &Caller, name: &str) -> Self {
        let path = format!("{DEFINITIONS}/{name}");
        let mut definition = admin.get(&path).await.ok();
        let spec = definition["spec"].clone();
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        admin.put(&path, &definition).await.ok();
        Self { path, spec }
    }

    async fn close(self, admin: &Caller) {
        let mut definition = admin.get(&self.path).await.ok();
        definition["spec"] = self.spec;
        admin.put(&self.path, &definition).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_stored_without_the_webhook_and_judged_afterwards() {
    let scene = Scene::new("unasked").await;
    // Nothing listens where the webhook should be.
    scene.create(&scene.route("good", &one(11))).await;
    let stolen = json!({"upstream": {"url": "https://evil.example.com"}});
    scene.create(&scene.route("stolen", &stolen)).await;
    scene.create(&scene.route("mistake", &mistake())).await;
    let operator = scene.start();
    scene.until(&operator, "good", GOOD).await;
    scene
        .until(&operator, "stolen", ("OriginNotGranted", "Pending"))
        .await;
    let told = scene
        .until(&operator, "mistake", ("InvalidAccessRule", "Pending"))
        .await;
    let message = condition(&told, "Accepted")["message"].as_str().unwrap();
    assert!(
        message.contains("spec.access.deny[0].paths[0]"),
        "{message}"
    );
    assert_eq!(scene.table(), ["good"]);
    // The metric has the routes of the whole cluster, those that other tests left too.
    let start = Instant::now();
    loop {
        let all = scene.admin.get("/apis/nexus.io/v1alpha1/nexusroutes").await;
        let mut reasons: BTreeMap<String, f64> = BTreeMap::new();
        for route in all.ok()["items"].as_array().unwrap() {
            let reason = condition(route, "Accepted")["reason"].as_str();
            *reasons
                .entry(reason.unwrap_or("none").to_owned())
                .or_default() += 1.0;
        }
        let counted = |reason: &str| {
            let label = format!("reason=\"{reason}\"");
            operator.metric("nexus_operator_routes", &[&label])
        };
        let total = operator.metric("nexus_operator_routes", &[]);
        let same = reasons
            .iter()
            .all(|(reason, count)| (counted(reason) - count).abs() < 0.5);
        if same && (total - reasons.values().sum::<f64>()).abs() < 0.5 {
            assert!(reasons["OriginNotGranted"] >= 1.0 && reasons["InvalidAccessRule"] >= 1.0);
            break;
        }
        assert!(
            start.elapsed() < LIMIT,
            "{reasons:?}\n{}",
            operator.metrics()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // With the webhook there the same mistake is not stored.
    let refused = scene
        .admin
        .post(&scene.routes(), &scene.route("again", &mistake()))
        .await;
    assert_eq!(refused.code, 403, "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_one_webhook_configuration_the_other_is_served() {
    let scene = Scene::new("alone").await;
    let path = format!("{WEBHOOKS}/nexus-operator");
    let configuration = scene.admin.get(&path).await.ok();
    scene.admin.delete(&path, &Value::Null).await.ok();
    let operator = scene.start();
    let pods = format!("/api/v1/namespaces/{}/pods", scene.namespace);
    let pod = scene.admin.post(&pods, &annotated("agent")).await.ok();
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "nexus-sidecar");
    scene
        .create_when_free(&scene.route("stored", &mistake()))
        .await;
    let reasons = ("InvalidAccessRule", "Pending");
    scene.until(&operator, "stored", reasons).await;

    // One that appears without a caBundle gets it.
    let mut bare = renewed(&configuration);
    for webhook in bare["webhooks"].as_array_mut().unwrap() {
        let client = webhook["clientConfig"].as_object_mut().unwrap();
        client.remove("caBundle").unwrap();
    }
    scene.admin.post(WEBHOOKS, &bare).await.ok();
    let start = Instant::now();
    let mistake = scene.route("refused", &mistake());
    while scene.admin.post(&scene.routes(), &mistake).await.code != 403 {
        assert!(start.elapsed() < LIMIT, "{}", operator.log());
        let made = format!("{}/refused", scene.routes());
        scene.admin.delete(&made, &Value::Null).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_leaves_what_was_there() {
    let scene = Scene::new("refused").await;
    let operator = scene.start();
    scene.create(&scene.route("api", &one(21))).await;
    let before = scene.until(&operator, "api", GOOD).await;
    let mistake = scene.route("api", &mistake());
    let said = scene.cluster.apply(&mistake.to_string()).refused();
    assert!(
        said.contains("denied the request") && said.contains("paths"),
        "{said}"
    );
    assert_eq!(scene.seen("api").await, before);
    assert_eq!(scene.table(), ["api"]);
}

/// A gateway of `/base` that says of providers what was recorded.
fn providers() -> impl Fn(&Seen) -> Option<Refusal> + Send + Sync + 'static {
    let recorded = wire::response("health-providers", "gateway providers");
    let body = Message::all(&recorded).unwrap().remove(0).body;
    move |seen| {
        let known = seen.target == "/base/v1/providers";
        Some(if known {
            Refusal::new(200, body.clone())
        } else {
            Refusal::new(404, "404 page not found")
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_base_urls_grant_where_there_is_no_provider() {
    let serve = async |at: SocketAddr| Upstream::builder().at(at).gate(providers()).start().await;
    let gateway = serve(SocketAddr::from(([127, 0, 0, 1], 0))).await;
    let url = format!("{}/base/", gateway.url());
    let scene = Scene::new("gateway").await;
    let start = || {
        let gateway = format!("--gateway-url={url}");
        let arguments = [gateway.as_str(), "--allow-insecure-upstreams"];
        let port = scene.installation.port();
        scene
            .installation
            .start_with("operator-0", port, &arguments)
    };
    let operator = start();
    let wants =
        |name: &str, provider: &str, port: u16, number| scene.on_port(name, provider, port, number);
    scene
        .create(&wants("granted", "key-plain", 18060, 31))
        .await;
    scene
        .create(&wants("elsewhere", "key-query", 18061, 32))
        .await;
    scene.create(&wants("unknown", "nobody", 18060, 33)).await;
    scene.until(&operator, "granted", GOOD).await;
    for name in ["elsewhere", "unknown"] {
        let told = scene
            .until(&operator, name, ("OriginNotGranted", "Pending"))
            .await;
        let message = condition(&told, "Accepted")["message"].as_str().unwrap();
        assert!(message.contains("NexusProvider"), "{message}");
    }
    // An administrator's word counts instead of the gateway's.
    let mut stricter = provider("key-plain");
    stricter["spec"]["upstream"]["url"] = "https://api.example.com".into();
    scene.cluster.apply(&stricter.to_string()).ok();
    scene
        .until(&operator, "granted", ("OriginNotGranted", "Pending"))
        .await;
    scene.cluster.kubectl(&["delete", "nxp", "key-plain"]).ok();
    scene.until(&operator, "granted", GOOD).await;

    // Without it nothing is taken away, also not by one that never heard it; what is applied meanwhile waits.
    let before = scene.seen("granted").await;
    drop(operator);
    let address = gateway.addr();
    drop(gateway);
    let operator = start();
    let since = Instant::now();
    while !operator.log().contains("stay as they are until it answers") {
        assert!(since.elapsed() < LIMIT, "{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.create(&wants("late", "key-header", 18060, 34)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.seen("granted").await, before);
    assert_eq!(scene.table(), ["granted"]);
    let _gateway = serve(address).await;
    scene.until(&operator, "late", GOOD).await;
    assert_eq!(scene.table(), ["granted", "late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_authority_is_a_file_that_may_be_replaced() {
    let authority = Authority::new();
    let gateway = Upstream::builder()
        .tls(&authority, Leaf::Valid, &["http/1.1"])
        .gate(providers())
        .start()
        .await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, Authority::new().pem()).unwrap();
    let scene = Scene::new("authority").await;
    let url = format!("--gateway-url={}/base", gateway.url());
    let ca_flag = format!("--gateway-ca={}", ca.display());
    let arguments = [url.as_str(), &ca_flag, "--allow-insecure-upstreams"];
    let port = scene.installation.port();
    let operator = scene
        .installation
        .start_with("operator-0", port, &arguments);
    scene
        .create(&scene.on_port("granted", "key-plain", 18060, 35))
        .await;
    let since = Instant::now();
    while !operator.log().contains("stay as they are until it answers") {
        assert!(since.elapsed() < LIMIT, "{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(scene.seen("granted").await["status"], Value::Null);
    assert!(gateway.seen().is_empty(), "it was asked all the same");
    std::fs::write(&ca, authority.pem()).unwrap();
    scene.until(&operator, "granted", GOOD).await;
}
