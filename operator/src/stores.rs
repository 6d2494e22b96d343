//! What the API server last showed of everything that we look at: every replica watches, so that each can admit at
//! once and take over at once.
//!
//! Watches flow in. The controller, its compiler and the webhook read; the controller and the compiler are also told
//! what changed. An object that cannot be read is kept apart from the others and never stops a watch.

pub(crate) mod collection;
pub(crate) mod guard;
pub(crate) mod pods;
pub(crate) mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::ready;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, Store, reflector};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use nexus_crds::grants::{ClusterGrants, ConnectionGrant, InlineUpstreams};
use nexus_crds::names::{CONNECTIONS_ANNOTATION, ROUTES_CONFIG_MAP, SIDECAR_LABEL};
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use nexus_crds::status::Kind;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::collection::{Collection, Follower, Key};
use self::guard::{Guard, Unreadable};
use self::pods::InjectedPod;
use self::touched::Touched;
use crate::args::{ControllerArgs, Policy};
use crate::gateway;
use crate::metrics::{KindLabels, Metrics};

/// Pods that have not ended.
pub(crate) const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// Our copy needs no second copy of an object inside it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Watches that [`Stores::start`] spawns.
const WATCHES: Unlisted = Unlisted {
    admission: 3,
    controller: 2,
};

/// An object of ours, or why it cannot be read.
pub(crate) type Read<K> = Result<Arc<K>, Arc<Unreadable>>;

/// Everything that was seen. Cheap to clone.
#[derive(Clone)]
pub struct Stores(Arc<Inner>);

impl fmt::Debug for Stores {
    /// Without the objects: there may be thousands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}

/// How many watches have not listed yet, by who waits for them.
#[derive(Clone, Copy)]
struct Unlisted {
    /// Of routes, providers and namespaces, which the controller needs too.
    admission: usize,
    /// Of what only the controller reads.
    controller: usize,
}

struct Inner {
    routes: Collection<Read<NexusRoute>>,
    providers: Collection<Read<NexusProvider>>,
    namespaces: Collection<Arc<PartialObjectMeta<Namespace>>>,
    config_maps: Collection<Arc<ConfigMap>>,
    pods: Collection<Arc<InjectedPod>>,
    /// The namespaces once more, in the form that the runtime's controller wants.
    namespace_store: Store<PartialObjectMeta<Namespace>>,
    /// `api_base_url` by provider, as the gateway last said.
    gateway_urls: ArcSwap<BTreeMap<String, String>>,
    /// Whether it has said so once, where there is one.
    gateway_known: watch::Sender<bool>,
    inline_upstreams: InlineUpstreams,
    allow_insecure_upstreams: bool,
    changes: Changes,
    unlisted: watch::Sender<Unlisted>,
}

/// Who has to look at what again.
#[derive(Default)]
pub(crate) struct Changes {
    /// The outcome of a compilation may have changed.
    pub(crate) compiler: Notify,
    /// These namespaces may not be as they should be.
    pub(crate) namespaces: Touched,
    /// The status of a NexusProvider may not be as it should be.
    pub(crate) providers: Notify,
}

impl Stores {
    /// Spawns the watches, and the reading of the gateway where there is one. `tasks` gets what never ends.
    pub fn start(
        client: &Client,
        args: &ControllerArgs,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> Self {
        let (store, writer) = reflector::store();
        let stores = Self::new(args, store, WATCHES);
        stores.watch_ours(client, metrics, tasks);
        stores.watch_namespaces(client, writer, tasks);
        stores.watch_config_maps(client, tasks);
        stores.watch_pods(client, tasks);
        if let Some(url) = &args.gateway_url {
            let ca = args.gateway_ca.clone();
            tasks.spawn(gateway::follow(url.clone(), ca, stores.clone()));
        }
        stores
    }

    fn new(
        args: &ControllerArgs,
        namespace_store: Store<PartialObjectMeta<Namespace>>,
        watches: Unlisted,
    ) -> Self {
        Self(Arc::new(Inner {
            routes: Collection::default(),
            providers: Collection::default(),
            namespaces: Collection::default(),
            config_maps: Collection::default(),
            pods: Collection::default(),
            namespace_store,
            gateway_urls: ArcSwap::default(),
            gateway_known: watch::channel(args.gateway_url.is_none()).0,
            inline_upstreams: match args.inline_upstreams {
                Policy::Allow => InlineUpstreams::Allow,
                Policy::Deny => InlineUpstreams::Deny,
            },
            allow_insecure_upstreams: args.allow_insecure_upstreams,
            changes: Changes::default(),
            unlisted: watch::channel(watches).0,
        }))
    }

    /// Resolves when routes, providers and namespaces have been listed once, which is all that admission needs.
    pub async fn admission_synced(&self) {
        self.listed(|left| left.admission == 0).await;
    }

    /// Resolves when every kind has been listed once.
    pub(crate) async fn synced(&self) {
        self.listed(|left| left.admission + left.controller == 0)
            .await;
    }

    async fn listed(&self, is_enough: impl Fn(&Unlisted) -> bool) {
        let mut unlisted = self.0.unlisted.subscribe();
        // The sender is in `self`.
        unlisted.wait_for(|left| is_enough(left)).await.ok();
    }

    /// Resolves when the gateway's grants are known. Without them, what they allow would be taken out of the tables.
    pub(crate) async fn granted(&self) {
        let mut known = self.0.gateway_known.subscribe();
        // The sender is in `self`.
        known.wait_for(|known| *known).await.ok();
    }

    /// Whether they are.
    pub(crate) fn gateway_is_known(&self) -> bool {
        *self.0.gateway_known.borrow()
    }

    /// The NexusRoutes that can be read, by namespace and name.
    pub fn routes(&self) -> Vec<Arc<NexusRoute>> {
        self.0
            .routes
            .all()
            .into_iter()
            .filter_map(Result::ok)
            .collect()
    }

    /// The NexusProviders that can be read, by name.
    pub fn providers(&self) -> Vec<Arc<NexusProvider>> {
        self.0
            .providers
            .all()
            .into_iter()
            .filter_map(Result::ok)
            .collect()
    }

    /// A Namespace's metadata.
    pub fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.0.namespaces.get("", name)
    }

    /// What namespaces may have: by the command line, by annotations of Namespaces and by the gateway.
    pub fn grants(&self) -> ClusterGrants {
        let namespaces = self.0.namespaces.all();
        let connections = namespaces.iter().filter_map(|namespace| {
            let grant = ConnectionGrant::from_annotation(connections(namespace)?);
            Some((namespace.name_any(), grant))
        });
        ClusterGrants {
            inline_upstreams: self.0.inline_upstreams,
            allow_insecure_upstreams: self.0.allow_insecure_upstreams,
            gateway_urls: self.0.gateway_urls.load().as_ref().clone(),
            unreadable_providers: self.unreadable_providers(),
            connections: connections.collect(),
        }
    }

    fn unreadable_providers(&self) -> BTreeSet<String> {
        let providers = self.0.providers.all().into_iter();
        let unreadable = providers.filter_map(Result::err);
        unreadable
            .filter_map(|unreadable| unreadable.metadata.name.clone())
            .collect()
    }

    /// How many NexusRoutes cannot be read.
    pub(crate) fn unreadable_routes(&self) -> i64 {
        let routes = self.0.routes.all();
        let unreadable = routes.iter().filter(|route| route.is_err()).count();
        unreadable.try_into().unwrap_or(i64::MAX)
    }

    /// The NexusRoutes of a namespace, by name, also those that cannot be read.
    pub(crate) fn routes_within(&self, namespace: &str) -> Vec<Read<NexusRoute>> {
        self.0.routes.within(namespace)
    }

    /// The NexusProviders, by name, also those that cannot be read.
    pub(crate) fn all_providers(&self) -> Vec<Read<NexusProvider>> {
        self.0.providers.all()
    }

    /// The ConfigMap of a namespace's table.
    pub(crate) fn config_map(&self, namespace: &str) -> Option<Arc<ConfigMap>> {
        self.0.config_maps.get(namespace, ROUTES_CONFIG_MAP)
    }

    /// Pods of a namespace that have a sidecar of the webhook's.
    pub(crate) fn pods_within(&self, namespace: &str) -> Vec<Arc<InjectedPod>> {
        self.0.pods.within(namespace)
    }

    /// Namespaces that have pods with a sidecar.
    pub(crate) fn namespaces_with_pods(&self) -> Vec<String> {
        self.0.pods.namespaces()
    }

    /// Namespaces that have a route or a table.
    pub(crate) fn namespaces_of_interest(&self) -> Vec<String> {
        let mut namespaces = self.0.routes.namespaces();
        namespaces.extend(self.0.config_maps.namespaces());
        namespaces
    }

    /// The namespaces, for the runtime's controller.
    pub(crate) fn namespace_store(&self) -> Store<PartialObjectMeta<Namespace>> {
        self.0.namespace_store.clone()
    }

    /// Who has to look at what again.
    pub(crate) fn changes(&self) -> &Changes {
        &self.0.changes
    }

    /// Takes what the gateway says.
    pub(crate) fn set_gateway_urls(&self, urls: BTreeMap<String, String>) {
        if **self.0.gateway_urls.load() != urls {
            self.0.gateway_urls.store(Arc::new(urls));
            self.0.changes.compiler.notify_one();
        }
        self.0
            .gateway_known
            .send_if_modified(|known| !std::mem::replace(known, true));
    }

    fn watch_ours(
        &self,
        client: &Client,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) {
        let this = self.clone();
        let note = noter::<NexusRoute>(Kind::Route, metrics);
        let routes = Follower::new(self.0.routes.clone(), move |key, old, new| {
            note(key, old, new);
            if is_other(old, new) {
                this.changes().compiler.notify_one();
            }
            if version(old) != version(new) {
                this.changes().namespaces.mark(&key.0);
            }
        });
        let watch = watcher(Api::all(client.clone()), watcher::Config::default());
        let listed = self.when_listed(|left| &mut left.admission);
        tasks.spawn(routes.follow(Kind::Route.as_str(), watch.default_backoff(), read, listed));

        let this = self.clone();
        let note = noter::<NexusProvider>(Kind::Provider, metrics);
        let providers = Follower::new(self.0.providers.clone(), move |key, old, new| {
            note(key, old, new);
            if is_other(old, new) {
                this.changes().compiler.notify_one();
            }
            this.changes().providers.notify_one();
        });
        let watch = watcher(Api::all(client.clone()), watcher::Config::default());
        let listed = self.when_listed(|left| &mut left.admission);
        tasks.spawn(providers.follow(
            Kind::Provider.as_str(),
            watch.default_backoff(),
            read,
            listed,
        ));
    }

    fn watch_namespaces(
        &self,
        client: &Client,
        writer: reflector::store::Writer<PartialObjectMeta<Namespace>>,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) {
        type Seen<'a> = Option<&'a Arc<PartialObjectMeta<Namespace>>>;
        let this = self.clone();
        let changed = move |key: &Key, old: Seen<'_>, new: Seen<'_>| {
            let grant = |seen: Seen<'_>| seen.and_then(|seen| connections(seen)).map(str::to_owned);
            if grant(old) != grant(new) {
                this.changes().compiler.notify_one();
            }
            // Its routes may have been seen first.
            if old.is_none() {
                this.changes().namespaces.mark(&key.1);
            }
        };
        let namespaces = Follower::new(self.0.namespaces.clone(), changed);
        let watch = watcher(Api::all(client.clone()), watcher::Config::default());
        let watch = watch.default_backoff().modify(strip);
        let watch = reflector(writer, watch);
        let listed = self.when_listed(|left| &mut left.admission);
        tasks.spawn(namespaces.follow("Namespace", watch, Arc::new, listed));
    }

    fn watch_config_maps(&self, client: &Client, tasks: &mut JoinSet<anyhow::Result<()>>) {
        type Seen<'a> = Option<&'a Arc<ConfigMap>>;
        let this = self.clone();
        let changed = move |key: &Key, old: Seen<'_>, new: Seen<'_>| {
            let version = |seen: Seen<'_>| seen.and_then(|seen| seen.resource_version());
            if version(old) != version(new) {
                this.changes().namespaces.mark(&key.0);
            }
        };
        let config_maps = Follower::new(self.0.config_maps.clone(), changed);
        let ours = watcher::Config::default().fields(&format!("metadata.name={ROUTES_CONFIG_MAP}"));
        let watch = watcher(Api::all(client.clone()), ours).default_backoff();
        let read = |mut config_map: ConfigMap| {
            strip(&mut config_map);
            Arc::new(config_map)
        };
        let listed = self.when_listed(|left| &mut left.controller);
        tasks.spawn(config_maps.follow("ConfigMap", watch, read, listed));
    }

    fn watch_pods(&self, client: &Client, tasks: &mut JoinSet<anyhow::Result<()>>) {
        type Seen<'a> = Option<&'a Arc<InjectedPod>>;
        let this = self.clone();
        let changed = move |key: &Key, old: Seen<'_>, new: Seen<'_>| {
            // A sidecar that reads only an older table cannot wait; everything else about pods can.
            let appeared = old.is_none().then_some(new).flatten();
            if appeared.is_some_and(|pod| pod.table_format() < nexus_crds::table::FORMAT) {
                this.changes().namespaces.mark(&key.0);
            }
        };
        let pods = Follower::new(self.0.pods.clone(), changed);
        let ours = watcher::Config::default()
            .labels(&format!("{SIDECAR_LABEL}=true"))
            .fields(LIVE_PODS);
        let api: Api<PartialObjectMeta<Pod>> = Api::all(client.clone());
        let watch = watcher(api, ours)
            .default_backoff()
            .try_filter_map(|event| ready(Ok(pods::admitted_only(event))));
        let read = |pod| Arc::new(InjectedPod::new(&pod));
        let listed = self.when_listed(|left| &mut left.controller);
        tasks.spawn(pods.follow("Pod", watch, read, listed));
    }

    /// To be called when a kind was listed. `waiting` gives the number that it is one of.
    fn when_listed(&self, waiting: fn(&mut Unlisted) -> &mut usize) -> impl FnMut() + Send + use<> {
        let this = self.clone();
        let mut first = true;
        move || {
            if std::mem::take(&mut first) {
                this.0.unlisted.send_modify(|left| *waiting(left) -= 1);
            }
        }
    }
}

#[cfg(test)]
impl Stores {
    /// Without watches: what they would show is [put](Self::put_pod).
    pub(crate) fn unwatched(args: &ControllerArgs) -> Self {
        let listed = Unlisted {
            admission: 0,
            controller: 0,
        };
        Self::new(args, reflector::store().0, listed)
    }

    /// Shows a pod with a sidecar.
    pub(crate) fn put_pod(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let pod = Arc::new(InjectedPod { admitted: None });
        let shown = watcher::Event::Apply((key, pod));
        Follower::new(self.0.pods.clone(), |_: &Key, _, _| {}).take(shown);
    }
}

fn connections(namespace: &PartialObjectMeta<Namespace>) -> Option<&str> {
    let text = namespace.annotations().get(CONNECTIONS_ANNOTATION)?;
    Some(text)
}

/// Takes away what nobody here reads.
fn strip<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn read<K: Resource>(Guard(object): Guard<K>) -> Read<K> {
    match object {
        Ok(mut object) => {
            strip(&mut object);
            Ok(Arc::new(object))
        }
        Err(mut unreadable) => {
            unreadable.metadata.managed_fields = None;
            Err(Arc::new(unreadable))
        }
    }
}

/// Metadata of an object, whether it can be read or not.
pub(crate) fn metadata<K: Resource>(
    object: &Read<K>,
) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
    match object {
        Ok(object) => object.meta(),
        Err(unreadable) => &unreadable.metadata,
    }
}

fn version<K: Resource>(object: Option<&Read<K>>) -> Option<&str> {
    metadata(object?).resource_version.as_deref()
}

/// Whether a compilation may see a difference; a status makes none.
fn is_other<K: Resource>(old: Option<&Read<K>>, new: Option<&Read<K>>) -> bool {
    let identity = |object: Option<&Read<K>>| {
        object.map(|object| {
            let meta = metadata(object);
            (meta.uid.clone(), meta.generation, object.is_ok())
        })
    };
    identity(old) != identity(new)
}

/// Counts and logs objects that cannot be read.
fn noter<K: Resource>(
    kind: Kind,
    metrics: &Arc<Metrics>,
) -> impl Fn(&Key, Option<&Read<K>>, Option<&Read<K>>) + Send + use<K> {
    let kind = kind.as_str();
    let gauge = metrics
        .unreadable_objects
        .get_or_create(&KindLabels { kind })
        .clone();
    move |(namespace, name), old, new| {
        let failed = |object: Option<&Read<K>>| object.is_some_and(Result::is_err);
        match (failed(old), failed(new)) {
            (false, true) => gauge.inc(),
            (true, false) => gauge.dec(),
            (false, false) | (true, true) => 0,
        };
        if let Some(Err(unreadable)) = new
            && is_other(old, new)
        {
            tracing::warn!(
                kind,
                namespace,
                name,
                error = unreadable.error,
                "cannot be read; the others are served"
            );
        }
    }
}
