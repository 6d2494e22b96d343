//! Whether a label selector selects a pod, with the meaning that Kubernetes gives it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::status::{Problem, Reason};

/// What a selector may say about one label.
enum Requirement<'a> {
    In(&'a [String]),
    NotIn(&'a [String]),
    Exists,
    DoesNotExist,
}

impl<'a> Requirement<'a> {
    /// Reads an expression; the error is the field of it that is wrong, and why.
    fn parse(expression: &'a LabelSelectorRequirement) -> Result<Self, (&'static str, String)> {
        let LabelSelectorRequirement {
            key,
            operator,
            values,
        } = expression;
        if key.is_empty() {
            return Err(("key", "must name a label".to_owned()));
        }
        let values = values.as_deref().unwrap_or_default();
        match (operator.as_str(), values.is_empty()) {
            ("In", false) => Ok(Self::In(values)),
            ("NotIn", false) => Ok(Self::NotIn(values)),
            ("Exists", true) => Ok(Self::Exists),
            ("DoesNotExist", true) => Ok(Self::DoesNotExist),
            ("In" | "NotIn", true) => Err(("values", format!("{operator} needs a value"))),
            ("Exists" | "DoesNotExist", false) => {
                Err(("values", format!("{operator} takes no values")))
            }
            _ => Err((
                "operator",
                format!("{operator:?} is none of In, NotIn, Exists and DoesNotExist"),
            )),
        }
    }

    /// A label that is missing satisfies `NotIn`.
    fn holds(&self, value: Option<&String>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

/// Whether the selector selects a pod with these labels: every entry of `matchLabels` and every expression must hold,
/// so an empty selector selects each pod. An expression that is not valid selects none.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let LabelSelector {
        match_labels,
        match_expressions,
    } = selector;
    let equal = |(key, value)| labels.get(key) == Some(value);
    let satisfied = |expression: &LabelSelectorRequirement| {
        Requirement::parse(expression)
            .is_ok_and(|requirement| requirement.holds(labels.get(&expression.key)))
    };
    match_labels.iter().flatten().all(equal) && match_expressions.iter().flatten().all(satisfied)
}

/// Judges a selector. `field` is where it stands, for the message.
pub(crate) fn check(selector: &LabelSelector, field: &str) -> Result<(), Problem> {
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        Requirement::parse(expression).map_err(|(part, message)| {
            let field = format!("{field}.matchExpressions[{index}].{part}");
            Problem::new(Reason::InvalidValue, field, message)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selector(selector: Value) -> LabelSelector {
        serde_json::from_value(selector).unwrap()
    }

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        labels.iter().map(owned).collect()
    }

    #[test]
    fn every_label_and_every_expression_must_hold() {
        let one = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        let app_a = &[("app", "a"), ("tier", "x")][..];
        let other = &[("tier", "x")][..];
        for (spec, on_app_a, on_other) in [
            (json!({}), true, true),
            (
                json!({"matchLabels": {}, "matchExpressions": []}),
                true,
                true,
            ),
            (json!({"matchLabels": {"app": "a"}}), true, false),
            (json!({"matchLabels": {"app": "A"}}), false, false),
            (
                json!({"matchLabels": {"app": "a", "tier": "x"}}),
                true,
                false,
            ),
            (
                json!({"matchLabels": {"app": "a", "tier": "y"}}),
                false,
                false,
            ),
            (json!({"matchLabels": {"app": ""}}), false, false),
            (one("In", &["b", "a"]), true, false),
            (one("In", &["b"]), false, false),
            (one("NotIn", &["b"]), true, true),
            (one("NotIn", &["b", "a"]), false, true),
            (one("Exists", &[]), true, false),
            (one("DoesNotExist", &[]), false, true),
            (
                json!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}),
                false,
                false,
            ),
            (
                json!({"matchExpressions": [
                    {"key": "app", "operator": "Exists"},
                    {"key": "app", "operator": "In", "values": ["b"]},
                ]}),
                false,
                false,
            ),
        ] {
            let parsed = selector(spec.clone());
            check(&parsed, "f").unwrap();
            assert_eq!(selects(&parsed, &labels(app_a)), on_app_a, "{spec}");
            assert_eq!(selects(&parsed, &labels(other)), on_other, "{spec}");
        }
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let empty = labels(&[("app", "")]);
        for (operator, expected) in [("Exists", true), ("DoesNotExist", false)] {
            let parsed =
                selector(json!({"matchExpressions": [{"key": "app", "operator": operator}]}));
            assert_eq!(selects(&parsed, &empty), expected, "{operator}");
        }
        assert!(selects(
            &selector(json!({"matchLabels": {"app": ""}})),
            &empty
        ));
    }

    #[test]
    fn what_kubernetes_refuses_is_refused_and_selects_nothing() {
        let pods = [labels(&[]), labels(&[("app", "a")])];
        for (expression, part) in [
            (json!({"key": "app", "operator": "In"}), "values"),
            (
                json!({"key": "app", "operator": "NotIn", "values": []}),
                "values",
            ),
            (
                json!({"key": "app", "operator": "Exists", "values": ["a"]}),
                "values",
            ),
            (
                json!({"key": "app", "operator": "DoesNotExist", "values": ["a"]}),
                "values",
            ),
            (
                json!({"key": "app", "operator": "in", "values": ["a"]}),
                "operator",
            ),
            (
                json!({"key": "app", "operator": "Gt", "values": ["1"]}),
                "operator",
            ),
            (json!({"key": "", "operator": "Exists"}), "key"),
        ] {
            let good = json!({"key": "tier", "operator": "DoesNotExist"});
            let parsed = selector(json!({"matchExpressions": [good, expression]}));
            let problem = check(&parsed, "spec.podSelector").unwrap_err();
            assert_eq!(
                problem.field,
                format!("spec.podSelector.matchExpressions[1].{part}"),
                "{expression}"
            );
            for pod in &pods {
                assert!(!selects(&parsed, pod), "{expression}");
            }
        }
    }
}
