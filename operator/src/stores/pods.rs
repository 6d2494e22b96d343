//! Pods that have a sidecar, reduced to what was decided when they were admitted.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use nexus_crds::admitted::{Admitted, OLDEST_TABLE_FORMAT};
use nexus_crds::names::ADMITTED_ANNOTATION;

/// A pod with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InjectedPod {
    /// What was decided when it was admitted; absent where the annotation is, or does not parse.
    pub(crate) admitted: Option<Admitted>,
}

impl InjectedPod {
    pub(crate) fn new(pod: &PartialObjectMeta<Pod>) -> Self {
        let text = pod.annotations().get(ADMITTED_ANNOTATION);
        let admitted = text.and_then(|text| Admitted::parse(text).ok());
        Self { admitted }
    }

    /// Newest table format that its sidecar reads.
    pub(crate) fn table_format(&self) -> u32 {
        let admitted = self.admitted.as_ref();
        admitted.map_or(OLDEST_TABLE_FORMAT, |admitted| admitted.table_format)
    }

    /// Version that injected it.
    pub(crate) fn sidecar_version(&self) -> Option<&str> {
        let version = &self.admitted.as_ref()?.sidecar_version;
        (!version.is_empty()).then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_does_not_say_what_it_reads_reads_the_oldest() {
        let pod = |annotations| {
            let pod = json!({"metadata": {"annotations": annotations}});
            InjectedPod::new(&serde_json::from_value(pod).unwrap())
        };
        let says = r#"{"version":1,"tableFormat":2,"sidecarVersion":"1.2.3"}"#;
        let says = pod(json!({"nexus.io/admitted": says}));
        assert_eq!(
            (says.table_format(), says.sidecar_version()),
            (2, Some("1.2.3"))
        );
        for odd in [json!({}), json!({"nexus.io/admitted": "nonsense"})] {
            let odd = pod(odd);
            assert_eq!((odd.table_format(), odd.sidecar_version()), (1, None));
        }
    }
}
