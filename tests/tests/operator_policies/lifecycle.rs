//! Controllers, kubelets and the garbage collector do their work in spite of the policies.

use nexus_tests::policies::{Scene, injected, until};
use serde_json::{Value, json};

use super::changed;

#[tokio::test]
async fn a_job_ends_and_leaves_nothing() {
    let scene = Scene::new("job").await;
    let template = {
        let mut pod = injected();
        pod["metadata"].as_object_mut().unwrap().remove("name");
        pod["spec"]["restartPolicy"] = "Never".into();
        json!({"metadata": pod["metadata"], "spec": pod["spec"]})
    };
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", scene.namespace);
    let job =
        json!({"metadata": {"name": "work"}, "spec": {"backoffLimit": 1, "template": template}});
    scene.mallory.post(&jobs, &job).await.ok();
    let pods = scene.core("pods?labelSelector=job-name%3Dwork");
    let list = || async {
        let list = scene.admin.get(&pods).await.ok();
        list["items"].as_array().unwrap().clone()
    };
    until("the Job's pod", || async { !list().await.is_empty() }).await;
    let pod = list().await.remove(0);
    assert_eq!(
        pod["metadata"]["finalizers"],
        json!(["batch.kubernetes.io/job-tracking"])
    );
    let name = pod["metadata"]["name"].as_str().unwrap();
    let status = json!({"status": {"phase": "Succeeded"}});
    let path = scene.core(&format!("pods/{name}/status"));
    scene.kubelet.merge(&path, &status).await.ok();
    let complete = || async {
        let job = scene.admin.get(&format!("{jobs}/work")).await.ok();
        job["status"]["succeeded"] == 1
    };
    until("the Job's end", complete).await;
    let released = || async { list().await[0]["metadata"]["finalizers"].is_null() };
    until("the finalizer's end", released).await;
    let options = json!({"propagationPolicy": "Foreground"});
    scene
        .mallory
        .delete(&format!("{jobs}/work"), &options)
        .await
        .ok();
    until("the pod's end", || async { list().await.is_empty() }).await;
}

#[tokio::test]
async fn a_workload_cannot_project_the_token_either() {
    let scene = Scene::new("workload").await;
    let mut pod = changed("/metadata/annotations", json!({"nexus.io/inject": "false"}));
    pod["metadata"].as_object_mut().unwrap().remove("name");
    let deployment = json!({"metadata": {"name": "thief"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}},
        "template": {"metadata": pod["metadata"], "spec": pod["spec"]},
    }});
    let deployments = format!("/apis/apps/v1/namespaces/{}/deployments", scene.namespace);
    scene.mallory.post(&deployments, &deployment).await.ok();
    let told = || async {
        let deployment = scene.admin.get(&format!("{deployments}/thief")).await.ok();
        let conditions = deployment["status"]["conditions"].to_string();
        conditions.contains("ReplicaFailure") && conditions.contains("nexus-pod-create")
    };
    until("the Deployment's condition", told).await;
    let pods = scene.admin.get(&scene.core("pods")).await.ok();
    assert_eq!(pods["items"], json!([]));
}

#[tokio::test]
async fn a_namespace_goes_with_everything_in_it() {
    let scene = Scene::new("end").await;
    scene.injected("agent").await;
    let table = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nexus-routes"}, "data": {}});
    let path = scene.core("configmaps/nexus-routes");
    scene.operator.apply(&path, &table).await.ok();
    let namespace = format!("/api/v1/namespaces/{}", scene.namespace);
    scene.admin.delete(&namespace, &Value::Null).await.ok();
    let gone = || async { scene.admin.get(&namespace).await.code == 404 };
    until("the namespace's end", gone).await;
}

#[tokio::test]
async fn a_pod_with_thousands_of_annotations_costs_no_more_than_is_allowed() {
    let scene = Scene::new("cost").await;
    let mut pod = injected();
    let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
    for number in 0..3000 {
        annotations.insert(format!("example.com/{number}"), "x".repeat(60).into());
    }
    scene.mallory.post(&scene.core("pods"), &pod).await.ok();
    let status = json!({"status": {"phase": "Running"}});
    scene
        .kubelet
        .merge(&scene.core("pods/agent/status"), &status)
        .await
        .ok();
}
