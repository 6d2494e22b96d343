//! What a namespace's ConfigMap is now, as far as it matters for writing the next one.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use nexus_crds::table::{Encoded, RouteTable};
use serde_json::{Value, json};

use crate::controller::FIELD_MANAGER;

/// Key of a table that is JSON, in `data`.
pub(crate) const JSON_KEY: &str = "routes.json";
/// Key of a compressed table, in `binaryData`.
pub(crate) const GZIP_KEY: &str = "routes.json.gz";
/// Says whose it is.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// A ConfigMap that was read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    /// `resourceVersion`.
    pub(crate) version: Option<String>,
    pub(crate) uid: Option<String>,
    /// Revision of its table, where it holds one.
    pub(crate) revision: Option<u64>,
    /// Hash and format of the table, if the ConfigMap is what we would have written, byte by byte.
    pub(crate) exact: Option<(String, u32)>,
    /// Keys that are not ours.
    pub(crate) foreign: Foreign,
    /// Whether it has our key of `data`, and of `binaryData`.
    pub(crate) keys: (bool, bool),
    /// It cannot be changed, only deleted.
    pub(crate) immutable: bool,
    /// It is deleted and waits for somebody's finalizer.
    pub(crate) ending: bool,
}

/// Keys of `data` and `binaryData` that are not ours. Readers want a table to be the only file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    data: BTreeSet<String>,
    binary: BTreeSet<String>,
}

impl Foreign {
    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.binary.is_empty()
    }

    /// A merge patch that takes them away and makes the rest what `manifest` says, so that no reader sees a ConfigMap
    /// with less or more than one table.
    pub(crate) fn removal(&self, manifest: &ConfigMap) -> Value {
        let with = |keys: &BTreeSet<String>, kept: Value| -> Value {
            let gone = keys.iter().map(|key| (key.clone(), Value::Null));
            let kept = kept.as_object().cloned().unwrap_or_default();
            gone.chain(kept).collect()
        };
        json!({
            "metadata": manifest.metadata,
            "data": with(&self.data, json!(manifest.data)),
            "binaryData": with(&self.binary, json!(manifest.binary_data)),
        })
    }
}

impl Live {
    /// Judges a ConfigMap. Slow for large ones: it unpacks and packs.
    pub(crate) fn read(config_map: &ConfigMap) -> Self {
        let table = table(config_map);
        let immutable = config_map.immutable == Some(true);
        let foreign = foreign(config_map);
        let managed = config_map.labels().get(MANAGED_BY);
        let ours =
            managed.is_some_and(|by| by == FIELD_MANAGER) && foreign.is_empty() && !immutable;
        let exact = table
            .as_ref()
            .filter(|table| ours && is_exact(config_map, table));
        let data = config_map.data.as_ref();
        let binary = config_map.binary_data.as_ref();
        let keys = (
            data.is_some_and(|data| data.contains_key(JSON_KEY)),
            binary.is_some_and(|data| data.contains_key(GZIP_KEY)),
        );
        Self {
            version: config_map.resource_version(),
            uid: config_map.uid(),
            revision: table.as_ref().map(|table| table.revision),
            exact: exact.map(|table| (table.hash.clone(), table.format)),
            foreign,
            keys,
            immutable,
            ending: config_map.metadata.deletion_timestamp.is_some(),
        }
    }

    /// Keys that would stay beside a table of this form when it is applied. The key of the other form too: whoever
    /// applied the same value owns it as well, and then it does not go with us.
    pub(crate) fn strays(&self, table: &Encoded) -> Foreign {
        let mut strays = self.foreign.clone();
        match (table, self.keys) {
            (Encoded::Json(_), (_, true)) => {
                strays.binary.insert(GZIP_KEY.to_owned());
            }
            (Encoded::Gzip(_), (true, _)) => {
                strays.data.insert(JSON_KEY.to_owned());
            }
            (Encoded::Json(_) | Encoded::Gzip(_), _) => {}
        }
        strays
    }
}

/// The table of a ConfigMap, if there is one that can be read.
pub(crate) fn table(config_map: &ConfigMap) -> Option<RouteTable> {
    let json = config_map.data.as_ref().and_then(|data| data.get(JSON_KEY));
    let gzip = config_map.binary_data.as_ref();
    let gzip = gzip.and_then(|data| data.get(GZIP_KEY));
    let bytes = match (json, gzip) {
        (Some(json), _) => json.as_bytes(),
        (None, Some(ByteString(gzip))) => gzip,
        (None, None) => return None,
    };
    RouteTable::decode(bytes).ok()
}

fn foreign(config_map: &ConfigMap) -> Foreign {
    let data = config_map.data.iter().flat_map(|data| data.keys());
    let binary = config_map.binary_data.iter().flat_map(|data| data.keys());
    Foreign {
        data: data.filter(|key| *key != JSON_KEY).cloned().collect(),
        binary: binary.filter(|key| *key != GZIP_KEY).cloned().collect(),
    }
}

/// Whether the one value is what we would write for the table in it.
fn is_exact(config_map: &ConfigMap, table: &RouteTable) -> bool {
    if table.content_hash() != table.hash {
        return false;
    }
    let json = config_map.data.as_ref().and_then(|data| data.get(JSON_KEY));
    let gzip = config_map.binary_data.as_ref();
    let gzip = gzip.and_then(|data| data.get(GZIP_KEY));
    match (table.encode_as(table.format), json, gzip) {
        (Ok(Encoded::Json(bytes)), Some(json), None) => bytes == json.as_bytes(),
        (Ok(Encoded::Gzip(bytes)), None, Some(ByteString(gzip))) => bytes == *gzip,
        _ => false,
    }
}

/// Version that no object has: the API server counts what was written, and itself writes first. To apply over it makes
/// an object where there is none, and is a conflict where there is one.
const ABSENT: &str = "1";

/// What is applied, server-side, over the ConfigMap of this version; none makes a new one, and only a new one.
pub(crate) fn manifest(
    namespace: &str,
    name: &str,
    version: Option<&str>,
    table: Encoded,
) -> ConfigMap {
    let mut config_map = ConfigMap::default();
    config_map.metadata.name = Some(name.to_owned());
    config_map.metadata.namespace = Some(namespace.to_owned());
    config_map.metadata.resource_version = Some(version.unwrap_or(ABSENT).to_owned());
    config_map
        .labels_mut()
        .insert(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
    match table {
        Encoded::Json(bytes) => {
            // JSON is UTF-8.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            config_map.data = Some([(JSON_KEY.to_owned(), text)].into());
        }
        Encoded::Gzip(bytes) => {
            config_map.binary_data = Some([(GZIP_KEY.to_owned(), ByteString(bytes))].into());
        }
    }
    config_map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> (ConfigMap, RouteTable) {
        let mut table = RouteTable::new("team", Vec::new());
        table.revision = 7;
        let encoded = table.encode_as(1).unwrap();
        (manifest("team", "nexus-routes", Some("5"), encoded), table)
    }

    #[test]
    fn what_was_written_is_exact() {
        let (config_map, table) = written();
        let live = Live::read(&config_map);
        assert_eq!(live.exact, Some((table.hash, 1)));
        assert_eq!(live.revision, Some(7));
        assert_eq!(live.version.as_deref(), Some("5"));
    }

    #[test]
    fn every_edit_is_seen() {
        let edit = |edit: fn(&mut ConfigMap)| {
            let (mut config_map, _) = written();
            edit(&mut config_map);
            Live::read(&config_map)
        };
        let text = |config_map: &mut ConfigMap, from: &str, to: &str| {
            let data = config_map.data.as_mut().unwrap();
            let text = data.get_mut(JSON_KEY).unwrap();
            assert!(text.contains(from), "{text}");
            *text = text.replace(from, to);
        };
        let more = edit(|it| {
            it.data
                .as_mut()
                .unwrap()
                .insert("x.json".into(), "{}".into());
        });
        assert!(more.exact.is_none() && !more.foreign.is_empty());
        let removal = more.foreign.removal(&written().0);
        assert_eq!(removal["data"]["x.json"], Value::Null);
        assert!(removal["data"][JSON_KEY].is_string());
        assert_eq!(removal["metadata"]["resourceVersion"], "5");
        let immutable = edit(|it| it.immutable = Some(true));
        assert!(immutable.exact.is_none() && immutable.immutable);
        assert!(edit(|it| it.labels_mut().clear()).exact.is_none());
        // The other form, by somebody else, would stay beside ours.
        let other = edit(|it| {
            it.data = None;
            it.binary_data = Some([(GZIP_KEY.to_owned(), ByteString(vec![1]))].into());
        });
        assert!(!other.strays(&Encoded::Json(Vec::new())).is_empty());
        assert!(other.strays(&Encoded::Gzip(Vec::new())).is_empty());
        let ours = Live::read(&written().0);
        assert!(ours.strays(&Encoded::Json(Vec::new())).is_empty());
        assert!(!ours.strays(&Encoded::Gzip(Vec::new())).is_empty());
        let mut changed = written().0;
        text(&mut changed, "\"team\"", "\"other\"");
        assert!(Live::read(&changed).exact.is_none());
        let mut spaced = written().0;
        text(&mut spaced, ",", ", ");
        assert!(Live::read(&spaced).exact.is_none());
        let broken = edit(|it| {
            it.data
                .as_mut()
                .unwrap()
                .insert(JSON_KEY.into(), "{".into());
        });
        assert_eq!((broken.exact, broken.revision), (None, None));
    }
}
