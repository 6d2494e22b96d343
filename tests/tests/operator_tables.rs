//! The ConfigMap of a namespace through a real API server: its form, its owner, and whether sidecars read it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::broker::Broker;
use nexus_tests::connection;
use nexus_tests::controlled::{Scene, file, pod, table};
use nexus_tests::mount::Mount;
use nexus_tests::sidecar::Sidecar;
use serde_json::{Value, json};

fn connections(number: u32) -> Value {
    json!({"connections": [{"connectionId": connection(number)}]})
}

/// Applies a route that is too large for kubectl's own record of it.
fn apply_on_server(scene: &Scene, fields: &Value) {
    let route = scene.route("api", fields).to_string();
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename=-",
    ];
    scene.cluster.kubectl_with(&apply, &route).ok();
}

#[test]
fn a_config_map_that_was_edited_or_deleted_is_put_back() {
    let scene = Scene::new("back");
    scene.apply(&scene.route("api", &connections(51))).ok();
    scene.until("api", "Accepted", "Programmed");
    let mut revision = scene.table().unwrap().revision;
    // The policy denies such edits to everybody else, and kubectl reads what it patches.
    scene
        .kubectl(&[
            "create",
            "rolebinding",
            "reads",
            "--clusterrole=view",
            "--serviceaccount=nexus-system:nexus-operator",
        ])
        .ok();
    let operator = "--as=system:serviceaccount:nexus-system:nexus-operator";
    for patch in [
        json!({"data": {"routes.json": "{}"}}),
        json!({"data": {"more.json": "{}"}}),
        json!({"data": {"routes.json": null}, "binaryData": {"routes.json.gz": "e30="}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}),
        json!({"immutable": true}),
    ] {
        let text = patch.to_string();
        let edit = [
            "patch",
            "configmap",
            "nexus-routes",
            "--type=merge",
            operator,
            "--patch",
            &text,
        ];
        scene.kubectl(&edit).ok();
        scene.wait(&format!("no trace of {patch}"), || {
            let Some(config_map) = scene.config_map() else {
                return Err("none".to_owned());
            };
            let own = config_map["data"]
                .as_object()
                .is_some_and(|data| data.len() == 1);
            let label = &config_map["metadata"]["labels"]["app.kubernetes.io/managed-by"];
            if own
                && label == "nexus-operator"
                && config_map["binaryData"].is_null()
                && config_map["immutable"].is_null()
                && table(&config_map).revision > revision
            {
                return Ok(());
            }
            Err(config_map.to_string())
        });
        revision = scene.table().unwrap().revision;
    }
    scene.kubectl(&["delete", "configmap", "nexus-routes"]).ok();
    scene.until_table("a new one", |table| {
        table.revision > revision && table.routes.len() == 1
    });
}

/// What the operator relies on when it writes a first table: whoever wrote one meanwhile is not overwritten.
#[test]
fn to_apply_over_the_version_of_nothing_makes_an_object_and_replaces_none() {
    let scene = Scene::new("first");
    let apply = |value: &str| {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "any", "namespace": scene.namespace, "resourceVersion": "1"},
            "data": {"key": value},
        });
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--filename=-",
        ];
        scene.cluster.kubectl_with(&apply, &object.to_string())
    };
    apply("first").ok();
    let said = apply("second").refused();
    assert!(said.contains("the object has been modified"), "{said}");
    let object = scene.cluster.get(&scene.namespace, "configmap", "any");
    assert_eq!(object.unwrap()["data"]["key"], "first");
}

#[test]
fn a_table_that_somebody_owns_too_changes_its_form_all_the_same() {
    let scene = Scene::new("owned");
    let tenants = |count: u32| -> Value {
        let entry = |number| json!({"tenant": format!("tenant-{number:040}"), "connectionId": connection(200_000 + number)});
        json!({"connections": (0..count).map(entry).collect::<Vec<_>>()})
    };
    for (count, name) in [
        (1, "routes.json"),
        (5000, "routes.json.gz"),
        (2, "routes.json"),
    ] {
        // The same words, so that nothing denies them; whoever applies them owns them as well.
        if let Some(config_map) = scene.config_map() {
            let mut same = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "nexus-routes", "namespace": scene.namespace},
            });
            for part in ["data", "binaryData"] {
                same[part] = config_map[part].clone();
            }
            let apply = [
                "apply",
                "--server-side",
                "--field-manager=other",
                "--filename=-",
            ];
            scene.cluster.kubectl_with(&apply, &same.to_string()).ok();
        }
        apply_on_server(&scene, &tenants(count));
        scene.wait(&format!("{name} alone"), || {
            let Some(config_map) = scene.config_map() else {
                return Err("none".to_owned());
            };
            let keys: Vec<String> = ["data", "binaryData"]
                .iter()
                .filter_map(|part| config_map[part].as_object())
                .flat_map(|part| part.keys().cloned())
                .collect();
            let connections = || {
                table(&config_map)
                    .routes
                    .first()
                    .map(|it| it.connections.len())
            };
            if keys == [name] && connections() == usize::try_from(count).ok() {
                return Ok(());
            }
            Err(format!("{keys:?}"))
        });
    }
}

#[test]
fn a_table_stays_empty_as_long_as_a_sidecar_may_read_it() {
    let scene = Scene::new("empty");
    scene.apply(&scene.route("api", &connections(61))).ok();
    scene.until("api", "Accepted", "Programmed");
    assert_eq!(scene.table().unwrap().format, nexus_crds::table::FORMAT);

    // It reads what the first version read, and gets it.
    scene.pod("old", &json!({"version": 1, "labels": {"app": "a"}}));
    scene.until_table("the oldest format", |table| table.format == 1);
    let newest = nexus_crds::table::FORMAT;
    scene.pod(
        "new",
        &json!({"version": 1, "tableFormat": newest, "sidecarVersion": "9.9.9"}),
    );
    let selected = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "connections": [{"connectionId": connection(62)}],
    });
    scene.apply(&scene.route("api", &selected)).ok();
    scene.wait("one of two pods", || {
        match &scene.seen("api")["status"]["boundPods"] {
            count if *count == 1 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    let counted = |version: &str| scene.operator.metric("nexus_operator_sidecars", &[version]);
    scene.wait("both versions", || {
        match (counted("9.9.9"), counted("unknown")) {
            (new, old) if new >= 1.0 && old >= 1.0 => Ok(()),
            counts => Err(format!("{counts:?}")),
        }
    });

    scene.kubectl(&["delete", "nxr", "api"]).ok();
    let empty = scene.until_table("an empty table", |table| table.routes.is_empty());
    scene
        .kubectl(&["delete", "pod", "old", "--grace-period=0", "--force"])
        .ok();
    let raised = scene.until_table("the newest format", |table| table.format == newest);
    assert!(raised.revision > empty.revision && raised.routes.is_empty());
    scene
        .kubectl(&["delete", "pod", "new", "--grace-period=0", "--force"])
        .ok();
    scene.wait("no ConfigMap", || match scene.config_map() {
        None => Ok(()),
        Some(left) => Err(left.to_string()),
    });
}

#[test]
fn a_pod_that_passed_no_webhook_is_not_believed() {
    let scene = Scene::new("believed");
    scene.apply(&scene.route("api", &connections(63))).ok();
    scene.until("api", "Accepted", "Programmed");
    // Without the annotation no webhook is called, so that the rest is its author's.
    for (name, inject) in [("unasked", None), ("refused", Some("false"))] {
        let admitted = json!({"version": 1, "sidecarVersion": "6.6.6"}).to_string();
        let mut annotations = json!({"nexus.io/admitted": admitted});
        if let Some(inject) = inject {
            annotations["nexus.io/inject"] = inject.into();
        }
        let metadata = json!({"labels": {"nexus.io/sidecar": "true"}, "annotations": annotations});
        scene.apply(&pod(&scene.namespace, name, &metadata)).ok();
    }
    let newest = nexus_crds::table::FORMAT;
    let admitted = json!({"version": 1, "tableFormat": newest, "sidecarVersion": "7.7.7"});
    scene.pod("true", &admitted);
    let counted = |version: &str| scene.operator.metric("nexus_operator_sidecars", &[version]);
    // It was created last, so that the others were seen before it.
    scene.wait("the pod", || match counted("7.7.7") {
        count if count >= 1.0 => Ok(()),
        count => Err(count.to_string()),
    });
    assert!(!scene.operator.metrics().contains("6.6.6"));
    // This reconcile is after the count.
    scene.apply(&scene.route("api", &connections(64))).ok();
    let table = scene.until_table("the other connection", |table| {
        table.routes[0].connections[0].id.to_string() == connection(64)
    });
    assert_eq!(table.format, newest);
    let route = scene.until("api", "Accepted", "Programmed");
    assert_eq!(route["status"]["boundPods"], 1);
}

/// The real sidecar on a folder that is filled as the kubelet fills the volume of a ConfigMap.
#[tokio::test(flavor = "multi_thread")]
async fn the_real_sidecar_loads_every_table_that_is_written() {
    let scene = Scene::new("load");
    let broker = Broker::gateway().await;
    let mut mount = Mount::new(&[]);
    let sidecar = Sidecar::run()
        .control(&broker)
        .routes_in(mount.folder())
        .start()
        .await;
    // Enough for compression in either format.
    let many: Vec<Value> = (0..5000)
        .map(|number| json!({"tenant": format!("tenant-{number:040}"), "connectionId": connection(100_000 + number)}))
        .collect();
    let few =
        |number| json!({"connections": [{"tenant": "tenant", "connectionId": connection(number)}]});
    let last = format!("tenant-{:040}", 4999);
    for (oldest, name, fields, tenant, id) in [
        (false, "routes.json", few(71), "tenant", 71),
        (
            false,
            "routes.json.gz",
            json!({"connections": many}),
            last.as_str(),
            104_999,
        ),
        (
            true,
            "routes.json.gz",
            json!({"connections": many}),
            last.as_str(),
            104_999,
        ),
        (true, "routes.json", few(72), "tenant", 72),
    ] {
        if oldest {
            scene.pod("old", &json!({"version": 1}));
        }
        apply_on_server(&scene, &fields);
        let format = if oldest { 1 } else { nexus_crds::table::FORMAT };
        let count = fields["connections"].as_array().unwrap().len();
        let table = scene.until_table(&format!("{name} in format {format}"), |table| {
            table.format == format
                && table
                    .routes
                    .first()
                    .is_some_and(|route| route.connections.len() == count)
        });
        let (found, bytes) = file(&scene.config_map().unwrap());
        assert_eq!(found, name);
        mount.replace(&[(name, &bytes)]);
        let loaded = format!("revision {} of {name} in format {format}", table.revision);
        nexus_tests::wait::within(&loaded, async {
            while sidecar.admin().get("/readyz").send().await.json()["revision"] != table.revision {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        // The control plane is asked for this very connection, and does not have it.
        let ask = |tenant: &str| {
            let call = sidecar.agent().get("/");
            call.provider(&scene.namespace).tenant(tenant).send()
        };
        assert_eq!(ask("nobody").await.error(), "tenant_forbidden");
        let before = broker.calls(&connection(id));
        assert_eq!(ask(tenant).await.error(), "connection_unknown", "{loaded}");
        assert_eq!(broker.calls(&connection(id)), before + 1);
        let folder = scene
            .cluster
            .scratch(&format!("load-{name}-{format}-{count}"));
        std::fs::write(folder.join(found), bytes).unwrap();
        let check = nexus_tests::sidecar::command(["check".as_ref(), folder.as_os_str()])
            .output()
            .unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );
    }
}
