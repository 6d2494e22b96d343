//! NexusRoutes through a real API server: what becomes of them in the ConfigMap, their conditions and events.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::broker::Broker;
use nexus_tests::connection;
use nexus_tests::controlled::{Scene, condition, file, wait};
use nexus_tests::sidecar::Sidecar;
use serde_json::{Value, json};

fn connections(number: u32) -> Value {
    json!({"connections": [{"connectionId": connection(number)}]})
}

fn reasons(scene: &Scene, route: &str) -> Vec<String> {
    let field = format!("--field-selector=regarding.kind=NexusRoute,regarding.name={route}");
    let answer = scene.kubectl(&["get", "events.events.k8s.io", &field, "--output=json"]);
    let list: Value = serde_json::from_str(&answer.ok()).unwrap();
    let events = list["items"].as_array().unwrap().iter();
    let told = |event: &Value| format!("{} {}", event["type"], event["reason"]).replace('"', "");
    events.map(told).collect()
}

#[test]
fn a_route_becomes_a_table_conditions_and_an_event() {
    let scene = Scene::new("life");
    scene.apply(&scene.route("api", &connections(1))).ok();
    let route = scene.until("api", "Accepted", "Programmed");
    assert_eq!(route["status"]["boundPods"], 0);
    assert_eq!(condition(&route, "Accepted")["status"], "True");
    let config_map = scene.config_map().unwrap();
    let labels = &config_map["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/managed-by"], "nexus-operator");
    assert!(config_map["metadata"]["ownerReferences"].is_null());
    assert_eq!(file(&config_map).0, "routes.json");
    let first = scene.table().unwrap();
    assert_eq!(first.routes[0].connections[0].id.to_string(), connection(1));
    scene.wait("an event", || match reasons(&scene, "api") {
        told if told == ["Normal Programmed"] => Ok(()),
        told => Err(format!("{told:?}")),
    });
    let columns = scene.kubectl(&["get", "nxr"]).ok();
    let cells = |line: usize| -> Vec<&str> {
        columns
            .lines()
            .nth(line)
            .unwrap()
            .split_whitespace()
            .collect()
    };
    let head = [
        "NAME",
        "PROVIDER",
        "UPSTREAM",
        "ACCEPTED",
        "PROGRAMMED",
        "PODS",
        "AGE",
    ];
    assert_eq!(cells(0), head);
    let row = ["api", &scene.namespace, "True", "True", "0"];
    assert_eq!(cells(1)[..5], row, "{columns}");

    // Another spec: another table with a higher revision, the same times, and nothing to tell.
    let patch = json!({"spec": connections(2)}).to_string();
    scene
        .kubectl(&["patch", "nxr", "api", "--type=merge", "--patch", &patch])
        .ok();
    let patched = scene.until("api", "Accepted", "Programmed");
    assert_eq!(patched["status"]["observedGeneration"], 2);
    let time = |route: &Value| condition(route, "Programmed")["lastTransitionTime"].clone();
    assert_eq!(time(&patched), time(&route));
    let second = scene.table().unwrap();
    assert_eq!(
        second.routes[0].connections[0].id.to_string(),
        connection(2)
    );
    assert!(second.revision > first.revision);

    // A mistake takes the route away and says so.
    let patch = json!({"spec": {"upstream": {"url": "https://evil.example.com"}}}).to_string();
    scene
        .kubectl(&["patch", "nxr", "api", "--type=merge", "--patch", &patch])
        .ok();
    let refused = scene.until("api", "OriginNotGranted", "Pending");
    let message = condition(&refused, "Accepted")["message"].as_str().unwrap();
    assert!(message.contains("https://evil.example.com"), "{message}");
    let columns = scene.kubectl(&["get", "nxr", "--no-headers"]).ok();
    let row = ["api", &scene.namespace, "https://evil.example.com", "False"];
    let cells: Vec<&str> = columns.split_whitespace().collect();
    assert_eq!(cells[..4], row, "{columns}");
    assert!(scene.table().unwrap().routes.is_empty());
    scene.wait("a warning", || {
        let told = reasons(&scene, "api");
        let found = told == ["Normal Programmed", "Warning OriginNotGranted"]
            || told == ["Warning OriginNotGranted", "Normal Programmed"];
        if found {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    });

    scene.kubectl(&["delete", "nxr", "api"]).ok();
    scene.wait("no ConfigMap", || match scene.config_map() {
        None => Ok(()),
        Some(left) => Err(left.to_string()),
    });
}

#[test]
fn what_can_be_judged_alone_is_refused_with_a_message() {
    let scene = Scene::new("schema");
    let url = |url: &str| json!({"upstream": {"url": url}});
    for (fields, message) in [
        (
            url("http://api.example.com"),
            "an http:// upstream needs allowInsecure: true",
        ),
        (json!({"provider": "Bad Name"}), "spec.provider"),
        (
            json!({"limits": {"burst": 3}}),
            "burst needs requestsPerSecond",
        ),
        (json!({"upstreams": {}}), "unknown field \"spec.upstreams\""),
    ] {
        let said = scene.apply(&scene.route("bad", &fields)).refused();
        assert!(said.contains(message), "{said}");
    }
    let mut unnamed = scene.route(&format!("{}-with-a-name", "x".repeat(60)), &json!({}));
    unnamed["spec"].as_object_mut().unwrap().remove("provider");
    let said = scene.apply(&unnamed).refused();
    assert!(
        said.contains("metadata.name is no provider name; set spec.provider"),
        "{said}"
    );
    assert!(scene.config_map().is_none());
}

#[test]
fn the_older_route_wins_a_conflict_and_the_newer_one_heals_when_it_goes() {
    let scene = Scene::new("conflict");
    scene.apply(&scene.route("older", &connections(11))).ok();
    scene.until("older", "Accepted", "Programmed");
    // Age is counted in seconds, and names decide within one.
    let mut other = connections(12);
    other["access"] = json!({"allow": [{"methods": ["GET"], "paths": ["/x"]}]});
    scene.apply(&scene.route("younger", &other)).ok();
    let younger = scene.until("younger", "ProviderConflict", "Pending");
    let message = condition(&younger, "Accepted")["message"].as_str().unwrap();
    assert!(message.contains("older"), "{message}");
    scene.kubectl(&["delete", "nxr", "older"]).ok();
    scene.until("younger", "Accepted", "Programmed");
    assert_eq!(scene.table().unwrap().routes[0].name, "younger");
}

#[test]
fn routes_that_differ_in_their_tenants_only_are_one_in_the_table() {
    let scene = Scene::new("merge");
    let tenant = |tenant: &str, number| json!({"connections": [{"tenant": tenant, "connectionId": connection(number)}]});
    scene.apply(&scene.route("a", &tenant("one", 21))).ok();
    scene.apply(&scene.route("b", &tenant("two", 22))).ok();
    scene.apply(&scene.route("c", &tenant("one", 23))).ok();
    scene.until("a", "Accepted", "Programmed");
    scene.until("b", "Accepted", "Programmed");
    scene.until("c", "DuplicateTenant", "Pending");
    let table = scene.until_table("both", |table| table.routes[0].connections.len() == 2);
    assert_eq!(table.routes.len(), 1);
    scene.kubectl(&["delete", "nxr", "a"]).ok();
    scene.until("c", "Accepted", "Programmed");
}

#[test]
fn a_connection_belongs_to_the_namespace_that_named_it_first_unless_it_is_shared() {
    let (first, second) = (Scene::new("claim"), Scene::new("claim"));
    first.apply(&first.route("mine", &connections(31))).ok();
    first.until("mine", "Accepted", "Programmed");
    second.apply(&second.route("theirs", &connections(31))).ok();
    let claimed = second.until("theirs", "ConnectionClaimed", "Pending");
    let message = condition(&claimed, "Accepted")["message"].as_str().unwrap();
    assert!(!message.contains(&first.namespace), "{message}");

    let annotate = |value: &str| {
        let arguments = [
            "annotate",
            "--overwrite",
            "namespace",
            &second.namespace,
            value,
        ];
        second.cluster.kubectl(&arguments).ok();
    };
    annotate(&format!("nexus.io/connections={}", connection(31)));
    second.until("theirs", "Accepted", "Programmed");
    annotate("nexus.io/connections-");
    second.until("theirs", "ConnectionClaimed", "Pending");
    annotate("nexus.io/connections=*");
    second.until("theirs", "Accepted", "Programmed");
    annotate("nexus.io/connections-");
    second.until("theirs", "ConnectionClaimed", "Pending");
    // It heals although nothing of its namespace changes.
    first.kubectl(&["delete", "nxr", "mine"]).ok();
    second.until("theirs", "Accepted", "Programmed");
}

#[test]
fn a_provider_that_goes_takes_its_grant_with_it() {
    let scene = Scene::new("grant");
    scene.apply(&scene.route("api", &connections(41))).ok();
    scene.until("api", "Accepted", "Programmed");
    let provider = || scene.cluster.get("", "nexusprovider", &scene.namespace);
    scene.wait("the provider's condition", || {
        let provider = provider().unwrap();
        match condition(&provider, "Accepted")["status"].as_str() {
            Some("True") => Ok(()),
            _ => Err(provider.to_string()),
        }
    });
    scene
        .cluster
        .kubectl(&["delete", "nxp", &scene.namespace])
        .ok();
    scene.until("api", "InvalidUpstream", "Pending");
    let mut bad = nexus_tests::controlled::provider(&scene.namespace);
    bad["spec"]["origins"] = json!(["https://*.com"]);
    let said = scene.apply(&bad).refused();
    assert!(said.contains("spec.origins[0]: is too wide"), "{said}");
    scene
        .apply(&nexus_tests::controlled::provider(&scene.namespace))
        .ok();
    scene.until("api", "Accepted", "Programmed");
}

#[test]
fn pods_that_ask_for_a_sidecar_and_have_none_are_found() {
    let scene = Scene::new("sweep");
    // As if the webhook had not been there: it does not look at pods of this namespace.
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "naked", "namespace": scene.namespace},
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    });
    scene.apply(&pod).ok();
    scene
        .kubectl(&["annotate", "pod", "naked", "nexus.io/inject=true"])
        .ok();
    scene.wait("the gauge", || {
        let name = "nexus_operator_annotated_pods_without_sidecar";
        match scene.operator.metric(name, &[]) {
            count if count >= 1.0 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    scene.wait("one event", || {
        let field = "--field-selector=reason=SidecarMissing,regarding.name=naked";
        let told = scene
            .kubectl(&["get", "events.events.k8s.io", field, "--output=name"])
            .ok();
        match told.lines().count() {
            1 => Ok(()),
            count => Err(count.to_string()),
        }
    });
}

#[test]
fn every_line_of_the_log_is_a_json_object() {
    let scene = Scene::new("log");
    scene.wait("a line of the controller", || {
        let log = scene.operator.log();
        // The last one may not be whole yet.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let lines: Vec<Value> = whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        for line in &lines {
            for field in ["timestamp", "level", "target", "message"] {
                assert!(line[field].is_string(), "no {field}: {line}");
            }
        }
        let found = lines.iter().any(|line| {
            line["level"] == "INFO"
                && line["target"] == "nexus_operator::controller"
                && line["message"] == "writing tables and conditions"
        });
        if found { Ok(()) } else { Err(whole.to_owned()) }
    });
}

#[test]
fn what_is_as_it_should_be_is_not_written_again() {
    let scene = Scene::new("still");
    scene.apply(&scene.route("api", &connections(81))).ok();
    scene.until("api", "Accepted", "Programmed");
    let versions = || {
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        [
            version(&scene.seen("api")),
            version(&scene.config_map().unwrap()),
        ]
    };
    let before = versions();
    // Several counts of pods, and a change that makes everything compile again.
    let other = Scene::new("still");
    other.apply(&other.route("api", &connections(82))).ok();
    other.until("api", "Accepted", "Programmed");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(versions(), before);

    // Somebody else's words in a condition are taken back.
    let patch =
        json!([{"op": "replace", "path": "/status/conditions/0/message", "value": "all is well"}]);
    let patch = patch.to_string();
    let edit = [
        "patch",
        "nxr",
        "api",
        "--subresource=status",
        "--type=json",
        "--patch",
        &patch,
    ];
    scene.kubectl(&edit).ok();
    wait("the condition", &scene.operator, || {
        let text = scene.seen("api")["status"].to_string();
        if text.contains("all is well") {
            Err(text)
        } else {
            Ok(())
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_asks_for_metrics_that_there_are() {
    let scene = Scene::new("dashboard");
    let broker = Broker::gateway().await;
    let sidecar = Sidecar::run().control(&broker).start().await;
    // A family without a sample is not shown.
    scene.apply(&scene.route("api", &connections(91))).ok();
    scene.pod("agent", &json!({"version": 1, "sidecarVersion": "9.9.8"}));
    scene.until("api", "Accepted", "Programmed");
    let operator = scene.wait("routes and sidecars", || {
        let metrics = scene.operator.metrics();
        let shown = ["nexus_operator_routes{", "nexus_operator_sidecars{"];
        if shown.iter().all(|family| metrics.contains(family)) {
            Ok(metrics)
        } else {
            Err(metrics)
        }
    });
    let served = sidecar.admin().get("/metrics").send().await.text() + &operator;
    let families: Vec<&str> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let values = [("metrics.dashboard.enabled", "true")];
    let objects = nexus_tests::chart::render(&values);
    let config_map = objects
        .iter()
        .find(|object| object["kind"] == "ConfigMap")
        .unwrap();
    let dashboard = config_map["data"]["nexus.json"].as_str().unwrap();
    serde_json::from_str::<Value>(dashboard).unwrap();
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let asked = dashboard
        .split(|c| !is_name(c))
        .filter(|word| word.starts_with("nexus_"));
    let mut count = 0;
    for name in asked {
        let family = name.strip_suffix("_total").or(name.strip_suffix("_bucket"));
        let family = family.unwrap_or(name);
        assert!(families.contains(&family), "{name} is none of {families:?}");
        count += 1;
    }
    assert!(count > 10, "{dashboard}");
}
