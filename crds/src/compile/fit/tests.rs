use serde_json::{Value, json};

use super::*;
use crate::compile::{DEFAULT_NAMESPACE, compile};
use crate::grants::{ClusterGrants, InlineUpstreams};
use crate::table::{FORMAT, OLDEST_WRITABLE};

const NOBODY: &[NexusProvider] = &[];

/// Ids as a control plane gives them: nothing to compress.
struct Ids(u64);

impl Ids {
    fn next(&mut self) -> String {
        let mut word = || {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = self.0;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        uuid::Uuid::from_u64_pair(word(), word()).to_string()
    }
}

fn grants() -> Grants {
    Grants::Cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    })
}

/// A route of provider `p` with as many tenants, made in this second.
fn route(name: &str, created: u8, tenants: usize, ids: &mut Ids) -> NexusRoute {
    let connections: Vec<Value> = (0..tenants)
        .map(|n| json!({"tenant": format!("tenant_{name}_{n}"), "connectionId": ids.next()}))
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
        "metadata": {"name": name, "namespace": "agents", "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")},
        "spec": {"provider": "p", "upstream": {"url": "https://h.example"}, "connections": connections},
    }))
    .unwrap()
}

/// Routes of one provider that merge, newest first.
fn merging(count: u8, tenants: usize) -> Vec<NexusRoute> {
    let mut ids = Ids(1);
    let name = |n: u8| format!("r{n:02}");
    (0..count)
        .rev()
        .map(|n| route(&name(n), n, tenants, &mut ids))
        .collect()
}

fn whole(routes: &[NexusRoute]) -> RouteTable {
    compile(routes, NOBODY, &grants()).tables["agents"].clone()
}

fn fitted(routes: &[NexusRoute], format: u32, limit: usize) -> Fitted {
    fit(whole(routes), routes, NOBODY, &grants(), format, limit).unwrap()
}

fn size(table: &RouteTable, format: u32) -> usize {
    table.encode_as(format).unwrap().as_bytes().len()
}

#[test]
fn a_table_that_fits_is_left_as_it_is() {
    let routes = merging(20, 3);
    let table = RouteTable {
        revision: 7,
        ca_certificates: "PEM".to_owned(),
        ..whole(&routes)
    };
    for format in OLDEST_WRITABLE..=FORMAT {
        let limit = size(&table, format);
        let fitted = fit(table.clone(), &routes, NOBODY, &grants(), format, limit).unwrap();
        assert_eq!((fitted.table, fitted.left_out), (table.clone(), Vec::new()));
        let fitted = fit(table.clone(), &routes, NOBODY, &grants(), format, limit - 1).unwrap();
        assert_eq!(fitted.left_out, [0], "one byte less, and the newest goes");
        assert_eq!(
            (fitted.table.revision, &*fitted.table.ca_certificates),
            (7, "PEM")
        );
    }
}

#[test]
fn the_newest_of_merged_routes_are_left_out_one_by_one() {
    let routes = merging(20, 3);
    let all = size(&whole(&routes), FORMAT);
    let mut before = 0;
    for limit in (all / 4..all).step_by(all / 16) {
        let Fitted { table, left_out } = fitted(&routes, FORMAT, limit);
        assert!(size(&table, FORMAT) <= limit);
        let kept = routes.len() - left_out.len();
        assert!(
            left_out.iter().copied().eq(0..left_out.len()),
            "the newest: {left_out:?}"
        );
        assert_eq!(table.routes.len(), 1, "still merged");
        assert_eq!(table.routes[0].connections.len(), 3 * kept);
        assert!(kept >= before && kept < routes.len());
        before = kept;
        // As many as possible, and the same as if the others were not there.
        let more = whole(&routes[left_out.len() - 1..]);
        assert!(size(&more, FORMAT) > limit);
        assert_eq!(table, whole(&routes[left_out.len()..]));
        assert_eq!(table.hash, table.content_hash());
    }
    assert!(before > 10);
}

#[test]
fn the_result_does_not_depend_on_the_order_given() {
    let mut routes = merging(20, 3);
    let limit = size(&whole(&routes), FORMAT) / 2;
    let one = fitted(&routes, FORMAT, limit);
    routes.reverse();
    let other = fitted(&routes, FORMAT, limit);
    assert_eq!(one.table, other.table);
    let mirrored: Vec<usize> = one.left_out.iter().rev().map(|index| 19 - index).collect();
    assert_eq!(other.left_out, mirrored);
}

#[test]
fn a_route_that_is_too_large_by_itself_does_not_take_the_others_with_it() {
    let mut routes = merging(20, 3);
    let limit = size(&whole(&routes), FORMAT);
    routes[19] = route("r00", 0, 200, &mut Ids(9));
    let fitted = fitted(&routes, FORMAT, limit);
    assert_eq!(fitted.left_out, [19]);
    assert_eq!(fitted.table, whole(&routes[..19]));
}

#[test]
fn where_nothing_fits_the_table_is_empty() {
    let routes = merging(20, 1);
    let Fitted { table, left_out } = fitted(&routes, FORMAT, 0);
    assert!(table.routes.is_empty());
    assert!(left_out.into_iter().eq(0..20));
}

#[test]
fn defaults_of_a_provider_are_in_what_is_left() {
    let providers: [NexusProvider; 1] = [serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusProvider", "metadata": {"name": "p"},
        "spec": {"upstream": {"url": "https://h.example"}, "access": {"deny": [{"paths": ["/keys/**"]}]}},
    }))
    .unwrap()];
    let routes = merging(20, 3);
    let compiled =
        |routes: &[NexusRoute]| compile(routes, &providers, &grants()).tables["agents"].clone();
    let all = compiled(&routes);
    let limit = size(&all, FORMAT) - 1;
    let fitted = fit(all, &routes, &providers, &grants(), FORMAT, limit).unwrap();
    assert_eq!(fitted.table, compiled(&routes[1..]));
    assert!(fitted.table.routes[0].access.is_some());
}

/// What `fit` relies on: once routes are accepted, those of other namespaces do not matter, nor do newer ones.
#[test]
fn accepted_routes_compile_alone_to_what_they_are_in_the_cluster() {
    let mut ids = Ids(3);
    let mut cluster = Vec::new();
    for (n, namespace) in ["a", "b", "c"].iter().cycle().take(12).enumerate() {
        let created = u8::try_from(n).unwrap();
        let mut route = route(&format!("r{n}"), created, 2, &mut ids);
        route.metadata.namespace = Some((*namespace).to_owned());
        if n % 4 == 3 {
            // Claimed by an older route of another namespace.
            route.spec.connections = cluster
                .last()
                .map(|older: &NexusRoute| older.spec.connections.clone())
                .unwrap();
        }
        if n % 5 == 4 {
            route.spec.provider = Some(format!("p{n}"));
        }
        cluster.push(route);
    }
    let everything = compile(&cluster, NOBODY, &grants());
    let verdicts = &everything.verdicts;
    assert!(verdicts.iter().any(|verdict| !verdict.accepted()));
    for (namespace, table) in &everything.tables {
        let accepted: Vec<NexusRoute> = verdicts
            .iter()
            .filter(|verdict| verdict.accepted() && verdict.namespace == *namespace)
            .map(|verdict| cluster[verdict.index].clone())
            .collect();
        assert!(accepted.len() > 1, "{namespace}");
        assert_eq!(
            &compile(&accepted, NOBODY, &grants()).tables[namespace],
            table
        );
        let fitted = fit(
            table.clone(),
            &accepted,
            NOBODY,
            &grants(),
            FORMAT,
            size(table, FORMAT) - 1,
        );
        let older = &accepted[..accepted.len() - 1];
        let expected = &compile(older, NOBODY, &grants()).tables[namespace];
        assert_eq!(&fitted.unwrap().table, expected);
    }
    assert!(!everything.tables.contains_key(DEFAULT_NAMESPACE));
}

/// The headline figure: printed, and held to what the documents say.
#[test]
fn a_config_map_holds_tens_of_thousands_of_tenants() {
    let routes = merging(12, 5_000);
    let table = whole(&routes);
    let mut kept = Vec::new();
    for format in OLDEST_WRITABLE..=FORMAT {
        let fitted = fit(
            table.clone(),
            &routes,
            NOBODY,
            &grants(),
            format,
            CONFIG_MAP_LIMIT,
        )
        .unwrap();
        let tenants = fitted.table.routes[0].connections.len();
        let bytes = size(&fitted.table, format);
        println!(
            "format {format}: {tenants} tenants in {bytes} bytes, {} bytes each",
            bytes / tenants
        );
        assert!(bytes <= CONFIG_MAP_LIMIT);
        kept.push(tenants);
    }
    assert!(kept[0] >= 35_000 && kept[1] >= 50_000, "{kept:?}");
}
