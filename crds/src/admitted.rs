//! What was decided about a pod when it was admitted: the JSON of the annotation `nexus.io/admitted`.
//!
//! The webhook writes it, the sidecar and the relay read it. It says who the pod is for as long as the pod lives:
//! labels and tenants that are changed later do not count.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::is_tenant;
use crate::selector::selects;
use crate::table::TableRoute;

/// Version of the format that this version writes and reads.
pub const VERSION: u32 = 1;

/// Table format of a pod that says none: it was admitted before the annotation told it.
pub const OLDEST_TABLE_FORMAT: u32 = 1;

/// What was decided about a pod. Made by the webhook, or read with [`Admitted::parse`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admitted {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Tenants that the pod may act for. Default: none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tenants: BTreeSet<String>,
    /// Labels that the pod was created with. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Name of the service account that the pod runs as. Default: none, which no route lists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// Newest format of the route table that the pod's sidecar reads: [`crate::table::FORMAT`] of the version that
    /// admitted the pod, whose sidecar it was given. Default: [`OLDEST_TABLE_FORMAT`].
    #[serde(
        default = "oldest_table_format",
        skip_serializing_if = "is_oldest_table_format"
    )]
    pub table_format: u32,
    /// Version of the pod's sidecar, to be counted. Default: empty, which is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sidecar_version: String,
}

fn oldest_table_format() -> u32 {
    OLDEST_TABLE_FORMAT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_oldest_table_format(format: &u32) -> bool {
    *format == OLDEST_TABLE_FORMAT
}

/// Why a text does not say what was decided about a pod.
#[derive(Debug, thiserror::Error)]
pub enum AdmittedError {
    /// Nothing was written: the pod did not pass the webhook.
    #[error(
        "is empty; the pod has no annotation nexus.io/admitted, so the webhook did not admit it"
    )]
    Empty,
    /// Not JSON, or JSON of another shape.
    #[error("is not what the webhook writes")]
    Json(#[source] serde_json::Error),
    /// Written by another version.
    #[error(
        "has version {version}, this one reads {VERSION}; give the pod the sidecar of its webhook's version"
    )]
    Version {
        /// The version that was found.
        version: u32,
    },
    /// A tenant is no tenant name.
    #[error("names the tenant {tenant:?}, which is not a tenant name: [A-Za-z0-9._:-]{{1,128}}")]
    Tenant {
        /// What was found.
        tenant: String,
    },
}

impl Admitted {
    /// Reads the annotation's JSON. Fields that are not known are ignored; a later format that must not be read so has
    /// another version.
    pub fn parse(json: &str) -> Result<Self, AdmittedError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }

        if json.trim().is_empty() {
            return Err(AdmittedError::Empty);
        }
        // First, since another version may have another shape.
        let Head { version } = serde_json::from_str(json).map_err(AdmittedError::Json)?;
        if version != VERSION {
            return Err(AdmittedError::Version { version });
        }
        let admitted: Self = serde_json::from_str(json).map_err(AdmittedError::Json)?;
        match admitted.tenants.iter().find(|tenant| !is_tenant(tenant)) {
            Some(tenant) => Err(AdmittedError::Tenant {
                tenant: tenant.clone(),
            }),
            None => Ok(admitted),
        }
    }

    /// Whether a route is for this pod: its `podSelector` selects the labels, and its `serviceAccounts`, if there are
    /// any, list the service account.
    pub fn is_given(&self, route: &TableRoute) -> bool {
        let accounts = &route.service_accounts;
        let selected = |selector: &_| selects(selector, &self.labels);
        route.pod_selector.as_deref().is_none_or(selected)
            && (accounts.is_empty() || accounts.contains(&self.service_account))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WHOLE: &str = r#"{"version":1,"tenants":["a","b:1"],"labels":{"app":"x"},"serviceAccount":"research-agent","tableFormat":2,"sidecarVersion":"1.2.3"}"#;
    /// What a version wrote that did not tell the format.
    const OLD: &str = r#"{"version":1,"tenants":["a"],"serviceAccount":"research-agent"}"#;

    fn error(json: &str) -> String {
        Admitted::parse(json).unwrap_err().to_string()
    }

    fn given(admitted: &Admitted, fields: Value) -> bool {
        let mut route = json!({"name": "r", "provider": "p"});
        let (Value::Object(route_fields), Value::Object(fields)) = (&mut route, fields) else {
            unreachable!("objects")
        };
        route_fields.extend(fields);
        admitted.is_given(&serde_json::from_value(route).unwrap())
    }

    #[test]
    fn what_was_written_is_read_and_written_again() {
        let admitted = Admitted::parse(WHOLE).unwrap();
        assert!(admitted.tenants.iter().eq(["a", "b:1"]));
        assert_eq!(admitted.labels["app"], "x");
        assert_eq!(admitted.service_account, "research-agent");
        assert_eq!(admitted.table_format, 2);
        assert_eq!(admitted.sidecar_version, "1.2.3");
        assert_eq!(serde_json::to_string(&admitted).unwrap(), WHOLE);
    }

    #[test]
    fn a_pod_that_says_no_table_format_reads_the_first() {
        let admitted = Admitted::parse(OLD).unwrap();
        assert_eq!(admitted.table_format, 1);
        assert_eq!(admitted.sidecar_version, "");
        assert_eq!(serde_json::to_string(&admitted).unwrap(), OLD);
    }

    #[test]
    fn what_is_absent_is_nothing_and_what_is_unknown_is_ignored() {
        for json in [
            r#"{"version":1}"#,
            r#"{"version":1,"tenants":[],"labels":{}}"#,
            r#"{"version":1,"later":{"x":[1]}}"#,
        ] {
            let admitted = Admitted::parse(json).unwrap();
            assert!(
                admitted.tenants.is_empty() && admitted.labels.is_empty(),
                "{json}"
            );
            assert_eq!(admitted.service_account, "", "{json}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for empty in ["", "  \n"] {
            assert!(error(empty).starts_with("is empty"));
        }
        for json in [
            "nonsense",
            "{}",
            "[]",
            "null",
            r#"{"version":"1"}"#,
            r#"{"version":1.5}"#,
            r#"{"version":1,"tenants":"a"}"#,
            r#"{"version":1,"tenants":null}"#,
            r#"{"version":1,"labels":{"a":1}}"#,
            r#"{"version":1,"serviceAccount":null}"#,
            r#"{"version":1,"tableFormat":"2"}"#,
            r#"{"version":1,"tableFormat":-1}"#,
            r#"{"version":1,"sidecarVersion":1}"#,
            r#"{"version":1,"version":1}"#,
            r#"{"version":1} {"version":1}"#,
        ] {
            assert_eq!(error(json), "is not what the webhook writes", "{json}");
        }
        for version in [0, 2] {
            let json = json!({"version": version, "tenants": {"of": "another shape"}});
            assert!(error(&json.to_string()).starts_with(&format!("has version {version}, ")));
        }
        for tenant in ["*", "", "a,b", "a b", "\u{e9}", &"a".repeat(129)] {
            let json = json!({"version": 1, "tenants": ["good", tenant]});
            assert!(error(&json.to_string()).contains(&format!("{tenant:?}")));
        }
    }

    #[test]
    fn a_route_is_given_by_selector_and_service_account() {
        let pod = Admitted::parse(WHOLE).unwrap();
        let nobody = Admitted::parse(r#"{"version":1}"#).unwrap();
        for (fields, to_pod, to_nobody) in [
            (json!({}), true, true),
            (json!({"podSelector": {}}), true, true),
            (
                json!({"podSelector": {"matchLabels": {"app": "x"}}}),
                true,
                false,
            ),
            (
                json!({"podSelector": {"matchLabels": {"app": "y"}}}),
                false,
                false,
            ),
            (
                json!({"serviceAccounts": ["other", "research-agent"]}),
                true,
                false,
            ),
            (json!({"serviceAccounts": ["other"]}), false, false),
            (
                json!({"podSelector": {"matchLabels": {"app": "x"}}, "serviceAccounts": ["other"]}),
                false,
                false,
            ),
            (
                json!({"podSelector": {"matchLabels": {"app": "y"}}, "serviceAccounts": ["research-agent"]}),
                false,
                false,
            ),
        ] {
            assert_eq!(given(&pod, fields.clone()), to_pod, "{fields}");
            assert_eq!(given(&nobody, fields.clone()), to_nobody, "{fields}");
        }
    }
}
