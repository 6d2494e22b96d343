//! NexusProvider: what an administrator grants.

#![allow(
    unreachable_pub,
    reason = "the derived schema has private copies of the types"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{
    AccessSpec, HeadersSpec, LimitsSpec, ReplaySpec, ResponseSpec, TimeoutsSpec, UpstreamSpec,
};
use crate::strategy::StrategySpec;

/// What holds for every route of a provider, and where its credentials may be sent.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nexus.io",
    version = "v1alpha1",
    kind = "NexusProvider",
    plural = "nexusproviders",
    shortname = "nxp",
    category = "nexus",
    status = "NexusProviderStatus",
    derive = "PartialEq",
    doc = "NexusProvider says what holds for every NexusRoute of a provider, and to which origins its credentials may be sent. Its name is the provider's.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("a provider name has at most 63 characters"),
    printcolumn(name = "Upstream", type_ = "string", json_path = ".spec.upstream.url"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NexusProviderSpec {
    /// Where requests go unless a route says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamSpec>,
    /// Origins (`scheme://host`, with a port where it is not the default one) that a credential of this provider may be
    /// sent to. The leftmost label of a host may be `*`. Default: the origin of `upstream.url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 8, max = 300),
            regex(pattern = "^https?://[^/?#@\\\\\\s]+$")
        )
    )]
    pub origins: Option<Vec<String>>,
    /// How the credential is presented unless a route says otherwise. Default: as the control plane says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<StrategySpec>,
    /// Headers to set, remove and keep. A route's `set` is added, name by name; its other lists replace these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
    /// What requests may do. The `deny` rules of a route are added to these, and case is ignored if either says so;
    /// its `mode` and `allow` rules replace these.
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
    /// What client libraries of this API need in order to find the sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sdk: Option<SdkSpec>,
}

/// Environment variables that client libraries of an API read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SdkSpec {
    /// Variables that take a base URL, such as `OPENAI_BASE_URL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub base_url_env: Vec<BaseUrlEnv>,
    /// Variables without which a library refuses to start, such as `OPENAI_API_KEY`; they get a placeholder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 1, max = 128),
            regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$")
        )
    )]
    pub placeholder_env: Vec<String>,
}

/// A variable that takes a base URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseUrlEnv {
    /// Name of the variable.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$")
    )]
    pub name: String,
    /// Path that the library expects in its base URL, such as `/v1`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), regex(pattern = "^(/[^?#\\s]*)?$"))]
    pub path: String,
}

/// What became of a NexusProvider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NexusProviderStatus {
    /// Generation of the spec that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, with the meaning of the Gateway API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}
