//! The chart's policies for pods: who may have the sidecars' token, and that what was decided at admission stays so.
//! There is no webhook here, so each pod arrives as it was sent.

use nexus_tests::policies::{REPOSITORY, Scene, assert_denied, injected, until};
use serde_json::{Value, json};

/// Merges as a JSON merge patch does.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn changed(pointer: &str, patch: Value) -> Value {
    let mut pod = injected();
    merge(
        pod.pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{pointer}")),
        patch,
    );
    pod
}

async fn assert_refused(scene: &Scene, pods: &[(Value, &str)]) {
    let path = scene.core("pods");
    for (pod, why) in pods {
        for caller in [&scene.mallory, &scene.admin] {
            let answer = caller.post(&path, pod).await;
            assert_denied(&answer, "nexus-pod-create", why);
        }
    }
}

async fn assert_accepted(scene: &Scene, pods: &[Value]) {
    let path = format!("{}?dryRun=All", scene.core("pods"));
    for pod in pods {
        let answer = scene.mallory.post(&path, pod).await;
        assert_eq!(answer.code, 201, "{} {pod}", answer.message());
    }
}

#[tokio::test]
async fn the_token_is_only_for_pods_that_the_webhook_is_called_for() {
    let scene = Scene::new("create").await;
    let why = "remove the volume, and give the pod the annotation nexus.io/inject";
    let other = json!([{"name": "other", "image": "localhost/x:1"}]);
    let mut ordinary = changed("/spec", json!({"initContainers": null}));
    let sidecar = json!({"name": "nexus-sidecar", "image": format!("{REPOSITORY}:1")});
    ordinary["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(sidecar);
    let pods = [
        (changed("/metadata", json!({"annotations": null})), why),
        (
            changed("/metadata/annotations", json!({"nexus.io/inject": null})),
            why,
        ),
        (
            changed("/metadata/annotations", json!({"nexus.io/inject": "false"})),
            why,
        ),
        (changed("/metadata", json!({"labels": null})), why),
        (
            changed("/metadata/labels", json!({"nexus.io/sidecar": "yes"})),
            why,
        ),
        (changed("/spec", json!({"initContainers": null})), why),
        (changed("/spec", json!({"initContainers": other})), why),
        (ordinary, why),
    ];
    assert_refused(&scene, &pods).await;
    assert_accepted(&scene, &[injected()]).await;

    // Where nothing is injected nobody can have it.
    for namespace in ["kube-system", "kube-node-lease", "nexus-system"] {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let answer = scene.admin.post(&path, &injected()).await;
        let why = format!("nothing is injected in the namespace {namespace}");
        assert_denied(&answer, "nexus-pod-create", &why);
    }
}

#[tokio::test]
async fn only_the_sidecar_mounts_the_token() {
    let scene = Scene::new("mount").await;
    let token = |audience: &str| {
        json!({"name": audience, "projected": {"sources": [
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"audience": audience, "path": "token"}},
        ]}})
    };
    let with = |pointer: &str, item: Value| {
        let mut pod = injected();
        let list = pod.pointer_mut(pointer).unwrap();
        list.as_array_mut().unwrap().push(item);
        pod
    };
    let mounting = |pointer: &str, volume: &str| {
        changed(
            pointer,
            json!({"volumeMounts": [{"name": volume, "mountPath": "/stolen"}]}),
        )
    };
    let mut second = with("/spec/volumes", token("nexus-gateway"));
    let mount = json!({"volumeMounts": [{"name": "nexus-gateway", "mountPath": "/stolen", "subPath": "token"}]});
    merge(&mut second["spec"]["containers"][0], mount);
    let pods = [
        (
            mounting("/spec/containers/0", "nexus-sidecar-auth"),
            "from the container agent",
        ),
        (
            mounting("/spec/initContainers/1", "nexus-sidecar-auth"),
            "from the container prepare",
        ),
        (second, "from the container agent"),
    ];
    assert_refused(&scene, &pods).await;

    let mut own = with("/spec/volumes", token("example"));
    let mount = json!({"volumeMounts": [{"name": "example", "mountPath": "/token"}]});
    merge(&mut own["spec"]["containers"][0], mount);
    let mut plain = changed("/metadata", json!({"annotations": null, "labels": null}));
    plain["spec"]["initContainers"] = json!([]);
    plain["spec"]["volumes"] = json!([token("example"), {"name": "scratch", "emptyDir": {}}]);
    let mut bare = plain.clone();
    bare["spec"]["volumes"] = json!([]);
    assert_accepted(&scene, &[own, plain, bare]).await;
}

#[tokio::test]
async fn the_sidecar_that_has_the_token_runs_an_image_of_the_repository() {
    let scene = Scene::new("image").await;
    let image = |image: String| changed("/spec/initContainers/0", json!({"image": image}));
    let digest = format!("@sha256:{}", "0123456789abcdef".repeat(4));
    let hostile = [
        "localhost/evil:1".to_owned(),
        "nexus-sidecar:1".to_owned(),
        REPOSITORY.to_owned(),
        format!("{REPOSITORY}-evil:1"),
        format!("{REPOSITORY}/evil:1"),
        format!("{REPOSITORY}:5000/evil:1"),
        format!("{REPOSITORY}:1/evil{digest}"),
        format!("{REPOSITORY}@sha256:/evil"),
        format!("{REPOSITORY}:1\nevil"),
        format!("evil/{REPOSITORY}:1"),
        format!("{REPOSITORY}.evil.test/x:1"),
    ];
    for image_name in hostile {
        let answer = scene
            .mallory
            .post(&scene.core("pods"), &image(image_name))
            .await;
        let why = "must run an image of ghcr.io/nexus/nexus-sidecar; leave it out";
        assert_denied(&answer, "nexus-pod-create", why);
    }
    let good = [":0.2.0-rc.1", ":latest", &digest, &format!(":1{digest}")];
    let pods = good.map(|rest| image(format!("{REPOSITORY}{rest}")));
    assert_accepted(&scene, &pods).await;
}

#[tokio::test]
async fn a_pod_that_has_the_token_shares_nothing_with_the_node() {
    let scene = Scene::new("host").await;
    for field in ["hostPID", "hostIPC", "hostNetwork", "shareProcessNamespace"] {
        let pods = [(changed("/spec", json!({field: true})), field)];
        assert_refused(&scene, &pods).await;
        assert_accepted(&scene, &[changed("/spec", json!({field: false}))]).await;
    }
}

#[tokio::test]
async fn tenants_are_within_those_of_the_namespace() {
    let scene = Scene::new("tenants").await;
    let tenants =
        |names: &str| changed("/metadata/annotations", json!({"nexus.io/tenants": names}));
    let none = changed("/metadata/annotations", json!({"nexus.io/tenants": null}));
    let limit = |names: Value| {
        let path = format!("/api/v1/namespaces/{}", scene.namespace);
        let patch = json!({"metadata": {"annotations": {"nexus.io/tenants": names}}});
        let admin = scene.admin.clone();
        async move { admin.merge(&path, &patch).await.ok() }
    };
    assert_accepted(&scene, &[tenants("any,thing"), none.clone()]).await;

    limit(json!(" a, b:1 ,c")).await;
    // The API server reads a namespace from its own watch.
    let pods = scene.core("pods?dryRun=All");
    let known = || async { scene.mallory.post(&pods, &tenants("z")).await.code == 403 };
    until("the limit", known).await;
    let why =
        "nexus.io/tenants names tenants that the annotation nexus.io/tenants of the namespace";
    let hostile = ["z", "a,z", "b", "A", "a b", " a, b:1 ,c,d"].map(|names| (tenants(names), why));
    assert_refused(&scene, &hostile).await;
    let good = ["a", "a,c", " c , b:1,", "", " a, b:1 ,c"].map(tenants);
    assert_accepted(&scene, &good).await;
    assert_accepted(&scene, &[none.clone()]).await;

    limit(json!("")).await;
    let known = || async { scene.mallory.post(&pods, &tenants("a")).await.code == 403 };
    until("the limit", known).await;
    assert_accepted(&scene, &[tenants(""), none]).await;

    // A whole list costs nothing, however long; a part of a long one may be too long to look up.
    let many: Vec<String> = (0..2000).map(|number| format!("tenant_{number}")).collect();
    limit(json!(many.join(","))).await;
    let known = || async { scene.mallory.post(&pods, &tenants("tenant_7")).await.code == 201 };
    until("the limit", known).await;
    assert_accepted(
        &scene,
        &[tenants(&many.join(",")), tenants(&many[1800..].join(","))],
    )
    .await;
    assert_refused(
        &scene,
        &[(tenants(&many[1000..].join(",")), "too long to compare")],
    )
    .await;
}

#[tokio::test]
async fn what_was_decided_at_admission_stays_so() {
    let scene = Scene::new("update").await;
    scene.injected("agent").await;
    let annotations = "annotations nexus.io/* of a pod with a Nexus sidecar are fixed for its life";
    let label = "the label nexus.io/sidecar is fixed";
    let image = "the image of the container nexus-sidecar is fixed";
    let metadata = [
        (
            json!({"annotations": {"nexus.io/admitted": r#"{"version":1,"tenants":["victim"]}"#}}),
            annotations,
        ),
        (
            json!({"annotations": {"nexus.io/admitted": null}}),
            annotations,
        ),
        (
            json!({"annotations": {"nexus.io/tenants": "victim"}}),
            annotations,
        ),
        (json!({"annotations": {"nexus.io/later": "x"}}), annotations),
        (json!({"annotations": null}), annotations),
        (json!({"labels": {"nexus.io/sidecar": "false"}}), label),
        (json!({"labels": {"nexus.io/sidecar": null}}), label),
    ];
    for caller in [&scene.mallory, &scene.admin, &scene.kubelet] {
        for path in ["pods/agent", "pods/agent/status"] {
            for (patch, why) in &metadata {
                let answer = caller
                    .merge(&scene.core(path), &json!({"metadata": patch}))
                    .await;
                if answer.message().contains("User \"system:node:") {
                    continue; // A kubelet may change only the status.
                }
                assert_denied(&answer, "nexus-pod-update", why);
            }
        }
    }
    let images = |sidecar: &str, agent: &str| {
        json!({"spec": {
            "initContainers": [{"name": "nexus-sidecar", "image": sidecar}],
            "containers": [{"name": "agent", "image": agent}],
        }})
    };
    let path = scene.core("pods/agent");
    for hostile in [
        "localhost/evil:1",
        &format!("{REPOSITORY}:0.0.9"),
        &format!("{REPOSITORY}-x:1"),
    ] {
        let answer = scene
            .mallory
            .strategic(&path, &images(hostile, "localhost/agent:1"))
            .await;
        assert_denied(&answer, "nexus-pod-update", image);
    }
    // Everything else is the business of whoever may change pods.
    let same = format!("{REPOSITORY}:0.1.0");
    scene
        .mallory
        .strategic(&path, &images(&same, "localhost/agent:2"))
        .await
        .ok();
    let others = json!({"annotations": {"team": "a"}, "labels": {"app": "b", "team": "a"}, "finalizers": ["example.com/x"]});
    scene
        .mallory
        .merge(&path, &json!({"metadata": others}))
        .await
        .ok();
    scene
        .mallory
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}});
    scene
        .kubelet
        .merge(&scene.core("pods/agent/status"), &status)
        .await
        .ok();
}

#[tokio::test]
async fn a_pod_without_a_sidecar_may_be_changed_as_ever() {
    let scene = Scene::new("plain").await;
    let plain = json!({
        "metadata": {"name": "plain"},
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    });
    scene.mallory.post(&scene.core("pods"), &plain).await.ok();
    for patch in [
        json!({"annotations": {"nexus.io/tenants": "a"}}),
        json!({"annotations": null}),
        json!({"annotations": {"nexus.io/admitted": "worth nothing: there is no token"}}),
    ] {
        let path = scene.core("pods/plain");
        scene
            .mallory
            .merge(&path, &json!({"metadata": patch}))
            .await
            .ok();
    }
    // From here on it is taken for one that has, and stays so.
    let path = scene.core("pods/plain/status");
    let answer = scene
        .mallory
        .merge(&path, &json!({"metadata": {"annotations": null}}))
        .await;
    assert_denied(&answer, "nexus-pod-update", "");
}

#[tokio::test]
async fn an_ephemeral_container_stays_beside_the_agent() {
    let scene = Scene::new("ephemeral").await;
    let pod = scene.injected("agent").await;
    let path = scene.core("pods/agent/ephemeralcontainers");
    let with = |container: &Value| {
        let mut pod = pod.clone();
        let mut debug = json!({"name": "debug", "image": "localhost/debug:1"});
        merge(&mut debug, container.clone());
        pod["spec"]["ephemeralContainers"] = json!([debug]);
        pod["metadata"]["resourceVersion"] = Value::Null;
        pod
    };
    let adding = |capability: &str| json!({"securityContext": {"capabilities": {"add": ["CHOWN", capability]}}});
    let near = "must neither target nexus-sidecar nor mount its volumes";
    let mighty = "must not be privileged or have the capabilities";
    for (container, why) in [
        (json!({"targetContainerName": "nexus-sidecar"}), near),
        (
            json!({"volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/stolen"}]}),
            near,
        ),
        (
            json!({"targetContainerName": "agent", "securityContext": {"privileged": true}}),
            mighty,
        ),
        (adding("NET_RAW"), mighty),
        (adding("CAP_NET_ADMIN"), mighty),
        (adding("sys_admin"), mighty),
        (adding("ALL"), mighty),
    ] {
        for caller in [&scene.mallory, &scene.admin] {
            let answer = caller.put(&path, &with(&container)).await;
            assert_denied(&answer, "nexus-pod-update", why);
        }
    }
    // As `kubectl debug --target=agent` makes it.
    let mut debug = adding("SYS_PTRACE");
    merge(
        &mut debug,
        json!({"targetContainerName": "agent", "stdin": true, "tty": true}),
    );
    scene.mallory.put(&path, &with(&debug)).await.ok();
}

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
