//! What this replica knows about a namespace beyond what the watches have shown: mostly what it wrote itself, until
//! that comes back by a watch. Losing it costs a few calls and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use nexus_crds::route::NexusRouteStatus;

use crate::controller::fit::Fit;
use crate::controller::live::Live;

/// How long what was written is believed to be there although no watch shows it.
pub(crate) const ECHO_LIMIT: Duration = Duration::from_secs(5);

/// What is known about one namespace.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Reconciles that failed since one did not.
    pub(crate) failures: u32,
    /// Highest revision seen or written; a ConfigMap that is made anew continues from there.
    pub(crate) revision: Option<u64>,
    /// The ConfigMap, as last judged or written.
    pub(crate) config_map: KnownMap,
    /// The statuses of its routes.
    pub(crate) statuses: Statuses<NexusRouteStatus>,
    /// What was left out of the table.
    pub(crate) fit: Option<Arc<Fit>>,
}

/// A ConfigMap, as last judged or written.
#[derive(Debug, Default)]
pub(crate) struct KnownMap {
    live: Option<Live>,
    /// The version that a write of ours replaced, and when.
    over: Option<(Option<String>, Instant)>,
}

impl KnownMap {
    /// What the ConfigMap is, given what the watch shows. `true`: the watch is behind, so look again later.
    pub(crate) fn live(&mut self, seen: Option<&ConfigMap>) -> (Option<Live>, bool) {
        let version = seen.and_then(ResourceExt::resource_version);
        if let Some((over, at)) = &self.over
            && *over == version
            && at.elapsed() < ECHO_LIMIT
        {
            return (self.live.clone(), true);
        }
        self.over = None;
        let known = self.live.as_ref().and_then(|live| live.version.clone());
        if known.is_none() || known != version {
            self.live = seen.map(Live::read);
        }
        (self.live.clone(), false)
    }

    /// A write of ours made this of it.
    pub(crate) fn written(&mut self, over: Option<String>, live: Option<Live>) {
        self.over = Some((over, Instant::now()));
        self.live = live;
    }
}

/// Statuses by name of the object, as they were last written or fetched.
#[derive(Debug)]
pub(crate) struct Statuses<S>(BTreeMap<String, Known<S>>);

#[derive(Debug)]
struct Known<S> {
    /// The version that a write of ours replaced.
    over: Option<String>,
    version: Option<String>,
    status: S,
}

impl<S> Default for Statuses<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S: Clone> Statuses<S> {
    /// Version and status of an object whose version is `seen` by the watch, if we know it better than the watch.
    pub(crate) fn known(&mut self, name: &str, seen: Option<&str>) -> Option<(Option<String>, S)> {
        let known = self.0.get(name)?;
        if seen.is_some() && (known.over.as_deref() == seen || known.version.as_deref() == seen) {
            return Some((known.version.clone(), known.status.clone()));
        }
        self.0.remove(name);
        None
    }

    /// A write of ours, or a look, found this.
    pub(crate) fn set(
        &mut self,
        name: &str,
        over: Option<String>,
        version: Option<String>,
        status: S,
    ) {
        let known = Known {
            over,
            version,
            status,
        };
        self.0.insert(name.to_owned(), known);
    }

    /// Forgets all objects but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| keep(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(version: &str) -> ConfigMap {
        let mut config_map = ConfigMap::default();
        config_map.metadata.resource_version = Some(version.to_owned());
        config_map
    }

    #[test]
    fn what_was_written_counts_until_the_watch_shows_it_or_something_newer() {
        let mut known = KnownMap::default();
        assert_eq!(known.live(None), (None, false));
        let seen = known.live(Some(&config_map("1"))).0.unwrap();
        let written = Live {
            version: Some("2".to_owned()),
            revision: Some(9),
            ..seen
        };
        known.written(Some("1".to_owned()), Some(written.clone()));
        assert_eq!(
            known.live(Some(&config_map("1"))),
            (Some(written.clone()), true)
        );
        assert_eq!(known.live(Some(&config_map("2"))), (Some(written), false));
        let newer = known.live(Some(&config_map("3")));
        assert_eq!(newer.0.unwrap().revision, None);
        assert_eq!(known.live(None), (None, false));
    }

    #[test]
    fn a_status_is_known_better_than_the_watch_only_until_it_catches_up() {
        let mut statuses = Statuses::default();
        assert_eq!(statuses.known("r", Some("1")), None);
        statuses.set("r", Some("1".to_owned()), Some("2".to_owned()), "new");
        let known = Some((Some("2".to_owned()), "new"));
        assert_eq!(statuses.known("r", Some("1")), known);
        assert_eq!(statuses.known("r", Some("2")), known);
        assert_eq!(statuses.known("r", Some("3")), None);
        assert_eq!(statuses.known("r", Some("1")), None);
    }
}
