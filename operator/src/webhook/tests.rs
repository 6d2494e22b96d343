//! Requests of an API server in, answers out, over HTTP.

use clap::Parser;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::args::SidecarArgs;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    sidecar: SidecarArgs,
}

struct Server {
    url: String,
    metrics: Arc<Metrics>,
}

/// Serves with one Namespace, `agents`, which allows the tenant `a`; another cannot be read.
async fn serve() -> Server {
    let flags = [
        "test",
        "--sidecar-image=image",
        "--sidecar-gateway-url=https://gateway.example",
    ];
    let config = InjectConfig::try_from(&Flags::parse_from(flags).sidecar).unwrap();
    let metrics = Arc::new(Metrics::default());
    let namespace = |name: &str| {
        let annotations = [("nexus.io/tenants".to_owned(), "a".to_owned())].into();
        let found = (name == "agents").then(|| ObjectMeta {
            annotations: Some(annotations),
            ..ObjectMeta::default()
        });
        Box::pin(async { found.ok_or_else(|| "no route to host".to_owned()) })
            as BoxFuture<'static, _>
    };
    let router = pods(Pods {
        namespace: Arc::new(namespace),
        inject: Arc::new(config),
        metrics: metrics.clone(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/inject", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    Server { url, metrics }
}

impl Server {
    async fn post(&self, body: String) -> (u16, String) {
        // As main does for the process.
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        let request = reqwest::Client::new().post(&self.url).body(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The response inside the review that answers this request.
    async fn ask(&self, request: Value) -> Value {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let (status, text) = self.post(review.to_string()).await;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "the-uid");
        answer["response"].clone()
    }

    fn counted(&self, outcome: AdmissionOutcome) -> u64 {
        let kind = AdmissionKind::Pod;
        self.metrics
            .admissions
            .get_or_create(&AdmissionLabels { kind, outcome })
            .get()
    }
}

fn creation(annotations: &Value) -> Value {
    json!({
        "uid": "the-uid",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "agents",
        "operation": "CREATE",
        "userInfo": {},
        "object": {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "agent-", "annotations": annotations},
            "spec": {"containers": [{"name": "agent", "env": [{"name": "SECRET", "value": "hunter2"}]}]},
        },
    })
}

fn asking() -> Value {
    creation(&json!({"nexus.io/inject": "true", "nexus.io/tenants": "a", "nexus.io/unknown": "x"}))
}

#[tokio::test]
async fn a_pod_that_asks_gets_a_patch_and_its_owner_the_warnings() {
    let server = serve().await;
    let response = server.ask(asking()).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(
        response["warnings"],
        json!(["annotation nexus.io/unknown: is not known and means nothing; is it misspelt?"])
    );
    assert_eq!(server.counted(AdmissionOutcome::Injected), 1);
}

#[tokio::test]
async fn a_pod_that_does_not_ask_and_what_is_no_creation_pass() {
    let server = serve().await;
    let mut update = asking();
    update["operation"] = "UPDATE".into();
    let mut part = asking();
    part["subResource"] = "binding".into();
    for request in [
        creation(&json!({})),
        creation(&json!({"nexus.io/inject": "false"})),
        update,
        part,
    ] {
        let response = server.ask(request).await;
        assert_eq!(response["allowed"], true);
        assert!(response.get("patch").is_none());
    }
    assert_eq!(server.counted(AdmissionOutcome::Allowed), 4);
}

#[tokio::test]
async fn refusals_say_why_and_in_what_way() {
    let server = serve().await;
    let mut elsewhere = asking();
    elsewhere["namespace"] = "new".into();
    let mut nowhere = asking();
    nowhere["namespace"] = Value::Null;
    let mut garbled = asking();
    garbled["object"]["spec"]["containers"] = "none".into();
    let mut deployment = asking();
    deployment["kind"]["kind"] = "Deployment".into();
    let mut empty = asking();
    empty["object"] = Value::Null;
    let tenants = creation(&json!({"nexus.io/inject": "true", "nexus.io/tenants": "b"}));
    for (request, code, reason, says) in [
        (
            tenants,
            403,
            "Forbidden",
            "of the Namespace agents does not list",
        ),
        (
            elsewhere,
            503,
            "ServiceUnavailable",
            "the Namespace new limits which tenants",
        ),
        (nowhere, 422, "Invalid", "names no namespace"),
        (garbled, 422, "Invalid", "the Pod cannot be read: "),
        (deployment, 422, "Invalid", "a Deployment was sent"),
        (empty, 422, "Invalid", "the request holds no Pod"),
    ] {
        let response = server.ask(request).await;
        assert_eq!(response["allowed"], false, "{response}");
        assert_eq!(response["status"]["code"], code, "{response}");
        assert_eq!(response["status"]["reason"], reason, "{response}");
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
    assert_eq!(server.counted(AdmissionOutcome::Refused), 1);
    assert_eq!(server.counted(AdmissionOutcome::Failed), 5);
}

#[tokio::test]
async fn what_is_no_review_is_a_bad_request() {
    let server = serve().await;
    for (body, says) in [
        (String::new(), "the body is not an AdmissionReview"),
        ("{}".to_owned(), "the body is not an AdmissionReview"),
        (
            json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": asking()}).to_string(),
            "set admissionReviewVersions to [v1]",
        ),
        (
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string(),
            "holds no request",
        ),
    ] {
        let (status, text) = server.post(body).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(server.counted(AdmissionOutcome::Failed), 4);
    // A pod of the size that the API server takes is read, and one that is not bounded is not.
    let mut large = asking();
    large["object"]["metadata"]["annotations"]["large"] = "x".repeat(3 * 1024 * 1024).into();
    assert_eq!(server.ask(large).await["allowed"], true);
    let (status, _) = server.post("x".repeat(MAX_BODY + 1)).await;
    assert_eq!(status, 413);
}
