//! What the process counts, in the OpenMetrics text format.
//!
//! Labels are our own enums, reasons of conditions and versions of sidecars; never the name of an object.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Content type of [`Exposition::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reconciles of a namespace or a NexusProvider, by how they ended.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// Times that all routes were compiled.
    pub compilations: Counter,
    /// Writes to the API server, by what was written.
    pub writes: Family<WriteLabels, Counter>,
    /// Routes by the reason of their Accepted condition; only the leader has them.
    pub routes: Family<ReasonLabels, Gauge>,
    /// Objects that could not be read, by kind.
    pub unreadable_objects: Family<KindLabels, Gauge>,
    /// Admission requests by what they were for and how they ended.
    pub admissions: Family<AdmissionLabels, Counter>,
    /// Pods that are annotated and run without a sidecar, at the last sweep; only the leader has them.
    pub annotated_pods_without_sidecar: Gauge,
    /// When certificates end, in seconds since the Unix epoch.
    pub certificate_expiration: Family<CertificateLabels, Gauge>,
    /// 1 if this replica holds the Lease.
    pub leader: Gauge,
    /// Pods with a sidecar, by the version that injected it; only the leader has them.
    pub sidecars: Family<VersionLabels, Gauge>,
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReconcileOutcome {
    /// Everything is as it should be.
    Settled,
    /// Something else wrote meanwhile; it is done again.
    Conflict,
    /// It failed and is done again later.
    Failed,
}

#[expect(missing_docs, reason = "the names of labels")]
mod labels {
    use super::{
        AdmissionKind, AdmissionOutcome, Certificate, EncodeLabelSet, ReconcileOutcome, Written,
    };

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct ReconcileLabels {
        pub outcome: ReconcileOutcome,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct WriteLabels {
        pub object: Written,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct ReasonLabels {
        pub reason: &'static str,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct KindLabels {
        pub kind: &'static str,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct AdmissionLabels {
        pub kind: AdmissionKind,
        pub outcome: AdmissionOutcome,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct CertificateLabels {
        pub certificate: Certificate,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    pub struct VersionLabels {
        pub version: String,
    }
}

pub use labels::{
    AdmissionLabels, CertificateLabels, KindLabels, ReasonLabels, ReconcileLabels, VersionLabels,
    WriteLabels,
};

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Written {
    /// A namespace's table.
    ConfigMap,
    /// Conditions or counts of a NexusRoute or NexusProvider.
    Status,
    /// An Event.
    Event,
}

/// What an admission request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AdmissionKind {
    /// A pod is created.
    Pod,
    /// A NexusRoute is created or changed.
    NexusRoute,
    /// A NexusProvider is created or changed.
    NexusProvider,
}

/// How an admission request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AdmissionOutcome {
    /// Admitted as it was.
    Allowed,
    /// Admitted as it was, with a warning.
    Warned,
    /// Admitted with a sidecar.
    Injected,
    /// Refused.
    Refused,
    /// It could not be read or judged, which refuses it.
    Failed,
}

/// A certificate of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Certificate {
    /// The authority that signs.
    Ca,
    /// The one that admission is served with.
    Serving,
}

/// Metrics and the registry that names them.
#[derive(Debug)]
pub struct Exposition(Registry);

impl Exposition {
    /// Names every metric.
    pub fn new(metrics: &Metrics) -> Self {
        let mut registry = Registry::with_prefix("nexus_operator");
        let Metrics {
            reconciles,
            compilations,
            writes,
            routes,
            unreadable_objects,
            admissions,
            annotated_pods_without_sidecar,
            certificate_expiration,
            leader,
            sidecars,
        } = metrics;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", version);
        registry.register(
            "reconciles",
            "Reconciles of a namespace or a NexusProvider, by how they ended",
            reconciles.clone(),
        );
        registry.register(
            "compilations",
            "Times that all routes were compiled",
            compilations.clone(),
        );
        registry.register(
            "writes",
            "Writes to the API server, by what was written",
            writes.clone(),
        );
        registry.register(
            "routes",
            "Routes by the reason of their Accepted condition, at the leader",
            routes.clone(),
        );
        registry.register(
            "unreadable_objects",
            "Objects that could not be read, by kind",
            unreadable_objects.clone(),
        );
        registry.register(
            "admissions",
            "Admission requests by what they were for and how they ended",
            admissions.clone(),
        );
        registry.register(
            "annotated_pods_without_sidecar",
            "Pods that are annotated and run without a sidecar, at the leader's last sweep",
            annotated_pods_without_sidecar.clone(),
        );
        registry.register_with_unit(
            "certificate_expiration_timestamp",
            "When certificates end, since the Unix epoch",
            Unit::Seconds,
            certificate_expiration.clone(),
        );
        registry.register(
            "leader",
            "1 if this replica holds the Lease",
            leader.clone(),
        );
        registry.register(
            "sidecars",
            "Pods with a sidecar, by the version that injected it, at the leader",
            sidecars.clone(),
        );
        Self(registry)
    }

    /// The text that `/metrics` answers with.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let written = text::encode(&mut text, &self.0);
        debug_assert!(written.is_ok());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        let exposition = Exposition::new(&metrics);
        let labels = AdmissionLabels {
            kind: AdmissionKind::Pod,
            outcome: AdmissionOutcome::Injected,
        };
        metrics.admissions.get_or_create(&labels).inc();
        metrics.leader.set(1);
        let text = exposition.encode();
        for line in [
            "nexus_operator_admissions_total{kind=\"Pod\",outcome=\"Injected\"} 1",
            "nexus_operator_leader 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }
}
