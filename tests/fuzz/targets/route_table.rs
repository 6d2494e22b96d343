//! Route tables, plain and compressed, as the sidecar loads them.

#![no_main]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use nexus_crds::admitted::Admitted;
use nexus_crds::matcher::{CompiledRoute, LoadError, Matcher};
use nexus_crds::table::{FORMAT, OLDEST_WRITABLE, RouteTable};
use nexus_sidecar::identity::Identity;

fuzz_target!(|data: &[u8]| {
    let decoded = RouteTable::decode(data);
    if !data.starts_with(&[0x1f, 0x8b]) {
        let unpacked = RouteTable::decode(&gzip(data));
        assert_eq!(
            decoded.as_ref().ok(),
            unpacked.as_ref().ok(),
            "compression changes the table"
        );
    }
    let Ok(table) = decoded else {
        return;
    };
    survives_the_wire(&table);
    if let Ok(matcher) = Matcher::load(&table, Ok::<_, LoadError>) {
        finds_every_route(&table, &matcher);
    }
    is_narrowed(&table);
});

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn survives_the_wire(table: &RouteTable) {
    for format in OLDEST_WRITABLE..=FORMAT {
        let encoded = table
            .encode_as(format)
            .expect("what was read can be written");
        let again = RouteTable::decode(encoded.as_bytes()).expect("what was written can be read");
        let expected = RouteTable {
            format,
            min_reader: format,
            ..table.clone()
        };
        assert_eq!(again, expected);
        assert_eq!(again.content_hash(), table.content_hash());
    }
}

fn finds_every_route(table: &RouteTable, matcher: &Matcher<CompiledRoute>) {
    assert_eq!(matcher.routes().len(), table.routes.len());
    let mut first = HashSet::new();
    for (source, route) in table.routes.iter().zip(matcher.routes()) {
        assert_eq!(*route.name, format!("{}/{}", table.namespace, source.name));
        assert_eq!(route.not_ready, source.requires_unknown());
        let found = matcher.by_provider(&source.provider);
        let found = found.expect("its provider leads to a route");
        assert_eq!(*found.provider, source.provider);
        if first.insert(&source.provider) {
            assert!(std::ptr::eq(found, route), "the first of a provider serves");
        }
        if route.not_ready {
            continue;
        }
        let upstream = &route.upstream;
        assert!(!upstream.host.is_empty() && upstream.port != 0);
        assert!(!upstream.base_path.ends_with('/'));
        assert!(upstream.base_path.is_empty() || upstream.base_path.starts_with('/'));
        let path = format!("{}/x", upstream.base_path);
        let found = matcher.by_host(&upstream.host, upstream.port, &path);
        let found = found.expect("its host and base path lead to a route");
        assert_eq!(
            (&found.upstream.host, found.upstream.port),
            (&upstream.host, upstream.port)
        );
        let rest = path.strip_prefix(&*found.upstream.base_path);
        assert!(rest.is_some_and(|rest| rest.starts_with('/')), "{path}");
        assert!(found.upstream.base_path.len() >= upstream.base_path.len());
        let connections = &route.connections;
        for connection in connections
            .by_tenant
            .values()
            .chain(&connections.tenantless)
        {
            let (owner, tenant) = matcher
                .by_connection(connection.id)
                .expect("its connection leads to a route");
            let named = match tenant {
                Some(tenant) => owner.connections.by_tenant.get(tenant).copied(),
                None => owner.connections.tenantless,
            };
            assert_eq!(named.map(|named| named.id), Some(connection.id));
        }
    }
}

/// For a pod with the labels and service account that the table's first selective route asks for, and for none.
fn is_narrowed(table: &RouteTable) {
    let labels: BTreeMap<String, String> = table
        .routes
        .iter()
        .filter_map(|route| route.pod_selector.as_deref()?.match_labels.clone())
        .next()
        .unwrap_or_default();
    let service_account = table
        .routes
        .iter()
        .find_map(|route| route.service_accounts.first().cloned())
        .unwrap_or_default();
    let pod = Admitted {
        version: 1,
        tenants: BTreeSet::new(),
        labels,
        service_account,
        table_format: FORMAT,
        sidecar_version: String::new(),
    };
    for (identity, pod) in [
        (Identity::unknown(), None),
        (Identity::pod(pod.clone()), Some(&pod)),
    ] {
        let mut narrowed = table.clone();
        identity.narrow(&mut narrowed);
        let mut providers = HashSet::new();
        let expected = table.routes.iter().filter(|route| {
            pod.is_none_or(|pod| pod.is_given(route)) && providers.insert(&route.provider)
        });
        assert!(narrowed.routes.iter().eq(expected));
        assert_eq!(narrowed.hash, table.hash);
    }
}
