//! NexusRoute: what a team asks for.

#![allow(
    unreachable_pub,
    reason = "the derived schema has private copies of the types"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{
    AccessSpec, ConnectionSpec, HeadersSpec, LimitsSpec, ReplaySpec, ResponseSpec, TimeoutsSpec,
    UpstreamSpec,
};
use crate::strategy::StrategySpec;

/// How requests for one provider leave the pods of a namespace: where they go, whose credential they carry and what
/// they may do.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nexus.io",
    version = "v1alpha1",
    kind = "NexusRoute",
    plural = "nexusroutes",
    shortname = "nxr",
    category = "nexus",
    namespaced,
    status = "NexusRouteStatus",
    derive = "PartialEq",
    doc = "NexusRoute says how requests for one provider leave the pods of a namespace: where they go, whose credential they carry and what they may do.",
    validation = Rule::new("has(self.spec.provider) || (size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9][a-z0-9._-]*$'))").message("metadata.name is no provider name; set spec.provider"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Upstream", type_ = "string", json_path = ".spec.upstream.url"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type==\"Programmed\")].status"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.boundPods"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NexusRouteSpec {
    /// Name that agents ask for in `X-Nexus-Provider`. A NexusProvider of this name fills in what is not said here.
    /// Default: the name of this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9][a-z0-9._-]*$"))]
    pub provider: Option<String>,
    /// Where requests go. May be left out where a NexusProvider has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamSpec>,
    /// Which connection of the control plane each tenant's requests use. At most 5,000; routes that differ in
    /// nothing else are merged. Large routes are applied with `--server-side`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000), extend("x-kubernetes-list-type" = "atomic"))]
    pub connections: Vec<ConnectionSpec>,
    /// How the credential is presented, in the words of the Nexus protocol. Default: as the control plane says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<StrategySpec>,
    /// Headers to set, remove and keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
    /// What requests may do. Default: everything under the base path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessSpec>,
    /// Sizes and rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// Timeouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// When a request is sent again with a fresh credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplaySpec>,
    /// What is done to answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseSpec>,
    /// Pods of the namespace that the route is for. It selects and does not protect: whoever may create pods can
    /// give them these labels. Default: every pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Service accounts whose pods the route is for. Default: every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub service_accounts: Vec<String>,
}

/// What became of a NexusRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NexusRouteStatus {
    /// Generation of the spec that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted` and `Programmed`, with the meanings of the Gateway API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Pods whose sidecar serves this route; best effort, a little behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_pods: Option<i32>,
}
