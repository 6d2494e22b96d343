//! Which pods may have the sidecars' token, and what else they may be.

use nexus_tests::policies::{REPOSITORY, Scene, assert_denied, injected, until};
use serde_json::{Value, json};

use super::{changed, merge};

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
    let mut empty = plain.clone();
    empty["spec"]["volumes"] = json!([{"name": "empty", "projected": {}}]);
    assert_accepted(&scene, &[own, plain, bare, empty]).await;
    let empty = json!({"name": "empty", "projected": {}});
    assert_accepted(&scene, &[with("/spec/volumes", empty)]).await;
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
        let limit = json!({"metadata": {"annotations": {"nexus.io/tenants": names}}});
        let admin = scene.admin.clone();
        async move { admin.merge(&path, &limit).await.ok() }
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
    assert_accepted(&scene, std::slice::from_ref(&none)).await;

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
