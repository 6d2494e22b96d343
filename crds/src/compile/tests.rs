use serde_json::{Value, json};

use super::*;
use crate::grants::{ClusterGrants, ConnectionGrant, InlineUpstreams};
use crate::matcher::Matcher;

const ID_1: &str = "11111111-1111-4111-8111-111111111111";
const ID_2: &str = "22222222-2222-4222-8222-222222222222";

fn route(name: &str, spec: Value) -> NexusRoute {
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
        "metadata": {"name": name, "namespace": "agents"},
        "spec": spec,
    }))
    .unwrap()
}

fn route_in(namespace: &str, name: &str, created: u8, spec: Value) -> NexusRoute {
    let mut route = route(name, spec);
    route.metadata.namespace = Some(namespace.to_owned());
    let created = format!("2026-01-{created:02}T00:00:00Z");
    route.metadata.creation_timestamp = Some(serde_json::from_value(json!(created)).unwrap());
    route
}

fn provider(name: &str, spec: Value) -> NexusProvider {
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusProvider",
        "metadata": {"name": name},
        "spec": spec,
    }))
    .unwrap()
}

fn minimal(tenant: &str) -> Value {
    json!({
        "provider": "p",
        "upstream": {"url": "https://h.example"},
        "connections": [{"tenant": tenant, "connectionId": ID_1}],
    })
}

fn local(routes: &[NexusRoute], providers: &[NexusProvider]) -> Compiled {
    compile(routes, providers, &Grants::Local)
}

fn cluster(grants: ClusterGrants) -> Grants {
    Grants::Cluster(grants)
}

/// Reasons of the routes' verdicts, in the order given.
fn reasons(compiled: &Compiled) -> Vec<Reason> {
    let routes = compiled.verdicts.iter().filter(|v| v.kind == Kind::Route);
    routes.map(Verdict::reason).collect()
}

/// Reason and field of the only route's verdict.
fn problem(spec: Value) -> (Reason, String) {
    let compiled = local(&[route("r", spec)], &[]);
    let problem = compiled.verdicts[0].result.clone().unwrap_err();
    assert!(compiled.tables["agents"].routes.is_empty());
    (problem.reason, problem.field)
}

#[test]
fn a_valid_route_is_accepted_and_stands_in_the_table() {
    let compiled = local(&[route("r", minimal("t"))], &[]);
    assert_eq!(reasons(&compiled), [Reason::Accepted]);
    let table = &compiled.tables["agents"];
    assert_eq!(table.routes[0].provider, "p");
    assert_eq!(table.hash, table.content_hash());
}

#[test]
fn the_provider_defaults_to_the_name() {
    let compiled = local(
        &[route(
            "github",
            json!({"upstream": {"url": "https://h.example"}}),
        )],
        &[],
    );
    assert_eq!(compiled.tables["agents"].routes[0].provider, "github");
}

#[test]
fn each_fault_has_its_reason_and_field() {
    use Reason::{
        DuplicateTenant, InvalidAccessRule, InvalidCaBundle, InvalidStrategy, InvalidUpstream,
        InvalidValue,
    };
    let upstream = |spec: Value| {
        let mut spec = spec;
        if let Value::Object(spec) = &mut spec {
            spec.entry("upstream")
                .or_insert(json!({"url": "https://h.example"}));
        }
        spec
    };
    let table = [
        (json!({"provider": "Bad"}), InvalidValue, "spec.provider"),
        (
            json!({"upstream": {}}),
            InvalidUpstream,
            "spec.upstream.url",
        ),
        (
            json!({"upstream": {"url": "http://h"}}),
            InvalidUpstream,
            "spec.upstream.url",
        ),
        (
            json!({"upstream": {"url": "https://u:p@h"}}),
            InvalidUpstream,
            "spec.upstream.url",
        ),
        (
            json!({"upstream": {"url": "https://h", "protocol": "H2C"}}),
            InvalidUpstream,
            "spec.upstream.protocol",
        ),
        (
            json!({"upstream": {"url": "https://h", "caBundle": "x"}}),
            InvalidCaBundle,
            "spec.upstream.caBundle",
        ),
        (
            json!({"strategy": {"type": "bearer"}}),
            InvalidStrategy,
            "spec.strategy.type",
        ),
        (
            json!({"strategy": {"type": "query_param"}}),
            InvalidStrategy,
            "spec.strategy.config.param_name",
        ),
        (
            json!({"access": {"deny": [{"paths": ["/a?"]}]}}),
            InvalidAccessRule,
            "spec.access.deny[0].paths[0]",
        ),
        (
            json!({"access": {"allow": []}}),
            InvalidAccessRule,
            "spec.access.allow",
        ),
        (
            json!({"headers": {"set": {"Host": "x"}}}),
            InvalidValue,
            "spec.headers.set[Host]",
        ),
        (
            json!({"headers": {"set": {"Authorization": "x"}}}),
            InvalidValue,
            "spec.headers.set[Authorization]",
        ),
        (
            json!({"headers": {"remove": ["a b"]}}),
            InvalidValue,
            "spec.headers.remove",
        ),
        (
            json!({"timeouts": {"connect": "none"}}),
            InvalidValue,
            "spec.timeouts.connect",
        ),
        (
            json!({"timeouts": {"idle": "10"}}),
            InvalidValue,
            "spec.timeouts.idle",
        ),
        (
            json!({"limits": {"burst": 5}}),
            InvalidValue,
            "spec.limits.burst",
        ),
        (
            json!({"replay": {"on": [200]}}),
            InvalidValue,
            "spec.replay.on",
        ),
        (
            json!({"response": {"linkHeaders": [""]}}),
            InvalidValue,
            "spec.response.linkHeaders",
        ),
        (
            json!({"connections": [{"connectionId": "nonsense"}]}),
            InvalidValue,
            "spec.connections[0].connectionId",
        ),
        (
            json!({"connections": [{"tenant": "a b", "connectionId": ID_1}]}),
            InvalidValue,
            "spec.connections[0].tenant",
        ),
        (
            json!({"connections": [
                {"tenant": "t", "connectionId": ID_1}, {"tenant": "t", "connectionId": ID_2}]}),
            DuplicateTenant,
            "spec.connections[1].tenant",
        ),
        (
            json!({"connections": [{"connectionId": ID_1}, {"connectionId": ID_2}]}),
            DuplicateTenant,
            "spec.connections[1].tenant",
        ),
    ];
    for (spec, reason, field) in table {
        let spec = upstream(spec);
        assert_eq!(problem(spec.clone()), (reason, field.to_owned()), "{spec}");
    }
}

#[test]
fn a_bad_route_leaves_the_others_in_the_table() {
    let routes = [
        route("a", json!({"provider": "a"})),
        route("b", minimal("t")),
    ];
    let compiled = local(&routes, &[]);
    assert_eq!(
        reasons(&compiled),
        [Reason::InvalidUpstream, Reason::Accepted]
    );
    assert_eq!(compiled.tables["agents"].routes.len(), 1);
}

#[test]
fn a_provider_fills_in_what_a_route_does_not_say() {
    let github = provider(
        "p",
        json!({
            "upstream": {"url": "https://h.example", "protocol": "HTTP1"},
            "strategy": {"type": "oauth2"},
            "headers": {"set": {"Accept": "a", "X-V": "1"}, "remove": ["X-R"]},
            "access": {"allow": [{"paths": ["/a"]}], "deny": [{"paths": ["/p"]}], "pathsIgnoreCase": true},
            "limits": {"requestsPerSecond": 5, "burst": 9, "maxSignedBodyBytes": 7},
            "timeouts": {"idle": "5s", "connect": "1s"},
            "response": {"scrub": "Block"},
        }),
    );
    let own = json!({
        "provider": "p",
        "upstream": {"protocol": "HTTP2"},
        "headers": {"set": {"accept": "b"}, "keep": ["X-K"]},
        "access": {"allow": [{"paths": ["/b"]}], "deny": [{"paths": ["/r"]}], "pathsIgnoreCase": false},
        "limits": {"requestsPerSecond": 50},
        "timeouts": {"idle": "6s"},
    });
    let compiled = local(&[route("r", own)], &[github]);
    assert_eq!(reasons(&compiled), [Reason::Accepted]);
    let merged = serde_json::to_value(&compiled.tables["agents"].routes[0]).unwrap();
    assert_eq!(
        merged,
        json!({
            "name": "r", "provider": "p", "connections": [],
            "upstream": {"url": "https://h.example", "protocol": "HTTP2"},
            "strategy": {"type": "oauth2"},
            "headers": {"set": {"X-V": "1", "accept": "b"}, "remove": ["X-R"], "keep": ["X-K"]},
            "access": {"allow": [{"paths": ["/b"]}], "deny": [{"paths": ["/r"]}, {"paths": ["/p"]}], "pathsIgnoreCase": true},
            "limits": {"maxSignedBodyBytes": 7, "requestsPerSecond": 50},
            "timeouts": {"connect": "1s", "idle": "6s"},
            "response": {"scrub": "Block"},
        })
    );
}

#[test]
fn a_routes_upstream_must_be_an_origin_of_its_provider() {
    let own = |url: &str| {
        [route(
            "r",
            json!({"provider": "p", "upstream": {"url": url}}),
        )]
    };
    let by_upstream = [provider(
        "p",
        json!({"upstream": {"url": "https://h.example/v1"}}),
    )];
    let by_origins = [provider(
        "p",
        json!({"upstream": {"url": "https://h.example"}, "origins": ["https://h.example", "https://*.eu.example"]}),
    )];
    for (url, providers, expected) in [
        ("https://h.example/v2", &by_upstream, Reason::Accepted),
        (
            "https://evil.example",
            &by_upstream,
            Reason::OriginNotGranted,
        ),
        (
            "https://h.example:8443",
            &by_upstream,
            Reason::OriginNotGranted,
        ),
        ("https://a.eu.example", &by_origins, Reason::Accepted),
        ("https://eu.example", &by_origins, Reason::OriginNotGranted),
    ] {
        for grants in [Grants::Local, cluster(ClusterGrants::default())] {
            let compiled = compile(&own(url), providers, &grants);
            assert_eq!(reasons(&compiled), [expected], "{url}");
        }
    }
}

#[test]
fn an_invalid_provider_takes_its_routes_with_it() {
    let broken = provider(
        "p",
        json!({"upstream": {"url": "https://h.example"}, "origins": ["https://*"]}),
    );
    let compiled = local(&[route("r", minimal("t"))], &[broken]);
    let [provider, route] = &compiled.verdicts[..] else {
        panic!("two verdicts")
    };
    let problem = provider.result.clone().unwrap_err();
    assert_eq!(
        (provider.kind, problem.field.as_str()),
        (Kind::Provider, "spec.origins[0]")
    );
    let problem = route.result.clone().unwrap_err();
    assert_eq!(problem.field, "spec.provider");
    assert!(problem.message.contains("spec.origins[0]"), "{problem}");
}

#[test]
fn in_a_cluster_an_upstream_needs_a_grant() {
    let routes = [route("r", minimal("t"))];
    let gateway = |url: &str| ClusterGrants {
        gateway_urls: [("p".to_owned(), url.to_owned())].into(),
        ..ClusterGrants::default()
    };
    let allow = ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    };
    for (grants, expected) in [
        (Grants::Local, Reason::Accepted),
        (cluster(ClusterGrants::default()), Reason::OriginNotGranted),
        (cluster(gateway("https://h.example/api")), Reason::Accepted),
        (
            cluster(gateway("https://other.example")),
            Reason::OriginNotGranted,
        ),
        (cluster(gateway("nonsense")), Reason::OriginNotGranted),
        (cluster(allow), Reason::Accepted),
    ] {
        assert_eq!(
            reasons(&compile(&routes, &[], &grants)),
            [expected],
            "{grants:?}"
        );
    }
}

#[test]
fn a_refused_origin_says_what_an_administrator_would_apply() {
    let compiled = compile(
        &[route("r", minimal("t"))],
        &[],
        &cluster(ClusterGrants::default()),
    );
    let message = compiled.verdicts[0].result.clone().unwrap_err().message;
    assert!(
        message.contains("NexusProvider \"p\" with spec.origins: [\"https://h.example\"]"),
        "{message}"
    );
}

#[test]
fn clear_text_needs_the_clusters_consent_too() {
    let spec = json!({"upstream": {"url": "http://h.example", "allowInsecure": true}});
    let grants = |allow_insecure_upstreams| {
        cluster(ClusterGrants {
            allow_insecure_upstreams,
            inline_upstreams: InlineUpstreams::Allow,
            ..ClusterGrants::default()
        })
    };
    let routes = [route("r", spec)];
    assert_eq!(
        reasons(&compile(&routes, &[], &grants(false))),
        [Reason::InvalidUpstream]
    );
    assert_eq!(
        reasons(&compile(&routes, &[], &grants(true))),
        [Reason::Accepted]
    );
}

#[test]
fn routes_that_differ_in_connections_only_become_one() {
    let compiled = local(&[route("a", minimal("t")), route("b", minimal("u"))], &[]);
    assert_eq!(reasons(&compiled), [Reason::Accepted, Reason::Accepted]);
    let routes = &compiled.tables["agents"].routes;
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].name, "a");
    assert_eq!(routes[0].connections.len(), 2);
}

#[test]
fn a_tenant_in_two_routes_that_would_merge_is_a_duplicate() {
    let compiled = local(&[route("a", minimal("t")), route("b", minimal("t"))], &[]);
    assert_eq!(
        reasons(&compiled),
        [Reason::Accepted, Reason::DuplicateTenant]
    );
    assert_eq!(compiled.tables["agents"].routes[0].connections.len(), 1);
}

#[test]
fn of_two_different_routes_for_a_provider_the_older_wins() {
    let other = json!({"provider": "p", "upstream": {"url": "https://other.example"}});
    let grants = cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    });
    let routes = [
        route_in("agents", "a", 2, minimal("t")),
        route_in("agents", "z", 1, other.clone()),
    ];
    let compiled = compile(&routes, &[], &grants);
    assert_eq!(
        reasons(&compiled),
        [Reason::ProviderConflict, Reason::Accepted]
    );
    let same_age = [
        route_in("agents", "z", 1, other.clone()),
        route_in("agents", "a", 1, minimal("t")),
    ];
    let compiled = compile(&same_age, &[], &grants);
    assert_eq!(
        reasons(&compiled),
        [Reason::ProviderConflict, Reason::Accepted]
    );
    // Files have no age: the first one wins.
    let compiled = local(&same_age, &[]);
    assert_eq!(
        reasons(&compiled),
        [Reason::Accepted, Reason::ProviderConflict]
    );
    let message = compiled.verdicts[1].result.clone().unwrap_err().message;
    assert!(
        message.contains("\"z\"") && message.contains("upstream"),
        "{message}"
    );
}

#[test]
fn disjoint_selectors_and_other_namespaces_do_not_conflict() {
    let with = |app: &str, url: &str| json!({"provider": "p", "upstream": {"url": url}, "podSelector": {"matchLabels": {"app": app}}});
    let routes = [
        route("a", with("a", "https://a.example")),
        route("b", with("b", "https://b.example")),
        route("c", with("b", "https://c.example")),
        route_in("other", "d", 1, with("b", "https://c.example")),
    ];
    let compiled = local(&routes, &[]);
    let accepted = Reason::Accepted;
    assert_eq!(
        reasons(&compiled),
        [accepted, accepted, Reason::ProviderConflict, accepted]
    );
    assert_eq!(compiled.tables["other"].routes.len(), 1);
}

#[test]
fn a_connection_belongs_to_the_namespace_that_named_it_first() {
    let with = |id: &str| json!({"upstream": {"url": "https://h.example"}, "connections": [{"connectionId": id}]});
    let key = json!({"upstream": {"url": "https://h.example"},
        "connections": [{"connectionId": ID_2, "keyConnectionId": ID_1}]});
    let routes = [
        route_in("b", "late", 2, with(ID_1)),
        route_in("a", "early", 1, with(&ID_1.to_uppercase())),
        route_in("a", "again", 3, with(ID_1)),
        route_in("c", "key", 4, key),
    ];
    let grants = |connections| {
        cluster(ClusterGrants {
            inline_upstreams: InlineUpstreams::Allow,
            connections,
            ..ClusterGrants::default()
        })
    };
    let (yes, no) = (Reason::Accepted, Reason::ConnectionClaimed);
    let compiled = compile(&routes, &[], &grants(BTreeMap::new()));
    assert_eq!(reasons(&compiled), [no, yes, yes, no]);
    let field = compiled.verdicts[3].result.clone().unwrap_err().field;
    assert_eq!(field, "spec.connections[0].keyConnectionId");
    let shared = [
        ("b".to_owned(), ConnectionGrant::from_annotation(ID_1)),
        ("c".to_owned(), ConnectionGrant::All),
    ];
    let compiled = compile(&routes, &[], &grants(shared.into()));
    assert_eq!(reasons(&compiled), [yes, yes, yes, yes]);
    assert_eq!(reasons(&local(&routes, &[])), [yes, yes, yes, yes]);
}

#[test]
fn a_refused_route_claims_nothing() {
    let with =
        |url: &str| json!({"upstream": {"url": url}, "connections": [{"connectionId": ID_1}]});
    let routes = [
        route_in("a", "broken", 1, with("nonsense")),
        route_in("b", "sound", 2, with("https://h.example")),
    ];
    let grants = cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    });
    assert_eq!(
        reasons(&compile(&routes, &[], &grants)),
        [Reason::InvalidUpstream, Reason::Accepted]
    );
}

#[test]
fn what_was_accepted_loads() {
    let routes = [
        route("a", minimal("t")),
        route(
            "b",
            json!({"upstream": {"url": "https://b.example"}, "strategy": {"type": "dpop"},
            "access": {"deny": [{"paths": ["/{a,b}/**"]}]}}),
        ),
    ];
    let compiled = local(&routes, &[]);
    let wire = compiled.tables["agents"].encode().unwrap();
    let table = RouteTable::decode(wire.as_bytes()).unwrap();
    let matcher = Matcher::load(&table, |route| route).unwrap();
    assert_eq!(matcher.routes().len(), 2);
}

#[test]
fn the_result_depends_on_the_objects_and_not_on_their_order() {
    let mut routes: Vec<_> = (1..=6)
        .map(|n| {
            route_in(
                "agents",
                &format!("r{n}"),
                n,
                minimal(&format!("t{}", n % 4)),
            )
        })
        .collect();
    let grants = cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    });
    let forward = compile(&routes, &[], &grants).tables;
    routes.reverse();
    assert_eq!(compile(&routes, &[], &grants).tables, forward);
}

#[test]
fn unknown_fields_of_a_manifest_are_errors() {
    for spec in [
        json!({"upstraem": {}}),
        json!({"upstream": {"uri": "https://h.example"}}),
        json!({"connections": [{"connectionId": ID_1, "tennant": "t"}]}),
        json!({"access": {"deny": [{"path": "/a"}]}}),
    ] {
        let object = json!({"apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
            "metadata": {"name": "a"}, "spec": spec});
        assert!(
            serde_json::from_value::<NexusRoute>(object).is_err(),
            "{spec}"
        );
    }
}

fn warned(spec: Value) -> Vec<String> {
    let compiled = local(&[route("r", spec)], &[]);
    assert_eq!(reasons(&compiled), [Reason::Accepted]);
    let warnings = compiled.verdicts[0].warnings.iter();
    warnings
        .map(|warning| format!("{}: {}", warning.field, warning.message))
        .collect()
}

fn quiet(extra: Value) -> Value {
    let mut spec = json!({
        "upstream": {"url": "https://h.example"},
        "connections": [{"connectionId": ID_1}],
    });
    if let (Value::Object(spec), Value::Object(extra)) = (&mut spec, extra) {
        spec.extend(extra);
    }
    spec
}

#[test]
fn a_sound_route_warns_of_nothing() {
    for extra in [
        json!({}),
        json!({"access": {"allow": [{"methods": ["GET"], "paths": ["/a/**"]}]}}),
        json!({"response": {"linkHeaders": ["X-Upload-Url"]}}),
        json!({"upstream": {"url": "http://localhost:9000", "allowInsecure": true}}),
    ] {
        assert_eq!(warned(quiet(extra.clone())), [""; 0], "{extra}");
    }
}

#[test]
fn what_looks_safe_and_is_not_is_told() {
    for (extra, field, text) in [
        (json!({"connections": []}), "spec.connections", "is empty"),
        (
            json!({"connections": [{"tenant": "*", "connectionId": ID_1}]}),
            "spec.connections[0].tenant",
            "every tenant shares",
        ),
        (
            json!({"access": {"deny": [{"paths": ["/a"]}]}}),
            "spec.access.deny",
            "without allow rules",
        ),
        (
            json!({"access": {"mode": "Warn"}}),
            "spec.access.mode",
            "only count",
        ),
        (
            json!({"response": {"scrub": "Off"}}),
            "spec.response.scrub",
            "reaches the agent",
        ),
        (
            json!({"upstream": {"url": "http://h.example", "allowInsecure": true}}),
            "spec.upstream.url",
            "unencrypted",
        ),
        (
            json!({"access": {"allow": [{"paths": ["/**"]}]}}),
            "spec.access",
            "POST /graphql is within reach",
        ),
        (
            json!({"upstream": {"url": "https://graph.microsoft.com"}}),
            "spec.access",
            "POST /v1.0/$batch is within reach",
        ),
        (
            json!({"upstream": {"url": "https://www.googleapis.com"}}),
            "spec.access",
            "POST /batch is within reach",
        ),
        (
            json!({"upstream": {"url": "https://gitlab.com/api/v4"}}),
            "spec.access",
            "POST /api/v4/user/personal_access_tokens is within reach",
        ),
        (
            json!({"strategy": {"type": "aws_sigv4", "config": {"service": "dynamodb"}},
                "access": {"allow": [{"methods": ["POST"], "paths": ["/"]}]}}),
            "spec.access",
            "X-Amz-Target",
        ),
        (
            json!({"strategy": {"type": "header", "config": {"headername": "X"}}}),
            "spec.strategy.config.headername",
            "is no setting of header",
        ),
    ] {
        let warnings = warned(quiet(extra.clone()));
        let found = warnings
            .iter()
            .any(|warning| warning.starts_with(&format!("{field}: ")) && warning.contains(text));
        assert!(found, "{extra}: {warnings:?}");
    }
}

#[test]
fn a_deny_rule_silences_the_warning_about_its_endpoint() {
    let spec = quiet(json!({
        "upstream": {"url": "https://graph.microsoft.com"},
        "access": {"allow": [{"methods": ["GET"]}], "deny": [{"paths": ["/*/$batch"]}]},
    }));
    assert_eq!(warned(spec), [""; 0]);
}

#[test]
fn fields_of_later_versions_are_accepted_and_say_so() {
    for (extra, field) in [
        (json!({"replay": {"on": [403]}}), "spec.replay"),
        (
            json!({"response": {"rewriteLinks": "Body"}}),
            "spec.response.rewriteLinks",
        ),
        (
            json!({"response": {"setCookie": "Pass"}}),
            "spec.response.setCookie",
        ),
        (
            json!({"podSelector": {"matchLabels": {"a": "b"}}}),
            "spec.podSelector",
        ),
        (json!({"serviceAccounts": ["a"]}), "spec.serviceAccounts"),
        (
            json!({"connections": [{"connectionId": ID_1, "keyConnectionId": ID_2}]}),
            "spec.connections[0].keyConnectionId",
        ),
        (
            json!({"connections": [{"connectionId": ID_1, "variables": {"a": "b"}}]}),
            "spec.connections[0].variables",
        ),
        (json!({"strategy": {"type": "dpop"}}), "spec.strategy.type"),
        (
            json!({"strategy": {"type": "oauth1"}}),
            "spec.strategy.type",
        ),
        (json!({"strategy": {"type": "mtls"}}), "spec.strategy.type"),
    ] {
        let warnings = warned(quiet(extra.clone()));
        assert!(
            warnings.iter().any(|warning| warning.starts_with(field)),
            "{extra}: {warnings:?}"
        );
    }
    let sdk = provider(
        "p",
        json!({"upstream": {"url": "https://h.example"}, "sdk": {"placeholderEnv": ["KEY"]}}),
    );
    let compiled = local(&[], &[sdk]);
    assert_eq!(compiled.verdicts[0].warnings[0].field, "spec.sdk");
}
