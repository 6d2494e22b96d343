use serde_json::json;

use super::*;

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
            reasons(&compile(&routes, NOBODY, &grants)),
            [expected],
            "{grants:?}"
        );
    }
}

#[test]
fn a_refused_origin_says_what_an_administrator_would_apply() {
    let compiled = compile(
        &[route("r", minimal("t"))],
        NOBODY,
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
        reasons(&compile(&routes, NOBODY, &grants(false))),
        [Reason::InvalidUpstream]
    );
    assert_eq!(
        reasons(&compile(&routes, NOBODY, &grants(true))),
        [Reason::Accepted]
    );
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
    let compiled = compile(&routes, NOBODY, &grants(BTreeMap::new()));
    assert_eq!(reasons(&compiled), [no, yes, yes, no]);
    let field = compiled.verdicts[3].result.clone().unwrap_err().field;
    assert_eq!(field, "spec.connections[0].keyConnectionId");
    let shared = [
        ("b".to_owned(), ConnectionGrant::from_annotation(ID_1)),
        ("c".to_owned(), ConnectionGrant::All),
    ];
    let compiled = compile(&routes, NOBODY, &grants(shared.into()));
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
        reasons(&compile(&routes, NOBODY, &grants)),
        [Reason::InvalidUpstream, Reason::Accepted]
    );
}

#[test]
fn who_may_answer_for_a_granted_origin_is_its_providers_to_say() {
    let authority = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.self_signed(&key).unwrap().pem()
    };
    let (own, theirs) = (authority(), authority());
    let upstream = |pem: &str| json!({"url": "https://h.example", "caBundle": pem});
    let routes = [route(
        "r",
        json!({"provider": "p", "upstream": upstream(&own)}),
    )];
    let allow = ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    };
    let plain = json!({"url": "https://h.example"});
    for (given, grants, expected) in [
        (
            plain.clone(),
            cluster(ClusterGrants::default()),
            Reason::OriginNotGranted,
        ),
        (
            upstream(&theirs),
            cluster(ClusterGrants::default()),
            Reason::OriginNotGranted,
        ),
        (
            upstream(&own),
            cluster(ClusterGrants::default()),
            Reason::Accepted,
        ),
        (plain.clone(), cluster(allow), Reason::Accepted),
        (plain, Grants::Local, Reason::Accepted),
    ] {
        let providers = [provider("p", json!({"upstream": given}))];
        let compiled = compile(&routes, &providers, &grants);
        assert_eq!(reasons(&compiled), [expected], "{grants:?}");
    }
}

#[test]
fn routes_of_a_provider_that_cannot_be_read_wait() {
    let grants = ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        unreadable_providers: ["p".to_owned()].into(),
        ..ClusterGrants::default()
    };
    let other = json!({"provider": "q", "upstream": {"url": "https://h.example"}});
    let routes = [route("r", minimal("t")), route("s", other)];
    let compiled = compile(&routes, NOBODY, &cluster(grants));
    assert_eq!(reasons(&compiled), [Reason::InvalidValue, Reason::Accepted]);
}
