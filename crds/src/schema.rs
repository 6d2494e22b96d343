//! The CustomResourceDefinitions, made from the Rust types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::provider::NexusProvider;
use crate::route::NexusRoute;

/// The definitions of NexusRoute and NexusProvider.
///
/// They stay when a Helm release is removed: with a definition go all of its objects.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![NexusRoute::crd(), NexusProvider::crd()];
    for definition in &mut definitions {
        definition
            .metadata
            .annotations
            .get_or_insert_default()
            .insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        for version in &mut definition.spec.versions {
            let schema = version.schema.as_mut();
            if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                tidy(schema);
            }
        }
    }
    definitions
}

/// Leaves out a type's description, where it would take the place of the field's.
pub(crate) fn undescribed(schema: &mut schemars::Schema) {
    schema.remove("description");
}

/// Makes of an optional field one that may be absent and not also null, which rules would have to tell apart, and
/// gives integers a format that API servers know: Rust's unsigned ones cause a warning at every apply.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(format) = &mut schema.format
        && format.starts_with("uint")
    {
        "int64".clone_into(format);
    }
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|map| map.values_mut())
    {
        tidy(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn schemas() -> Vec<(String, Value)> {
        custom_resource_definitions()
            .into_iter()
            .map(|definition| {
                let schema = definition.spec.versions[0].schema.as_ref().unwrap();
                let schema = schema.open_api_v3_schema.as_ref().unwrap();
                (
                    definition.spec.names.kind,
                    serde_json::to_value(schema).unwrap(),
                )
            })
            .collect()
    }

    fn visit(path: &str, schema: &Value, judge: &mut impl FnMut(&str, &Value)) {
        judge(path, schema);
        if let Some(Value::Object(properties)) = schema.get("properties") {
            for (name, property) in properties {
                visit(&format!("{path}.{name}"), property, judge);
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner @ Value::Object(_)) = schema.get(key) {
                visit(&format!("{path}[]"), inner, judge);
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        for (kind, schema) in schemas() {
            visit(&kind, &schema, &mut |path, schema| {
                for forbidden in [
                    "$ref",
                    "anyOf",
                    "oneOf",
                    "allOf",
                    "not",
                    "patternProperties",
                ] {
                    assert!(schema.get(forbidden).is_none(), "{path} has {forbidden}");
                }
                let untyped = schema.get("type").is_none();
                let keeps =
                    schema.get("x-kubernetes-preserve-unknown-fields") == Some(&true.into());
                assert!(!untyped || keeps, "{path} has no type");
                let both = schema.get("properties").is_some()
                    && schema.get("additionalProperties").is_some();
                assert!(!both, "{path} has properties and additionalProperties");
                let format = schema.get("format").and_then(Value::as_str);
                assert!(
                    !format.is_some_and(|f| f.starts_with("uint")),
                    "{path} has format {format:?}"
                );
            });
        }
    }

    /// kubectl and Helm read YAML 1.1: unquoted, `on` would arrive as `true`, and `Off` as `false`.
    #[test]
    fn no_field_or_value_is_a_boolean_of_yaml() {
        let is_boolean = |word: &str| {
            let words = ["y", "n", "yes", "no", "on", "off", "true", "false"];
            words.contains(&word.to_ascii_lowercase().as_str())
        };
        for (kind, schema) in schemas() {
            visit(&kind, &schema, &mut |path, schema| {
                let name = path.rsplit('.').next().unwrap();
                assert!(!is_boolean(name), "{path}");
                for value in schema["enum"].as_array().into_iter().flatten() {
                    assert!(!value.as_str().is_some_and(is_boolean), "{path}: {value}");
                }
            });
        }
    }

    #[test]
    fn every_field_of_a_spec_is_described() {
        for (kind, schema) in schemas() {
            visit(&kind, &schema["properties"]["spec"], &mut |path, schema| {
                let item = path.ends_with("[]");
                assert!(
                    item || schema.get("description").is_some(),
                    "{path} has no description"
                );
            });
        }
    }

    #[test]
    fn connections_are_atomic_bounded_and_free_of_rules() {
        let (_, route) = schemas().remove(0);
        let connections = &route["properties"]["spec"]["properties"]["connections"];
        assert_eq!(connections["x-kubernetes-list-type"], "atomic");
        assert_eq!(connections["maxItems"], 5000);
        visit("connections", connections, &mut |path, schema| {
            assert!(schema.get("x-kubernetes-validations").is_none(), "{path}");
        });
    }

    #[test]
    fn names_scope_and_columns_are_as_designed() {
        let [route, provider] = &custom_resource_definitions()[..] else {
            panic!("two definitions")
        };
        for (definition, plural, short, scope) in [
            (route, "nexusroutes", "nxr", "Namespaced"),
            (provider, "nexusproviders", "nxp", "Cluster"),
        ] {
            let spec = &definition.spec;
            assert_eq!(spec.group, "nexus.io");
            assert_eq!(spec.versions[0].name, "v1alpha1");
            assert_eq!(spec.names.plural, plural);
            assert_eq!(spec.names.short_names, Some(vec![short.to_owned()]));
            assert_eq!(spec.scope, scope);
            assert!(
                spec.versions[0]
                    .subresources
                    .as_ref()
                    .unwrap()
                    .status
                    .is_some()
            );
        }
        let columns = route.spec.versions[0]
            .additional_printer_columns
            .iter()
            .flatten();
        let columns: Vec<_> = columns.map(|column| column.name.as_str()).collect();
        assert_eq!(
            columns,
            [
                "Provider",
                "Upstream",
                "Accepted",
                "Programmed",
                "Pods",
                "Age"
            ]
        );
    }
}
