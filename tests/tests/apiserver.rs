//! The control plane that the operator's tests run against is a real one.

use nexus_tests::apiserver::Cluster;

#[test]
fn it_is_the_release_that_was_asked_for_and_makes_pods_of_deployments() {
    let cluster = Cluster::shared();
    let version = cluster.kubectl(&["version", "--output=json"]).ok();
    assert!(version.contains("\"gitVersion\": \"v1."), "{version}");
    let namespace = cluster.namespace("plain");
    let deployment = [
        "--namespace",
        &namespace,
        "create",
        "deployment",
        "web",
        "--image=localhost/web:1",
    ];
    cluster.kubectl(&deployment).ok();
    let wait = [
        "--namespace",
        &namespace,
        "wait",
        "--for=create",
        "pod",
        "--selector=app=web",
        "--timeout=30s",
    ];
    cluster.kubectl(&wait).ok();
}

#[tokio::test]
async fn a_service_account_may_do_what_its_roles_say() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("account");
    let client = cluster
        .client_of(cluster.service_account(&namespace, "default"))
        .await;
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(client, &namespace);
    let refused = pods.list(&kube::api::ListParams::default()).await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.code == 403),
        "{refused:?}"
    );
}
