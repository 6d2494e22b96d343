//! What a pod must not have beside a sidecar: everything that would let another container at what the sidecar holds, or
//! keep the sidecar from serving.

use k8s_openapi::api::core::v1::{Pod, PodSpec, Volume, VolumeProjection};
use nexus_crds::names::TOKEN_AUDIENCE;

use super::annotations::Wishes;
use super::config::InjectConfig;
use super::findings::Findings;
use super::patch::containers;
use super::{is_sidecar, volumes};

mod container;

/// Annotation of the API server's images of static pods.
const MIRROR: &str = "kubernetes.io/config.mirror";
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
const WINDOWS: &str = "windows";
/// Containers beside which there may be a sidecar. No pod has that many; each makes the patch longer.
const MAX_CONTAINERS: usize = 256;

/// Judges everything but the annotations of a pod.
pub(super) fn judge(
    pod: &Pod,
    spec: &PodSpec,
    config: &InjectConfig,
    wishes: &Wishes,
    findings: &mut Findings,
) {
    if pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(MIRROR))
    {
        let why = "marks a static pod, which runs on its node as its file says, without a sidecar; remove nexus.io/inject from the file";
        findings.refuse(format_args!("annotation {MIRROR}"), why);
    }
    judge_sharing(spec, findings);
    judge_system(spec, findings);
    judge_names(spec, config, findings);
    judge_user(spec, config, findings);
    for volume in spec.volumes.iter().flatten() {
        // Ours are made anew.
        if !volume.name.starts_with(volumes::PREFIX) {
            judge_volume(volume, config, findings);
        }
    }
    let others = || containers(spec).filter(|listed| !is_sidecar(listed.container));
    if others().nth(MAX_CONTAINERS).is_some() {
        let why = format!("are more than {MAX_CONTAINERS}; spread them over several pods");
        findings.refuse("spec.containers", why);
    }
    for listed in others().take(MAX_CONTAINERS) {
        container::judge(listed, spec, config, wishes, findings);
    }
}

fn judge_sharing(spec: &PodSpec, findings: &mut Findings) {
    let processes = "would let other processes at the sidecar's memory; remove it";
    if spec.share_process_namespace == Some(true) {
        findings.refuse(
            "spec.shareProcessNamespace",
            format_args!("{processes} (kubectl debug: --share-processes=false)"),
        );
    }
    if spec.host_pid == Some(true) {
        findings.refuse("spec.hostPID", processes);
    }
    if spec.host_ipc == Some(true) {
        findings.refuse(
            "spec.hostIPC",
            "shares memory with the processes of the node; remove it",
        );
    }
    if spec.host_network == Some(true) {
        let why = "would let every process of the node use the sidecar, since whoever reaches its port may; remove it";
        findings.refuse("spec.hostNetwork", why);
    }
}

fn judge_system(spec: &PodSpec, findings: &mut Findings) {
    let why = "is windows, for which there is no sidecar; remove nexus.io/inject";
    if spec.os.as_ref().is_some_and(|os| os.name == WINDOWS) {
        findings.refuse("spec.os.name", why);
    }
    for label in OS_LABELS {
        let selected = spec.node_selector.as_ref().and_then(|all| all.get(label));
        if selected.is_some_and(|system| system == WINDOWS) {
            findings.refuse(format_args!("spec.nodeSelector[{label}]"), why);
        }
    }
}

/// A pod may say itself where a name leads. Whoever answers there is known by a certificate; or by nothing, where the
/// control plane is reached in clear text, or by what a ConfigMap of the pod's namespace says: then the pod's owner could
/// receive what the sidecar shows to it.
fn judge_names(spec: &PodSpec, config: &InjectConfig, findings: &mut Findings) {
    let Some(host) = config.control.url.host_str() else {
        return;
    };
    let is_host = |name: &String| name.trim_end_matches('.').eq_ignore_ascii_case(host);
    let why =
        format!("says where {host} is, which is the control plane of the sidecar; leave it out");
    let aliases = spec.host_aliases.iter().flatten();
    if aliases
        .flat_map(|alias| alias.hostnames.iter().flatten())
        .any(is_host)
    {
        findings.refuse("spec.hostAliases", &why);
    }
    if !config.control.insecure && config.ca_config_map.is_none() {
        return;
    }
    if spec.hostname.as_ref().is_some_and(is_host) {
        findings.refuse("spec.hostname", &why);
    }
    let own = spec.dns_config.as_ref().is_some_and(|dns| {
        let is_given =
            |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        is_given(&dns.nameservers) || is_given(&dns.searches)
    });
    if own {
        findings.refuse("spec.dnsConfig", &why);
    }
}

fn judge_user(spec: &PodSpec, config: &InjectConfig, findings: &mut Findings) {
    let user = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    if config.run_as_user.is_none() && user == Some(0) {
        let why = "is 0, and the sidecar, which has no user of its own in this cluster, must not be root; set it for the containers that need it";
        findings.refuse("spec.securityContext.runAsUser", why);
    }
}

fn judge_volume(volume: &Volume, config: &InjectConfig, findings: &mut Findings) {
    let field = format!("spec.volumes[{}]", volume.name);
    if volume.host_path.is_some() {
        let why = "would let at the files of the node, the sidecar's among them; use another kind of volume";
        findings.refuse(format_args!("{field}.hostPath"), why);
    }
    let secret = volume
        .secret
        .as_ref()
        .and_then(|secret| secret.secret_name.as_deref());
    refuse_secret(secret, format_args!("{field}.secret"), config, findings);
    let sources = volume
        .projected
        .iter()
        .flat_map(|projected| projected.sources.iter().flatten());
    for VolumeProjection {
        secret,
        service_account_token: token,
        ..
    } in sources
    {
        let name = secret.as_ref().map(|secret| secret.name.as_str());
        refuse_secret(name, format_args!("{field}.projected"), config, findings);
        let audience = token.as_ref().and_then(|token| token.audience.as_deref());
        if audience == Some(TOKEN_AUDIENCE) {
            let why = format!(
                "holds a token for the audience {TOKEN_AUDIENCE}, which only the sidecar may have; leave it out, the sidecar has its own"
            );
            findings.refuse(format_args!("{field}.projected"), why);
        }
    }
}

/// What the sidecar shows to the control plane is for the sidecar.
fn refuse_secret(
    name: Option<&str>,
    field: impl std::fmt::Display,
    config: &InjectConfig,
    findings: &mut Findings,
) {
    if let Some(name) = name.filter(|name| config.auth.secret() == Some(name)) {
        let why = format!(
            "is the Secret {name}, with which the sidecar shows who it is; only the sidecar may have it"
        );
        findings.refuse(field, why);
    }
}
