//! Pods that have a sidecar, reduced to what was decided when they were admitted.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use nexus_crds::admitted::Admitted;
use nexus_crds::names::ADMITTED_ANNOTATION;

/// Table format of a sidecar that does not say what it reads.
const OLDEST_FORMAT: u32 = 1;

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
        OLDEST_FORMAT
    }

    /// Version that injected it.
    pub(crate) fn sidecar_version(&self) -> Option<&str> {
        None
    }
}
