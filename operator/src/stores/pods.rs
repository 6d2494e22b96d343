//! Pods that have a sidecar, reduced to what was decided when they were admitted.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use nexus_crds::admitted::{Admitted, OLDEST_TABLE_FORMAT};
use nexus_crds::names::{ADMITTED_ANNOTATION, INJECT_ANNOTATION};

/// Longest version of a sidecar that is counted under its name, in bytes.
const MAX_VERSION: usize = 64;

/// Whether a pod asks for a sidecar: the condition on which the API server calls the webhook.
pub(crate) fn asks(pod: &PartialObjectMeta<Pod>) -> bool {
    let value = pod.annotations().get(INJECT_ANNOTATION);
    value.is_some_and(|value| value == "true")
}

/// Leaves out pods that do not ask for a sidecar. The webhook never saw them, so that their label and what they say
/// about having been admitted are their author's words.
pub(crate) fn admitted_only(
    event: Event<PartialObjectMeta<Pod>>,
) -> Option<Event<PartialObjectMeta<Pod>>> {
    match event {
        Event::Apply(pod) if !asks(&pod) => Some(Event::Delete(pod)),
        Event::InitApply(pod) if !asks(&pod) => None,
        event => Some(event),
    }
}

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

    /// Version that injected it; none where what is said cannot be one. It becomes a label of a metric.
    pub(crate) fn sidecar_version(&self) -> Option<&str> {
        let version = self.admitted.as_ref()?.sidecar_version.as_str();
        is_version(version).then_some(version)
    }
}

/// True for the characters of a semantic version, a digit first.
fn is_version(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
    text.len() <= MAX_VERSION
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_that_does_not_ask_is_not_there() {
        let pod = |inject: Value| -> PartialObjectMeta<Pod> {
            let annotations = json!({"nexus.io/inject": inject, "nexus.io/admitted": "{}"});
            let labels = json!({"nexus.io/sidecar": "true"});
            let metadata = json!({"annotations": annotations, "labels": labels});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let asks = || pod("true".into());
        assert!(matches!(
            admitted_only(Event::Apply(asks())),
            Some(Event::Apply(_))
        ));
        let listed = admitted_only(Event::InitApply(asks()));
        assert!(matches!(listed, Some(Event::InitApply(_))));
        for inject in ["false", "True", "yes", ""] {
            let other = || pod(inject.into());
            let changed = admitted_only(Event::Apply(other()));
            assert!(matches!(changed, Some(Event::Delete(_))), "{inject}");
            assert!(
                admitted_only(Event::InitApply(other())).is_none(),
                "{inject}"
            );
        }
        let none = serde_json::from_value(json!({"metadata": {}})).unwrap();
        assert!(admitted_only(Event::InitApply(none)).is_none());
        for event in [Event::Init, Event::InitDone, Event::Delete(pod("".into()))] {
            assert!(admitted_only(event).is_some());
        }
    }

    #[test]
    fn only_what_can_be_a_version_becomes_a_label() {
        let is_shown = |version: &str| {
            let admitted = json!({"version": 1, "sidecarVersion": version}).to_string();
            let pod = json!({"metadata": {"annotations": {"nexus.io/admitted": admitted}}});
            let pod = InjectedPod::new(&serde_json::from_value(pod).unwrap());
            pod.sidecar_version().is_some()
        };
        let longest = format!("1.{}", "0".repeat(MAX_VERSION - 2));
        for version in ["1.2.3", "0.1.0-rc.1+build-7", &longest] {
            assert!(is_shown(version), "{version}");
        }
        for text in [
            "",
            "v1",
            "1.2.3 ",
            "1\n",
            "1\"",
            "1{a}",
            "\u{e9}1",
            "1\u{e9}",
            &format!("{longest}0"),
        ] {
            assert!(!is_shown(text), "{text:?}");
        }
    }

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
