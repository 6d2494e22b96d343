//! Admission: what the API server sends before it creates an object comes in, and whether and how it may be created goes
//! out. Here requests are decoded, told apart and counted; `inject` decides about pods and [`validate`] about our own
//! objects, and neither knows of HTTP.
//!
//! Every replica serves this, whoever holds the Lease. Nothing has an effect beside the answer, so that a dry run is an
//! admission like any other. Objects are never logged: a pod's environment may hold anything.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::admission::{AdmissionResponse, Operation};
use kube::{Api, Client};

use crate::metrics::{AdmissionKind, AdmissionLabels, AdmissionOutcome, Metrics};
use crate::stores::Stores;

pub mod inject;
mod objects;
mod review;
pub mod server;
pub mod validate;

use inject::{Decision, InjectConfig, inject};
use objects::{Objects, objects};
use review::{Refusal, Review};

/// Objects are at most 3 MiB as clients send them; a review holds one or two.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// How long the API server may take to show a Namespace. It waits for our answer itself, 5 s as the chart has it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// What admission needs.
#[derive(Clone)]
pub struct Webhook {
    /// Namespaces, routes and providers.
    pub stores: Stores,
    /// For a Namespace that was made a moment ago.
    pub client: Client,
    /// How sidecars are injected.
    pub inject: Arc<InjectConfig>,
    /// Where admissions are counted.
    pub metrics: Arc<Metrics>,
}

/// The endpoints, each for a POST of an AdmissionReview: `/inject` for pods that are created, `/validate/nexusroute` and
/// `/validate/nexusprovider` for our own objects.
pub fn router(webhook: Webhook) -> Router {
    let Webhook {
        stores,
        client,
        inject,
        metrics,
    } = webhook;
    let ours = objects(Objects {
        stores: stores.clone(),
        metrics: metrics.clone(),
    });
    let namespace = Arc::new(move |name: &str| match stores.namespace(name) {
        Some(namespace) => {
            let metadata = namespace.metadata.clone();
            Box::pin(async { Ok(metadata) }) as BoxFuture<'static, _>
        }
        None => Box::pin(look_up(client.clone(), name.to_owned())),
    });
    let pods = pods(Pods {
        namespace,
        inject,
        metrics,
    });
    pods.merge(ours).layer(DefaultBodyLimit::max(MAX_BODY))
}

/// Finds the metadata of a Namespace, or says why it cannot.
type Lookup = dyn Fn(&str) -> BoxFuture<'static, Result<ObjectMeta, String>> + Send + Sync;

async fn look_up(client: Client, name: String) -> Result<ObjectMeta, String> {
    let namespaces: Api<Namespace> = Api::all(client);
    match tokio::time::timeout(LOOKUP_TIMEOUT, namespaces.get_metadata(&name)).await {
        Ok(Ok(namespace)) => Ok(namespace.metadata),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
    }
}

/// What the admission of pods needs.
#[derive(Clone)]
struct Pods {
    namespace: Arc<Lookup>,
    inject: Arc<InjectConfig>,
    metrics: Arc<Metrics>,
}

fn pods(pods: Pods) -> Router {
    Router::new()
        .route("/inject", post(admit_pod))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(pods)
}

async fn admit_pod(State(pods): State<Pods>, body: Bytes) -> Response {
    let review = match Review::read(&body) {
        Ok(review) => review,
        Err(problem) => {
            count(&pods.metrics, AdmissionKind::Pod, AdmissionOutcome::Failed);
            return review::bad_request(&problem);
        }
    };
    let (response, outcome) = match decide(&pods, &review).await {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let outcome = match refusal {
                Refusal::Forbidden(_) => AdmissionOutcome::Refused,
                Refusal::Malformed(_) | Refusal::Unavailable(_) => AdmissionOutcome::Failed,
            };
            tracing::info!(
                namespace = review.namespace(),
                name = review.name(),
                reason = refusal.message(),
                "refused a pod"
            );
            (review.refuse(&refusal), outcome)
        }
    };
    count(&pods.metrics, AdmissionKind::Pod, outcome);
    review::answer(response)
}

async fn decide(
    pods: &Pods,
    review: &Review,
) -> Result<(AdmissionResponse, AdmissionOutcome), Refusal> {
    // Only the creation of pods is sent here. Whatever else a configuration by hand may send is none of ours.
    if review.operation() != &Operation::Create || review.is_subresource() {
        return Ok((review.allow(), AdmissionOutcome::Allowed));
    }
    let pod: Pod = review.object("Pod")?;
    // The pod itself need not say it yet.
    let Some(namespace_name) = review.namespace() else {
        let why = "the request names no namespace".to_owned();
        return Err(Refusal::Malformed(why));
    };
    let namespace = (pods.namespace)(namespace_name).await.map_err(|why| {
        Refusal::Unavailable(format!(
            "the Namespace {namespace_name} limits which tenants a pod may name and could not be read: {why}; try again"
        ))
    })?;
    match inject(&pod, &namespace, namespace_name, &pods.inject) {
        Decision::Injected { patch, warnings } => {
            tracing::info!(
                namespace = namespace_name,
                name = review.name(),
                dry_run = review.is_dry_run(),
                warnings = warnings.len(),
                "gave a pod its sidecar"
            );
            let response = review.patch(patch, warnings)?;
            Ok((response, AdmissionOutcome::Injected))
        }
        Decision::Untouched => Ok((review.allow(), AdmissionOutcome::Allowed)),
        Decision::Refused { message } => Err(Refusal::Forbidden(message)),
    }
}

fn count(metrics: &Metrics, kind: AdmissionKind, outcome: AdmissionOutcome) {
    let labels = AdmissionLabels { kind, outcome };
    metrics.admissions.get_or_create(&labels).inc();
}

#[cfg(test)]
mod tests;
