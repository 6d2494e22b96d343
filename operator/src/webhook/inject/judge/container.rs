//! What one container of the agent must not have.

use k8s_openapi::api::core::v1::{PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::annotations::{PORT, Wishes};
use super::super::config::InjectConfig;
use super::super::findings::Findings;
use super::super::patch::Listed;
use super::super::volumes::PREFIX;
use super::refuse_secret;

/// Capabilities that reach what other containers of the pod hold: their memory, their files, what they send.
const CAPABILITIES: [&str; 11] = [
    "ALL",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "NET_ADMIN",
    "NET_RAW",
    "PERFMON",
    "SYS_ADMIN",
    "SYS_MODULE",
    "SYS_PTRACE",
    "SYS_RAWIO",
];

/// Judges a container that is not the sidecar.
pub(super) fn judge(
    listed: Listed<'_>,
    spec: &PodSpec,
    config: &InjectConfig,
    wishes: &Wishes,
    findings: &mut Findings,
) {
    judge_rights(listed, findings);
    judge_mounts(listed, findings);
    judge_environment(listed, config, findings);
    judge_ports(listed, config, wishes, findings);
    warn_of_user(listed, spec, config, findings);
}

fn judge_rights(listed: Listed<'_>, findings: &mut Findings) {
    let Some(context) = &listed.container.security_context else {
        return;
    };
    if context.privileged == Some(true) {
        let why = "would let the container at everything on the node; remove it";
        findings.refuse(format_args!("{listed}.securityContext.privileged"), why);
    }
    let added = context
        .capabilities
        .iter()
        .flat_map(|all| all.add.iter().flatten());
    for name in added.filter(|name| CAPABILITIES.contains(&canonical(name).as_str())) {
        let why = format!(
            "holds {name}, which would let the container at what the sidecar holds; remove it"
        );
        findings.refuse(
            format_args!("{listed}.securityContext.capabilities.add"),
            why,
        );
    }
}

/// Container runtimes take a capability in either case, some with its prefix.
fn canonical(capability: &str) -> String {
    let upper = capability.trim().to_ascii_uppercase();
    upper
        .strip_prefix("CAP_")
        .map(str::to_owned)
        .unwrap_or(upper)
}

fn judge_mounts(listed: Listed<'_>, findings: &mut Findings) {
    let mounts = listed
        .container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| &mount.name);
    let devices = listed
        .container
        .volume_devices
        .iter()
        .flatten()
        .map(|device| &device.name);
    for name in mounts
        .chain(devices)
        .filter(|name| name.starts_with(PREFIX))
    {
        let why = format!(
            "mounts {name}; volumes whose names begin with {PREFIX} are for the sidecar alone; give yours another name"
        );
        findings.refuse(format_args!("{listed}.volumeMounts"), why);
    }
}

fn judge_environment(listed: Listed<'_>, config: &InjectConfig, findings: &mut Findings) {
    for variable in listed.container.env.iter().flatten() {
        let source = variable
            .value_from
            .as_ref()
            .and_then(|from| from.secret_key_ref.as_ref());
        let name = source.map(|key| key.name.as_str());
        refuse_secret(
            name,
            format_args!("{listed}.env[{}]", variable.name),
            config,
            findings,
        );
    }
    for source in listed.container.env_from.iter().flatten() {
        let name = source
            .secret_ref
            .as_ref()
            .map(|secret| secret.name.as_str());
        refuse_secret(name, format_args!("{listed}.envFrom"), config, findings);
    }
}

fn judge_ports(
    listed: Listed<'_>,
    config: &InjectConfig,
    wishes: &Wishes,
    findings: &mut Findings,
) {
    let taken = |port: i32| {
        let is = |ours: u16| i32::from(ours) == port;
        if is(wishes.port) {
            Some(format!(
                "is the sidecar's; use another, or move the sidecar with {PORT}"
            ))
        } else if is(config.admin_port) {
            Some("is where the sidecar serves /metrics and /readyz; use another".to_owned())
        } else {
            None
        }
    };
    let mut declared = false;
    for port in listed.container.ports.iter().flatten() {
        // Without a protocol it is TCP.
        let tcp = port
            .protocol
            .as_deref()
            .is_none_or(|protocol| protocol == "TCP");
        if let Some(why) = taken(port.container_port).filter(|_| tcp) {
            declared = true;
            findings.refuse(format_args!("{listed}.ports[{}]", port.container_port), why);
        }
    }
    let probes = [
        ("livenessProbe", &listed.container.liveness_probe),
        ("readinessProbe", &listed.container.readiness_probe),
        ("startupProbe", &listed.container.startup_probe),
    ];
    for (name, probe) in probes {
        let port = probe.as_ref().and_then(probed);
        if let Some(why) = port.and_then(taken).filter(|_| !declared) {
            findings.warn(
                format_args!("{listed}.{name}"),
                format_args!("its port {why}"),
            );
        }
    }
}

fn probed(probe: &Probe) -> Option<i32> {
    let number = |port: &IntOrString| match port {
        IntOrString::Int(port) => Some(*port),
        IntOrString::String(_) => None,
    };
    let http = probe.http_get.as_ref().and_then(|http| number(&http.port));
    let tcp = probe.tcp_socket.as_ref().and_then(|tcp| number(&tcp.port));
    let grpc = probe.grpc.as_ref().map(|grpc| grpc.port);
    http.or(tcp).or(grpc)
}

fn warn_of_user(
    listed: Listed<'_>,
    spec: &PodSpec,
    config: &InjectConfig,
    findings: &mut Findings,
) {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let own = listed
        .container
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    // Without a user of its own the sidecar has the pod's.
    let Some(sidecar) = config.run_as_user.or(of_pod) else {
        return;
    };
    if own.or(of_pod) == Some(sidecar) {
        let why = format!("is {sidecar}, as the sidecar's; give the agent a user of its own");
        findings.warn(format_args!("{listed}.securityContext.runAsUser"), why);
    }
}
