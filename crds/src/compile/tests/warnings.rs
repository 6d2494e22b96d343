use serde_json::{Value, json};

use super::*;

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
            json!({"response": {"scrub": "None"}}),
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
fn selectors_are_pointed_out_where_there_may_be_no_pod() {
    for (extra, field) in [
        (json!({"podSelector": {}}), "spec.podSelector"),
        (json!({"serviceAccounts": ["a"]}), "spec.serviceAccounts"),
    ] {
        let about = |warnings: &[String]| warnings.iter().any(|it| it.starts_with(field));
        assert!(about(&warned(quiet(extra.clone()))), "{extra}");
        let grants = cluster(ClusterGrants {
            inline_upstreams: InlineUpstreams::Allow,
            ..ClusterGrants::default()
        });
        let compiled = compile(&[route("r", quiet(extra.clone()))], NOBODY, &grants);
        assert_eq!(reasons(&compiled), [Reason::Accepted]);
        let fields = compiled.verdicts[0]
            .warnings
            .iter()
            .map(|it| it.field.clone());
        assert!(!about(&fields.collect::<Vec<_>>()), "{extra}");
    }
}

#[test]
fn fields_of_later_versions_are_accepted_and_say_so() {
    for (extra, field) in [
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
