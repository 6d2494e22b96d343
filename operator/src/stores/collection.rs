//! Objects of one kind as the API server last showed them: a watch fills a collection, everyone else reads.
//!
//! Unlike the runtime's own store it tells what changed, also for what left or changed while a watch was down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};

/// Namespace, empty for what has none, and name.
pub(crate) type Key = (String, String);

/// Objects by namespace and name. Cheap to clone; `V` should be, too.
#[derive(Debug)]
pub(crate) struct Collection<V>(Arc<RwLock<BTreeMap<Key, V>>>);

impl<V> Clone for Collection<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V> Default for Collection<V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<V: Clone> Collection<V> {
    /// Every object, by namespace and name.
    pub(crate) fn all(&self) -> Vec<V> {
        self.read().values().cloned().collect()
    }

    /// Those of one namespace, by name.
    pub(crate) fn within(&self, namespace: &str) -> Vec<V> {
        let from = (namespace.to_owned(), String::new());
        self.read()
            .range(from..)
            .take_while(|((found, _), _)| found == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// One object.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<V> {
        let key = (namespace.to_owned(), name.to_owned());
        self.read().get(&key).cloned()
    }

    /// Namespaces that have an object.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let mut namespaces: Vec<String> =
            self.read().keys().map(|(found, _)| found.clone()).collect();
        namespaces.dedup();
        namespaces
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, V>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, V>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the events of one watch into a collection.
pub(crate) struct Follower<V, C> {
    collection: Collection<V>,
    /// Called after a change with the key, what was there and what is.
    changed: C,
    /// What a list under way has brought so far.
    listed: BTreeMap<Key, V>,
}

impl<V: Clone, C: FnMut(&Key, Option<&V>, Option<&V>)> Follower<V, C> {
    pub(crate) fn new(collection: Collection<V>, changed: C) -> Self {
        Self {
            collection,
            changed,
            listed: BTreeMap::new(),
        }
    }

    /// Takes one event; `true` if a list is complete.
    pub(crate) fn take(&mut self, event: Event<(Key, V)>) -> bool {
        match event {
            Event::Apply((key, object)) => {
                let old = self.collection.write().insert(key.clone(), object.clone());
                (self.changed)(&key, old.as_ref(), Some(&object));
            }
            Event::Delete((key, _)) => {
                let old = self.collection.write().remove(&key);
                (self.changed)(&key, old.as_ref(), None);
            }
            Event::Init => self.listed.clear(),
            Event::InitApply((key, object)) => {
                self.listed.insert(key, object);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let old = std::mem::replace(&mut *self.collection.write(), listed.clone());
                for (key, object) in &listed {
                    (self.changed)(key, old.get(key), Some(object));
                }
                for (key, gone) in old.iter().filter(|(key, _)| !listed.contains_key(*key)) {
                    (self.changed)(key, Some(gone), None);
                }
                return true;
            }
        }
        false
    }

    /// Follows a watch for as long as it lives, which is for ever. Errors are logged, each once; the watch itself tries
    /// again. `listed` is called when a list is complete.
    pub(crate) async fn follow<K: Resource>(
        mut self,
        kind: &'static str,
        watch: impl Stream<Item = watcher::Result<Event<K>>>,
        mut read: impl FnMut(K) -> V,
        mut listed: impl FnMut(),
    ) -> anyhow::Result<()> {
        let mut watch = std::pin::pin!(watch);
        let mut last_error = String::new();
        while let Some(event) = watch.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    if error != last_error {
                        tracing::warn!(
                            kind,
                            error,
                            "cannot watch; trying again, what was seen last counts until then"
                        );
                        last_error = error;
                    }
                    continue;
                }
            };
            if !last_error.is_empty() && !matches!(event, Event::Init) {
                tracing::info!(kind, "watching again");
                last_error.clear();
            }
            let mut keyed = |object: K| {
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                (key, read(object))
            };
            if self.take(match event {
                Event::Apply(object) => Event::Apply(keyed(object)),
                Event::Delete(object) => Event::Delete(keyed(object)),
                Event::Init => Event::Init,
                Event::InitApply(object) => Event::InitApply(keyed(object)),
                Event::InitDone => Event::InitDone,
            }) {
                listed();
            }
        }
        anyhow::bail!("the watch of {kind} ended")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        let (namespace, name) = name.split_once('/').unwrap();
        (namespace.to_owned(), name.to_owned())
    }

    fn changes(events: Vec<Event<(Key, u8)>>) -> (Collection<u8>, Vec<String>) {
        let collection = Collection::default();
        let mut seen = Vec::new();
        let mut follower = Follower::new(collection.clone(), |key: &Key, old, new| {
            seen.push(format!("{}/{} {old:?} {new:?}", key.0, key.1));
        });
        for event in events {
            follower.take(event);
        }
        (collection, seen)
    }

    #[test]
    fn a_list_replaces_everything_and_tells_what_left_meanwhile() {
        let (collection, seen) = changes(vec![
            Event::Init,
            Event::InitApply((key("a/x"), 1)),
            Event::InitApply((key("b/x"), 2)),
            Event::InitDone,
            Event::Apply((key("b/y"), 3)),
            Event::Init,
            Event::InitApply((key("b/x"), 4)),
            Event::InitDone,
        ]);
        assert_eq!(collection.all(), [4]);
        let new = "Some(4)";
        assert_eq!(
            seen[3..],
            [
                format!("b/x Some(2) {new}"),
                "a/x Some(1) None".to_owned(),
                "b/y Some(3) None".to_owned(),
            ]
        );
    }

    #[test]
    fn what_was_listed_in_part_does_not_count() {
        let (collection, _) = changes(vec![
            Event::Apply((key("a/x"), 1)),
            Event::Init,
            Event::InitApply((key("a/y"), 2)),
            Event::Init,
        ]);
        assert_eq!(collection.all(), [1]);
    }

    #[test]
    fn a_namespace_has_its_own_objects_only() {
        let (collection, _) = changes(vec![
            Event::Apply((key("a/x"), 1)),
            Event::Apply((key("ab/x"), 2)),
            Event::Apply((key("a-b/x"), 3)),
            Event::Apply((key("a/y"), 4)),
            Event::Delete((key("a/x"), 1)),
        ]);
        assert_eq!(collection.within("a"), [4]);
        assert_eq!(collection.get("ab", "x"), Some(2));
        assert_eq!(collection.namespaces(), ["a", "a-b", "ab"]);
    }
}
