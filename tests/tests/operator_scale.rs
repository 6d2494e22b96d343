//! Thousands of routes and tenants through a real API server: what the operator makes of them, and what it costs by
//! the API server's own audit log.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::ops::Deref;
use std::time::{Duration, Instant};

use nexus_crds::names::ROUTES_CONFIG_MAP;
use nexus_tests::apiserver::{Audit, Call};
use nexus_tests::controlled::{condition, file, provider, route, table};
use nexus_tests::operator::Operator;
use nexus_tests::sidecar;
use nexus_tests::turn::Turn;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(5);
/// Clients that write at the same time.
const CLIENTS: usize = 16;
/// Counts of pods and sweeps happen several times in every test, and change nothing.
const ARGUMENTS: [&str; 2] = ["--bound-pods-interval=1s", "--pod-sweep-interval=1s"];
/// How long nothing may be written until everything counts as settled.
const QUIET: Duration = Duration::from_secs(3);
const ROUTES: &str = "/apis/nexus.io/v1alpha1/nexusroutes";
const PROVIDER: &str = "shop";
/// New routes of a namespace in a round of a burst.
const PER_ROUND: usize = 10;

/// Shows figures also of a test that passes: the test harness keeps back only what the printing macros write.
fn show(line: fmt::Arguments<'_>) {
    writeln!(std::io::stderr().lock(), "{line}").unwrap();
}

/// Every test needs the operator for itself.
struct Scene(Turn);

impl Deref for Scene {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.0
    }
}

impl Scene {
    async fn new() -> Self {
        let scene = Self(Turn::new(&[("routes.inlineUpstreams", "allow")]).await);
        scene.cluster.apply(&provider(PROVIDER).to_string()).ok();
        scene
    }

    /// Starts the operator, and waits until it writes.
    async fn start(&self) -> Operator {
        let port = self.installation.port();
        let operator = self.installation.start_with("operator-0", port, &ARGUMENTS);
        let start = Instant::now();
        while operator.metric("nexus_operator_leader", &[]) < 0.5 {
            assert!(start.elapsed() < LIMIT, "{}", operator.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        operator
    }

    /// Makes so many namespaces.
    async fn namespaces(&self, prefix: &str, count: usize) -> Vec<String> {
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        let requests = names.iter().map(|name| Request {
            method: Method::Post,
            path: "/api/v1/namespaces".to_owned(),
            body: json!({"metadata": {"name": name}}),
        });
        self.send(requests.collect()).await;
        names
    }

    /// Sends requests by several clients, each of which must succeed.
    async fn send(&self, requests: Vec<Request>) {
        let mut clients = JoinSet::new();
        let mut shares: Vec<Vec<Request>> = (0..CLIENTS).map(|_| Vec::new()).collect();
        for (number, request) in requests.into_iter().enumerate() {
            shares[number % CLIENTS].push(request);
        }
        for share in shares {
            let admin = self.admin.clone();
            clients.spawn(async move {
                for Request { method, path, body } in share {
                    let answer = match method {
                        Method::Post => admin.post(&path, &body).await,
                        Method::Merge => admin.merge(&path, &body).await,
                        Method::Delete => admin.delete(&path, &Value::Null).await,
                    };
                    answer.ok();
                }
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }

    /// The routes of these namespaces.
    async fn routes(&self, namespaces: &[String]) -> Vec<Value> {
        let mut list = self.admin.get(ROUTES).await.ok();
        let Value::Array(mut routes) = list["items"].take() else {
            panic!("no list: {list}");
        };
        let namespaces: BTreeSet<&str> = namespaces.iter().map(String::as_str).collect();
        routes.retain(|route| namespaces.contains(text(&route["metadata"]["namespace"])));
        routes
    }

    /// Waits until so many routes have these reasons, for their present generations.
    async fn until(
        &self,
        operator: &Operator,
        namespaces: &[String],
        expected: &BTreeMap<(&str, &str), usize>,
    ) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let routes = self.routes(namespaces).await;
            let mut found = BTreeMap::new();
            for route in &routes {
                *found.entry(verdict(route)).or_insert(0) += 1;
            }
            if found == *expected {
                return routes;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{found:?} instead of {expected:?}\n{}",
                operator.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until nothing was written for a while.
    async fn settle(&self, operator: &Operator) {
        let start = Instant::now();
        loop {
            let audit = self.cluster.audit();
            tokio::time::sleep(QUIET).await;
            let writes = of_routes(&audit);
            if writes.is_empty() {
                return;
            }
            assert!(
                start.elapsed() < LIMIT,
                "it writes on: {writes:?}\n{}",
                operator.log()
            );
        }
    }

    /// Deletes the routes of namespaces, and waits until their tables are gone.
    async fn clear(&self, operator: &Operator, namespaces: &[String]) {
        let requests = namespaces.iter().map(|namespace| Request {
            method: Method::Delete,
            path: routes_of(namespace),
            body: Value::Null,
        });
        self.send(requests.collect()).await;
        let start = Instant::now();
        let path = format!("/api/v1/configmaps?fieldSelector=metadata.name={ROUTES_CONFIG_MAP}");
        loop {
            let left = self.admin.get(&path).await.ok();
            let left = left["items"].as_array().unwrap().len();
            if left == 0 {
                return;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{left} tables left\n{}",
                operator.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn table(&self, namespace: &str) -> nexus_crds::table::RouteTable {
        let config_map = self.cluster.get(namespace, "configmap", ROUTES_CONFIG_MAP);
        table(&config_map.expect("there is a table"))
    }
}

struct Request {
    method: Method,
    path: String,
    body: Value,
}

enum Method {
    Post,
    Merge,
    Delete,
}

fn routes_of(namespace: &str) -> String {
    format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The reasons of a route's conditions, as far as they speak of its present generation.
fn verdict(route: &Value) -> (&'static str, &'static str) {
    const REASONS: [&str; 8] = [
        "Accepted",
        "ProviderConflict",
        "DuplicateTenant",
        "OriginNotGranted",
        "ConnectionClaimed",
        "Programmed",
        "Pending",
        "TableTooLarge",
    ];
    let reason = |type_| {
        let condition = condition(route, type_);
        let current = condition["observedGeneration"] == route["metadata"]["generation"];
        let known = |reason: &&&str| current && condition["reason"] == **reason;
        REASONS.iter().find(known).copied().unwrap_or_default()
    };
    (reason("Accepted"), reason("Programmed"))
}

const GOOD: (&str, &str) = ("Accepted", "Programmed");

/// Writes of what routes are about.
fn of_routes(audit: &Audit) -> Vec<Call> {
    let mut writes = audit.writes();
    writes.retain(|call| call.resource != "leases");
    writes
}

fn count(calls: &[Call], resource: &str) -> usize {
    calls.iter().filter(|call| call.wrote(resource)).count()
}

/// Calls by what they were and how they ended, for a person to read.
fn summary(calls: &[Call]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for call in calls {
        *counts.entry(call.to_string()).or_default() += 1;
    }
    let lines = counts.iter().map(|(call, count)| format!("{count} {call}"));
    lines.collect::<Vec<_>>().join(", ")
}

/// An id as random as those of a real broker, which is what decides how well a table compresses.
fn random_id(random: &mut fastrand::Rng) -> String {
    let text = format!("{:032x}", random.u128(..));
    format!(
        "{}-{}-4{}-a{}-{}",
        &text[..8],
        &text[8..12],
        &text[13..16],
        &text[17..20],
        &text[20..]
    )
}

fn own_upstream(id: &str) -> Value {
    json!({
        "upstream": {"url": "https://api.example.com"},
        "connections": [{"connectionId": id}],
    })
}

/// So many routes, each of another provider, in so many namespaces: they converge, cost one status each, and after
/// that only what changes is written.
async fn converge(prefix: &str, spread: usize, total: usize) {
    let scene = Scene::new().await;
    let operator = scene.start().await;
    let namespaces = scene.namespaces(prefix, spread).await;
    let mut random = fastrand::Rng::with_seed(1);
    let requests = (0..total).map(|number| {
        let namespace = &namespaces[number % spread];
        let name = format!("api-{}", number / spread);
        Request {
            method: Method::Post,
            path: routes_of(namespace),
            body: route(
                namespace,
                &name,
                &name,
                &own_upstream(&random_id(&mut random)),
            ),
        }
    });
    let requests: Vec<Request> = requests.collect();
    let audit = scene.cluster.audit();
    let start = Instant::now();
    scene.send(requests).await;
    let created = start.elapsed();
    let all = BTreeMap::from([(GOOD, total)]);
    let routes = scene.until(&operator, &namespaces, &all).await;
    let converged = start.elapsed();
    scene.settle(&operator).await;
    let calls = audit.calls();
    show(format_args!(
        "{total} routes over {spread} namespaces: created in {created:.1?}, all programmed {:.1?} later; {}",
        converged.saturating_sub(created),
        summary(&calls)
    ));
    for namespace in &namespaces {
        assert_eq!(scene.table(namespace).routes.len(), total / spread);
    }
    // Each route has one verdict to be told, however many tables it took until all were there.
    assert_eq!(count(&calls, "nexusroutes/status"), total);
    let tables = count(&calls, "configmaps");
    assert!((spread..=total).contains(&tables), "{}", summary(&calls));

    let audit = scene.cluster.audit();
    let restarts = Instant::now();
    while restarts.elapsed() < QUIET {
        assert_eq!(of_routes(&audit), [], "nothing has changed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    for changed in [1, 10] {
        let audit = scene.cluster.audit();
        let requests = routes[..changed].iter().map(|route| {
            let namespace = text(&route["metadata"]["namespace"]);
            let name = text(&route["metadata"]["name"]);
            Request {
                method: Method::Merge,
                path: format!("{}/{name}", routes_of(namespace)),
                body: json!({"spec": own_upstream(&random_id(&mut random))}),
            }
        });
        scene.send(requests.collect()).await;
        scene.until(&operator, &namespaces, &all).await;
        scene.settle(&operator).await;
        let writes = of_routes(&audit);
        assert_eq!(
            count(&writes, "nexusroutes/status"),
            changed,
            "{}",
            summary(&writes)
        );
        let tables = count(&writes, "configmaps");
        assert!((1..=changed).contains(&tables), "{}", summary(&writes));
        assert_eq!(writes.len(), changed + tables, "{}", summary(&writes));
    }
    scene.clear(&operator, &namespaces).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_routes_over_a_hundred_namespaces_converge() {
    converge("spread", 100, 2000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_routes_of_one_namespace_converge() {
    converge("heap", 1, 2000).await;
}

/// As many tenants as one route may have.
const FULL: usize = 5000;

/// A route with so many tenants.
fn tenants(namespace: &str, name: &str, count: usize, random: &mut fastrand::Rng) -> Value {
    let connections = (0..count).map(|number| {
        json!({"tenant": format!("{name}-customer-{number}"), "connectionId": random_id(random)})
    });
    let connections: Vec<Value> = connections.collect();
    route(
        namespace,
        name,
        PROVIDER,
        &json!({"connections": connections}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tenants_of_one_provider_fit_into_two_tables_and_no_more_into_one() {
    let scene = Scene::new().await;
    let operator = scene.start().await;
    let namespaces = scene.namespaces("tenants", 2).await;
    let mut random = fastrand::Rng::with_seed(2);
    let apply = |object: &Value| {
        // What kubectl keeps of an object for its own applies would not fit into an annotation.
        let arguments = ["apply", "--server-side", "--filename=-"];
        scene
            .cluster
            .kubectl_with(&arguments, &object.to_string())
            .ok();
    };
    let audit = scene.cluster.audit();
    let start = Instant::now();
    for number in 0..20 {
        let namespace = &namespaces[number % 2];
        let name = format!("part-{:02}", number / 2);
        apply(&tenants(namespace, &name, FULL, &mut random));
    }
    let created = start.elapsed();
    let mut expected = BTreeMap::from([(GOOD, 20)]);
    scene.until(&operator, &namespaces, &expected).await;
    let converged = start.elapsed();
    scene.settle(&operator).await;
    show(format_args!(
        "100,000 tenants of 20 routes in 2 namespaces: applied in {created:.1?}, all programmed {:.1?} later; {}",
        converged.saturating_sub(created),
        summary(&audit.calls())
    ));
    for namespace in &namespaces {
        let config_map = scene.cluster.get(namespace, "configmap", ROUTES_CONFIG_MAP);
        let (name, bytes) = file(&config_map.unwrap());
        let table = scene.table(namespace);
        assert_eq!(table.routes.len(), 1, "the routes are one in the table");
        assert_eq!(table.routes[0].connections.len(), 50_000);
        let folder = scene.cluster.scratch(namespace);
        std::fs::write(folder.join(&name), &bytes).unwrap();
        let check = sidecar::command(["check".as_ref(), folder.as_os_str()])
            .output()
            .unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );
        show(format_args!(
            "{name} with 50,000 tenants: {} kB",
            bytes.len() / 1000
        ));
    }

    // What no longer fits is told to the youngest, and the others keep what they have.
    for (name, count) in [("part-20", 1000), ("part-21", FULL)] {
        apply(&tenants(&namespaces[0], name, count, &mut random));
    }
    expected.insert(GOOD, 21);
    expected.insert(("Accepted", "TableTooLarge"), 1);
    let routes = scene.until(&operator, &namespaces, &expected).await;
    let outside = routes
        .iter()
        .find(|route| verdict(route) != GOOD)
        .expect("one does not fit");
    assert_eq!(outside["metadata"]["name"], "part-21");
    let message = text(&condition(outside, "Programmed")["message"]);
    show(format_args!("told: {message}"));
    assert_eq!(
        scene.table(&namespaces[0]).routes[0].connections.len(),
        51_000
    );
    let gone = format!("{}/part-03", routes_of(&namespaces[0]));
    scene.admin.delete(&gone, &Value::Null).await.ok();
    let expected = BTreeMap::from([(GOOD, 21)]);
    scene.until(&operator, &namespaces, &expected).await;
    scene.clear(&operator, &namespaces).await;
}

/// One round of a burst: new routes, and of the round before one whose provider is wanted again, one that changes and one
/// that goes. `expected` becomes what the tables must hold in the end: connection by namespace and provider.
fn burst(
    namespaces: &[String],
    round: usize,
    random: &mut fastrand::Rng,
    expected: &mut BTreeMap<(String, String), String>,
) -> Vec<Request> {
    let mut requests = Vec::new();
    for namespace in namespaces {
        for number in 0..PER_ROUND {
            let name = format!("api-{round}-{number}");
            let id = random_id(random);
            requests.push(Request {
                method: Method::Post,
                path: routes_of(namespace),
                body: route(namespace, &name, &name, &own_upstream(&id)),
            });
            expected.insert((namespace.clone(), name), id);
        }
        if round > 0 {
            let before = round - 1;
            // Younger than the one whose provider it wants too.
            requests.push(Request {
                method: Method::Post,
                path: routes_of(namespace),
                body: route(
                    namespace,
                    &format!("later-{round}"),
                    &format!("api-{before}-0"),
                    &json!({"upstream": {"url": "https://other.example.com"}}),
                ),
            });
            let changed = format!("api-{before}-1");
            let id = random_id(random);
            requests.push(Request {
                method: Method::Merge,
                path: format!("{}/{changed}", routes_of(namespace)),
                body: json!({"spec": own_upstream(&id)}),
            });
            expected.insert((namespace.clone(), changed), id);
            let gone = format!("api-{before}-2");
            requests.push(Request {
                method: Method::Delete,
                path: format!("{}/{gone}", routes_of(namespace)),
                body: Value::Null,
            });
            expected.remove(&(namespace.clone(), gone));
        }
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_in_the_middle_of_a_burst_ends_where_it_would_have_ended() {
    const NAMESPACES: usize = 10;
    const ROUNDS: usize = 4;
    let scene = Scene::new().await;
    let mut operator = scene.start().await;
    let namespaces = scene.namespaces("burst", NAMESPACES).await;
    let mut random = fastrand::Rng::with_seed(3);
    let mut expected: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut within = 0;
    for round in 0..ROUNDS {
        let mut requests = burst(&namespaces, round, &mut random, &mut expected);
        // Killed while the second half of each round arrives and the first is being written.
        let late = requests.split_off(requests.len() / 2);
        scene.send(requests).await;
        let all_sent = Cell::new(false);
        let sending = async {
            scene.send(late).await;
            all_sent.set(true);
        };
        let ((), audit) = tokio::join!(sending, async {
            let audit = scene.cluster.audit();
            let start = Instant::now();
            while of_routes(&audit).is_empty() {
                assert!(start.elapsed() < LIMIT, "{}", operator.log());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            operator.kill();
            within += u32::from(!all_sent.get());
            audit
        });
        show(format_args!("killed after {}", summary(&of_routes(&audit))));
        operator = scene.start().await;
    }
    assert!(within > 0, "it was never killed in the middle of a burst");

    let total = expected.len();
    let reasons = BTreeMap::from([
        (GOOD, total),
        (("ProviderConflict", "Pending"), NAMESPACES * (ROUNDS - 1)),
    ]);
    scene.until(&operator, &namespaces, &reasons).await;
    scene.settle(&operator).await;
    let mut found = BTreeMap::new();
    for namespace in &namespaces {
        for route in scene.table(namespace).routes {
            let key = (namespace.clone(), route.provider);
            found.insert(key, route.connections[0].id.to_string());
        }
    }
    assert_eq!(found, expected);

    // One that has seen nothing of all this finds nothing to write.
    operator.kill();
    let audit = scene.cluster.audit();
    let operator = scene.start().await;
    scene.settle(&operator).await;
    assert_eq!(of_routes(&audit), []);
    scene.clear(&operator, &namespaces).await;
}
