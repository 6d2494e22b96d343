use serde_json::{Value, json};

use super::*;

fn problem(spec: Value) -> (Reason, String) {
    let compiled = local(&[route("r", spec)], &[]);
    let problem = compiled.verdicts[0].result.clone().unwrap_err();
    assert!(compiled.tables["agents"].routes.is_empty());
    (problem.reason, problem.field)
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
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
            json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Equals", "values": ["x"]}]}}),
            InvalidValue,
            "spec.podSelector.matchExpressions[0].operator",
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
            json!({"replay": {"statusCodes": [200]}}),
            InvalidValue,
            "spec.replay.statusCodes",
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
