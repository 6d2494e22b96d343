//! Who writes the ConfigMaps that tables are in, and what else the operator may touch.

use nexus_tests::caller::Caller;
use nexus_tests::policies::{Scene, assert_denied, until};
use serde_json::{Value, json};

fn table(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"table": "forged"}})
}

async fn assert_table_denied(caller: &Caller, scene: &Scene) {
    let collection = scene.core("configmaps");
    let path = scene.core("configmaps/nexus-routes");
    let forged = table("nexus-routes");
    for answer in [
        caller.put(&path, &forged).await,
        caller.apply(&path, &forged).await,
        caller
            .merge(&path, &json!({"data": {"table": "forged"}}))
            .await,
        caller.merge(&path, &json!({"data": null})).await,
        caller
            .merge(&path, &json!({"binaryData": {"more": "eA=="}}))
            .await,
        caller.merge(&path, &json!({"immutable": true})).await,
    ] {
        assert_denied(
            &answer,
            "nexus-table",
            "change the NexusRoutes of the namespace",
        );
    }
    let answer = caller.post(&collection, &forged).await;
    assert_denied(
        &answer,
        "nexus-table",
        "written by the Nexus operator alone",
    );
}

#[tokio::test]
async fn a_table_is_written_by_the_operator_alone() {
    let scene = Scene::new("table").await;
    let path = scene.core("configmaps/nexus-routes");
    let mut real = table("nexus-routes");
    real["data"]["table"] = "compiled".into();
    for caller in [&scene.mallory, &scene.admin] {
        let answer = caller.apply(&path, &table("nexus-routes")).await;
        assert_denied(&answer, "nexus-table", "");
    }
    scene.operator.apply(&path, &real).await.ok();
    for caller in [&scene.mallory, &scene.admin] {
        assert_table_denied(caller, &scene).await;
    }
    assert_eq!(
        scene.admin.get(&path).await.ok()["data"]["table"],
        "compiled"
    );

    // No other ConfigMap, no metadata, no deletion is any of its business.
    let others = scene.core("configmaps");
    for metadata in [
        json!({"name": "other"}),
        json!({"generateName": "nexus-routes"}),
    ] {
        let mut other = table("other");
        other["metadata"] = metadata;
        scene.mallory.post(&others, &other).await.ok();
    }
    let labelled = json!({"metadata": {"labels": {"team": "a"}}});
    scene.mallory.merge(&path, &labelled).await.ok();
    for policy in ["Foreground", "Orphan", "Background"] {
        // The garbage collector takes the finalizers of the first two off by an update.
        let options = json!({"propagationPolicy": policy});
        scene.mallory.delete(&path, &options).await.ok();
        let gone = || async { scene.admin.get(&path).await.code == 404 };
        until(&format!("the end of a {policy} deletion"), gone).await;
        scene.operator.apply(&path, &real).await.ok();
    }
}

#[tokio::test]
async fn the_operator_reads_and_writes_no_other_config_map() {
    let scene = Scene::new("config-maps").await;
    let other = scene.core("configmaps/other");
    scene
        .admin
        .post(&scene.core("configmaps"), &table("other"))
        .await
        .ok();
    let operator = &scene.operator;
    for (call, answer) in [
        ("get", operator.get(&other).await),
        ("list", operator.get(&scene.core("configmaps")).await),
        ("list of all", operator.get("/api/v1/configmaps").await),
        ("apply", operator.apply(&other, &table("other")).await),
        ("delete", operator.delete(&other, &Value::Null).await),
        ("secrets", operator.get(&scene.core("secrets")).await),
        ("all secrets", operator.get("/api/v1/secrets").await),
        (
            "pod",
            operator
                .merge(
                    &scene.core("pods/x"),
                    &json!({"metadata": {"labels": {"a": "b"}}}),
                )
                .await,
        ),
    ] {
        assert_eq!(answer.code, 403, "{call}: {}", answer.message());
    }
    let ours = "configmaps?fieldSelector=metadata.name%3Dnexus-routes";
    operator.get(&format!("/api/v1/{ours}")).await.ok();
}
