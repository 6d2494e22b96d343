//! Other mutating webhooks beside ours.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nexus_tests::tls::{Authority, Leaf};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::scene::{LIMIT, Scene, assert_injected, names, pod};

/// A webhook that adds a container behind the others, and one before all that start first.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let late = json!({"name": "late", "image": "localhost/late:1", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example"}]});
    let early = json!({"name": "early", "image": "localhost/early:1"});
    let patch = json!([
        {"op": "add", "path": "/spec/containers/-", "value": late},
        {"op": "add", "path": "/spec/initContainers/0", "value": early},
    ]);
    let response = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"],
            "allowed": true,
            "patchType": "JSONPatch",
            "patch": STANDARD.encode(patch.to_string()),
        },
    });
    Ok(Response::new(Full::new(response.to_string().into())))
}

fn serve(authority: &Authority) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let acceptor = TlsAcceptor::from(authority.server(Leaf::Valid, &["http/1.1"]));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let connection = hyper::server::conn::http1::Builder::new();
                    connection
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await
                        .ok();
                });
            }
        });
    });
    address
}

#[test]
fn containers_that_another_webhook_adds_after_us_are_told_of_the_sidecar_too() {
    let scene = Scene::new("reinvoked");
    let authority = Authority::new();
    let address = serve(&authority);
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        // They are called in the order of their names.
        "metadata": {"name": "zz-after-ours"},
        "webhooks": [{
            "name": "late.example.test",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {
                "url": format!("https://{address}/"),
                "caBundle": STANDARD.encode(authority.pem()),
            },
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}},
        }],
    });
    scene.cluster.apply(&configuration.to_string()).ok();
    let start = Instant::now();
    let stored = loop {
        // In force a moment later.
        let stored = scene.stored(&pod(
            &format!("pod-{}", start.elapsed().as_millis()),
            &json!({}),
        ));
        if names(&stored["spec"]["containers"]).contains(&"late") {
            break stored;
        }
        assert!(start.elapsed() < LIMIT);
    };
    assert_eq!(
        names(&stored["spec"]["initContainers"]),
        ["nexus-sidecar", "early"]
    );
    assert_eq!(names(&stored["spec"]["containers"]), ["agent", "late"]);
    // Also that each container has the address once, and none but the sidecar the token.
    assert_injected(&stored);
    assert_eq!(
        names(&stored["spec"]["containers"][1]["env"]),
        ["NEXUS_SIDECAR_URL", "NO_PROXY", "no_proxy", "HTTPS_PROXY"]
    );
    let admitted = stored["metadata"]["annotations"]["nexus.io/admitted"]
        .as_str()
        .unwrap();
    assert!(!admitted.contains("nexus.io/sidecar"), "{admitted}");
}
