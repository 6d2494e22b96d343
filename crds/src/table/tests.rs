mod compact;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ID: &str = "11111111-1111-4111-8111-111111111111";

fn route(name: &str) -> TableRoute {
    TableRoute {
        name: name.to_owned(),
        provider: name.to_owned(),
        upstream: UpstreamSpec {
            url: Some(format!("https://{name}.example.com")),
            ..UpstreamSpec::default()
        },
        ..TableRoute::default()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn wire(routes: Value) -> Vec<u8> {
    let table = json!({"format": 1, "minReader": 1, "revision": 5, "hash": "", "namespace": "a", "routes": routes});
    serde_json::to_vec(&table).unwrap()
}

#[test]
fn a_table_survives_the_wire() {
    let table = RouteTable::new("agents", vec![route("a"), route("b")]);
    let encoded = table.encode().unwrap();
    assert!(matches!(encoded, Encoded::Json(_)));
    assert_eq!(RouteTable::decode(encoded.as_bytes()).unwrap(), table);
}

#[test]
fn a_large_table_is_compressed() {
    let routes = (0..5_000).map(|n| route(&format!("r{n}"))).collect();
    let table = RouteTable::new("agents", routes);
    let encoded = table.encode().unwrap();
    assert!(matches!(encoded, Encoded::Gzip(_)));
    assert!(encoded.as_bytes().len() < COMPRESSED_LIMIT);
    assert_eq!(RouteTable::decode(encoded.as_bytes()).unwrap(), table);
    assert_eq!(table.encode().unwrap(), encoded);
}

const COMPRESSED_LIMIT: usize = 128 * 1024;

#[test]
fn unknown_fields_are_ignored_at_every_depth() {
    let table = RouteTable::decode(&wire(json!([{
        "name": "a", "provider": "a", "new": 1,
        "upstream": {"url": "https://a.example.com", "new": {"x": 1}},
        "connections": [{"id": ID, "new": true}],
        "access": {"new": 1, "deny": [{"new": 1, "paths": ["/a"], "headers": {"Any": "x"}}]},
        "strategy": {"type": "header", "config": {"header_name": "X-Key"}},
    }])))
    .unwrap();
    let route = &table.routes[0];
    assert_eq!(route.upstream.url.as_deref(), Some("https://a.example.com"));
    assert_eq!(route.connections[0].id.to_string(), ID);
    let deny = &route.access.as_ref().unwrap().deny.as_ref().unwrap()[0];
    assert_eq!(deny.paths.as_deref(), Some(&["/a".to_owned()][..]));
    assert_eq!(deny.headers["Any"], "x");
    assert_eq!(
        route.strategy.as_ref().unwrap().config["header_name"],
        "X-Key"
    );
}

#[test]
fn a_route_that_requires_the_unknown_never_fails_the_table() {
    let table = RouteTable::decode(&wire(json!([
        {"name": "a", "provider": "a", "requires": ["http3"], "upstream": {"protocol": "HTTP3"}},
        {"name": "b", "provider": "b", "upstream": {"url": "https://b.example.com"}},
    ])))
    .unwrap();
    assert!(table.routes[0].requires_unknown());
    assert_eq!(table.routes[0].provider, "a");
    assert!(!table.routes[1].requires_unknown());
}

#[test]
fn a_route_that_requires_the_unknown_is_still_for_its_pods_only() {
    let ahead = |selector: Value, accounts: Value| {
        let table = RouteTable::decode(&wire(json!([{
            "name": "a", "provider": "a", "requires": ["http3"], "upstream": {"protocol": "HTTP3"},
            "podSelector": selector, "serviceAccounts": accounts,
        }])))
        .unwrap();
        table.routes.into_iter().next().unwrap()
    };
    let route = ahead(json!({"matchLabels": {"app": "x"}}), json!(["robot"]));
    let labels = route.pod_selector.unwrap().match_labels.unwrap();
    assert_eq!(labels["app"], "x");
    assert_eq!(route.service_accounts, ["robot"]);

    let route = ahead(json!("in a new way"), json!({"in": "a new way"}));
    assert!(route.pod_selector.is_none() && route.service_accounts.is_empty());
}

#[test]
fn what_is_no_table_is_an_error_that_says_so() {
    let newer = json!({"format": 9, "minReader": 9, "revision": 1, "hash": "", "namespace": "a", "routes": {}});
    let odd = wire(json!([{"name": "a", "provider": "a", "upstream": {"protocol": "HTTP3"}}]));
    let cut = &wire(json!([]))[..40];
    let mut damaged = RouteTable::new("a", (0..5_000).map(|n| route(&format!("r{n}"))).collect())
        .encode()
        .unwrap()
        .as_bytes()
        .to_vec();
    damaged.truncate(damaged.len() / 2);
    let table: [(&[u8], &str); 7] = [
        (b"", "not a route table"),
        (b"{}", "not a route table"),
        (b"apiVersion: v1", "not a route table"),
        (cut, "not a route table"),
        (newer.to_string().leak().as_bytes(), "upgrade the sidecar"),
        (&odd, "route \"a\" of the route table does not parse"),
        (&damaged, "damaged"),
    ];
    for (bytes, message) in table {
        let error = RouteTable::decode(bytes).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn the_hash_follows_the_content_and_not_the_revision() {
    let mut table = RouteTable::new("a", vec![route("a")]);
    assert_eq!(table.hash.len(), 64);
    table.revision = 7;
    assert_eq!(table.content_hash(), table.hash);
    (table.format, table.min_reader) = (1, 1);
    assert_eq!(table.content_hash(), table.hash);
    table.routes.push(route("b"));
    assert_ne!(table.content_hash(), table.hash);
}

#[test]
fn revisions_only_grow() {
    assert_eq!(next_revision(None, 1000), 1000);
    assert_eq!(next_revision(Some(5), 1000), 1000);
    assert_eq!(next_revision(Some(2000), 1000), 2001);
    assert_eq!(next_revision(Some(u64::MAX), 1000), u64::MAX);
}

#[test]
fn a_bomb_is_not_unpacked() {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let block = vec![b' '; 1024 * 1024];
    for _ in 0..65 {
        encoder.write_all(&block).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(matches!(
        RouteTable::decode(&bomb),
        Err(TableError::TooLarge)
    ));
}

proptest! {
    #[test]
    fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        drop(RouteTable::decode(&bytes));
        drop(RouteTable::decode(&[&[0x1f, 0x8b][..], &bytes].concat()));
    }

    #[test]
    fn an_odd_field_never_panics(name in "[a-zA-Z]{1,8}", value in "[0-9\\[\\]{}\",:a-z]{0,12}") {
        drop(RouteTable::decode(&wire(json!([{"name": "a", "provider": "a", name: value}]))));
    }
}
