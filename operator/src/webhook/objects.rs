//! The admission of NexusRoutes and NexusProviders: [`validate`] judges them beside those that are there.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use kube::Resource;
use kube::core::admission::{AdmissionResponse, Operation};
use nexus_crds::grants::ClusterGrants;
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use serde::de::DeserializeOwned;

use super::count;
use super::review::{self, Refusal, Review};
use super::validate::{self, Judgement};
use crate::metrics::{AdmissionKind, AdmissionOutcome, Metrics};
use crate::stores::Stores;

/// What the admission of our own objects needs.
#[derive(Clone)]
pub(super) struct Objects {
    pub(super) stores: Stores,
    pub(super) metrics: Arc<Metrics>,
}

/// Judges an object, beside what it takes the place of and what the cluster has.
type Judge<K> =
    fn(&K, Option<&K>, &[Arc<NexusRoute>], &[Arc<NexusProvider>], &ClusterGrants) -> Judgement;

/// The endpoints.
pub(super) fn objects(objects: Objects) -> Router {
    Router::new()
        .route("/validate/nexusroute", post(admit_route))
        .route("/validate/nexusprovider", post(admit_provider))
        .with_state(objects)
}

async fn admit_route(State(objects): State<Objects>, body: Bytes) -> Response {
    admit(objects, body, AdmissionKind::NexusRoute, validate::route).await
}

async fn admit_provider(State(objects): State<Objects>, body: Bytes) -> Response {
    admit(
        objects,
        body,
        AdmissionKind::NexusProvider,
        validate::provider,
    )
    .await
}

async fn admit<K>(objects: Objects, body: Bytes, kind: AdmissionKind, judge: Judge<K>) -> Response
where
    K: Resource<DynamicType = ()> + DeserializeOwned + 'static,
{
    let Objects { stores, metrics } = objects;
    // All routes of a cluster are compiled, which takes its time when there are thousands.
    let judged = tokio::task::spawn_blocking(move || {
        let review = Review::read(&body)?;
        let judged = decide(&stores, &review, judge)
            .unwrap_or_else(|refusal| (review.refuse(&refusal), AdmissionOutcome::Failed));
        Ok(judged)
    });
    let judged = judged.await.unwrap_or_else(|error| Err(error.to_string()));
    match judged {
        Ok((response, outcome)) => {
            count(&metrics, kind, outcome);
            review::answer(response)
        }
        Err(problem) => {
            count(&metrics, kind, AdmissionOutcome::Failed);
            review::bad_request(&problem)
        }
    }
}

fn decide<K>(
    stores: &Stores,
    review: &Review,
    judge: Judge<K>,
) -> Result<(AdmissionResponse, AdmissionOutcome), Refusal>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let is_judged = matches!(review.operation(), Operation::Create | Operation::Update);
    if !is_judged || review.is_subresource() {
        return Ok((review.allow(), AdmissionOutcome::Allowed));
    }
    let kind = K::kind(&());
    let object: K = review.object(&kind)?;
    // What it was may be of a time when the schema was another.
    let old: Option<K> = review.old_object(&kind).ok();
    let (routes, providers) = (stores.routes(), stores.providers());
    let Judgement { refusal, warnings } =
        judge(&object, old.as_ref(), &routes, &providers, &stores.grants());
    if let Some(message) = refusal {
        tracing::info!(
            kind = &*kind,
            namespace = review.namespace(),
            name = review.name(),
            reason = message,
            "refused an object"
        );
        let mut response = review.refuse(&Refusal::Forbidden(message));
        response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
        return Ok((response, AdmissionOutcome::Refused));
    }
    let outcome = if warnings.is_empty() {
        AdmissionOutcome::Allowed
    } else {
        AdmissionOutcome::Warned
    };
    let mut response = review.allow();
    response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    Ok((response, outcome))
}
