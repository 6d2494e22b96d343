//! Events of Kubernetes about our objects: best effort, beside the work, and dropped rather than waited for.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use crate::controller::FIELD_MANAGER;
use crate::controller::conditions::{Wanted, shorten};
use crate::metrics::{Metrics, WriteLabels, Written};

/// Longest note, in bytes.
const MAX_NOTE: usize = 1000;
/// How many may wait: a burst of changes of the whole cluster.
const WAITING: usize = 8192;
/// How many are published at a time.
const CONCURRENT: usize = 4;

/// Where events are told.
#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<Told>);

#[derive(Debug)]
struct Told {
    type_: EventType,
    reason: &'static str,
    note: String,
    regarding: ObjectReference,
}

impl Events {
    /// The second one is to be run by [`publish`].
    pub(crate) fn new() -> (Self, Queue) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), Queue(receiver))
    }

    /// Tells of an object's verdict if it is news beside what its status said. Of several conditions the first that is
    /// not met is told, else the last: it includes the others.
    pub(crate) fn verdict<K: Resource<DynamicType = ()>>(
        &self,
        object: &ObjectMeta,
        wanted: &[Wanted],
        live: &[Condition],
    ) {
        if !wanted.iter().any(|wanted| wanted.is_news(live)) {
            return;
        }
        let unmet = wanted.iter().find(|wanted| !wanted.status());
        let Some(told) = unmet.or(wanted.last()) else {
            return;
        };
        let type_ = if told.status() {
            EventType::Normal
        } else {
            EventType::Warning
        };
        self.tell::<K>(type_, told.reason(), told.message(), object);
    }

    /// Tells anything of an object.
    pub(crate) fn tell<K: Resource<DynamicType = ()>>(
        &self,
        type_: EventType,
        reason: &'static str,
        note: &str,
        object: &ObjectMeta,
    ) {
        let told = Told {
            type_,
            reason,
            note: shorten(note.to_owned(), MAX_NOTE),
            regarding: ObjectReference {
                api_version: Some(K::api_version(&()).into_owned()),
                kind: Some(K::kind(&()).into_owned()),
                name: object.name.clone(),
                namespace: object.namespace.clone(),
                uid: object.uid.clone(),
                resource_version: object.resource_version.clone(),
                field_path: None,
            },
        };
        if self.0.try_send(told).is_err() {
            tracing::warn!("too many events wait to be published; one is dropped");
        }
    }
}

/// Events that were told.
#[derive(Debug)]
pub(crate) struct Queue(mpsc::Receiver<Told>);

/// Publishes what is told until nobody tells any more.
pub(crate) async fn publish(queue: Queue, client: Client, metrics: Arc<Metrics>) {
    let reporter = Reporter::from(FIELD_MANAGER);
    let recorder = Recorder::new(client, reporter);
    let stream = futures::stream::unfold(queue.0, async |mut queue| {
        let told = queue.recv().await?;
        Some((told, queue))
    });
    stream
        .for_each_concurrent(CONCURRENT, async |told| {
            let event = Event {
                type_: told.type_,
                reason: told.reason.to_owned(),
                note: Some(told.note),
                action: "Compile".to_owned(),
                secondary: None,
            };
            match recorder.publish(&event, &told.regarding).await {
                Ok(()) => {
                    let object = Written::Event;
                    metrics.writes.get_or_create(&WriteLabels { object }).inc();
                }
                Err(error) => tracing::warn!(
                    namespace = told.regarding.namespace,
                    name = told.regarding.name,
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "cannot publish an event"
                ),
            }
        })
        .await;
}
