//! Whether two routes can be for one pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::table::TableRoute;

/// `true` unless an equality requirement proves that no pod is selected by both.
pub(super) fn overlap(one: &TableRoute, other: &TableRoute) -> bool {
    let accounts = |route: &TableRoute| -> BTreeSet<String> {
        route.service_accounts.iter().cloned().collect()
    };
    let (ours, theirs) = (accounts(one), accounts(other));
    if !ours.is_empty() && !theirs.is_empty() && ours.is_disjoint(&theirs) {
        return false;
    }
    let (Some(ours), Some(theirs)) = (&one.pod_selector, &other.pod_selector) else {
        return true;
    };
    let (ours, theirs) = (equalities(ours), equalities(theirs));
    !ours
        .iter()
        .any(|(key, values)| theirs.get(key).is_some_and(|v| values.is_disjoint(v)))
}

/// By label: the values that a selector lets it have.
fn equalities(selector: &LabelSelector) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut equalities: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut require = |key, values: BTreeSet<_>| {
        equalities
            .entry(key)
            .and_modify(|known| known.retain(|value| values.contains(value)))
            .or_insert(values);
    };
    for (key, value) in selector.match_labels.iter().flatten() {
        require(key.as_str(), BTreeSet::from([value.as_str()]));
    }
    for expression in selector.match_expressions.iter().flatten() {
        if expression.operator == "In" {
            let values = expression.values.iter().flatten().map(String::as_str);
            require(expression.key.as_str(), values.collect());
        }
    }
    equalities
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn route(selector: Value) -> TableRoute {
        let mut route = json!({"name": "a", "provider": "a"});
        if let (Value::Object(route), Value::Object(selector)) = (&mut route, selector) {
            route.extend(selector);
        }
        serde_json::from_value(route).unwrap()
    }

    #[test]
    fn only_an_equality_proves_selectors_disjoint() {
        let app = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
        let op = |operator: &str, values: &[&str]| json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}});
        for (one, other, expected) in [
            (json!({}), json!({}), true),
            (json!({}), app("a"), true),
            (app("a"), app("a"), true),
            (app("a"), app("b"), false),
            (
                app("a"),
                json!({"podSelector": {"matchLabels": {"tier": "b"}}}),
                true,
            ),
            (app("a"), op("In", &["a", "b"]), true),
            (app("a"), op("In", &["b", "c"]), false),
            (app("a"), op("NotIn", &["a"]), true),
            (
                json!({"podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "In", "values": ["a", "b"]},
                    {"key": "app", "operator": "In", "values": ["a"]},
                ]}}),
                app("b"),
                false,
            ),
            (op("In", &["a"]), op("In", &["b"]), false),
            (
                json!({"serviceAccounts": ["a"]}),
                json!({"serviceAccounts": ["b"]}),
                false,
            ),
            (
                json!({"serviceAccounts": ["a"]}),
                json!({"serviceAccounts": ["a", "b"]}),
                true,
            ),
            (json!({"serviceAccounts": ["a"]}), json!({}), true),
        ] {
            assert_eq!(
                overlap(&route(one.clone()), &route(other.clone())),
                expected,
                "{one} {other}"
            );
            assert_eq!(
                overlap(&route(other.clone()), &route(one.clone())),
                expected,
                "{other} {one}"
            );
        }
    }
}
