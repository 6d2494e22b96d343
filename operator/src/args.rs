//! The command line. Nothing else reads the environment.
#![allow(
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "these comments are the help text, where an address is an address"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use url::{Host, Url};

/// Turns NexusRoute objects into route tables and injects the sidecar into annotated pods.
#[derive(Debug, Parser)]
#[command(
    name = "nexus-operator",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the operator.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve admission, and while this replica holds the Lease, write route tables and conditions
    ///
    /// Finds the API server by its service account in a cluster, else by KUBECONFIG.
    Run(Box<RunArgs>),
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Namespace the operator runs in: its Lease and its certificates are there
    #[arg(long, env = "NEXUS_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: String,

    /// Where /metrics, /healthz and /readyz are served; without IPv6, [::] is 0.0.0.0
    #[arg(
        long,
        env = "NEXUS_ADMIN",
        value_name = "ADDR",
        default_value = "[::]:9901"
    )]
    pub admin: SocketAddr,

    /// What to log: a level, or a list such as info,nexus_operator=debug
    #[arg(
        long,
        env = "NEXUS_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log_level: String,

    /// How long admissions in flight may take to finish after SIGTERM
    #[arg(long, env = "NEXUS_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub drain_timeout: Duration,

    #[command(flatten)]
    pub webhook: WebhookArgs,

    #[command(flatten)]
    pub certificates: CertificateArgs,

    #[command(flatten)]
    pub lease: LeaseArgs,

    #[command(flatten)]
    pub controller: ControllerArgs,

    #[command(flatten)]
    pub sidecar: SidecarArgs,
}

/// Where admission is served.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Admission")]
pub struct WebhookArgs {
    /// Where the API server finds the webhooks; without IPv6, [::] is 0.0.0.0
    #[arg(
        long,
        env = "NEXUS_WEBHOOK_LISTEN",
        value_name = "ADDR",
        default_value = "[::]:10250"
    )]
    pub webhook_listen: SocketAddr,

    /// Service in front of them: the certificate is for its name
    #[arg(
        long,
        env = "NEXUS_WEBHOOK_SERVICE",
        value_name = "NAME",
        default_value = "nexus-operator"
    )]
    pub webhook_service: String,

    /// Name of the MutatingWebhookConfiguration and of the ValidatingWebhookConfiguration whose caBundle is kept
    #[arg(
        long,
        env = "NEXUS_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "nexus-operator"
    )]
    pub webhook_configuration: String,
}

/// The certificate that admission is served with.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Certificates")]
pub struct CertificateArgs {
    /// Serve with this PEM certificate chain instead of an own one; read again when it changes
    ///
    /// For cert-manager and its like, which then also keep the caBundle.
    #[arg(
        long,
        env = "NEXUS_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// PEM private key for --tls-cert
    #[arg(
        long,
        env = "NEXUS_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Life of an own certificate authority
    #[arg(long, env = "NEXUS_CA_LIFETIME", value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    pub ca_lifetime: Duration,

    /// How long a new certificate authority is in every caBundle before it signs
    #[arg(long, env = "NEXUS_CA_PUBLISH_BEFORE", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub ca_publish_before: Duration,

    /// How long the old certificate authority stays in every caBundle after the new one signs
    #[arg(long, env = "NEXUS_CA_KEEP_AFTER", value_name = "DURATION", default_value = "168h", value_parser = duration)]
    pub ca_keep_after: Duration,

    /// Life of an own serving certificate; it is renewed after two thirds of it
    #[arg(long, env = "NEXUS_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "720h", value_parser = duration)]
    pub certificate_lifetime: Duration,
}

/// Which replica writes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Leader election")]
pub struct LeaseArgs {
    /// Lease of the replica that writes; the others only serve admission
    #[arg(
        long,
        env = "NEXUS_LEASE_NAME",
        value_name = "NAME",
        default_value = "nexus-operator"
    )]
    pub lease_name: String,

    /// Name of this replica in the Lease [default: the host's name and a random end]
    #[arg(long, env = "NEXUS_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,

    /// Within so long another replica writes when the one that did is gone [2s to 1h]
    #[arg(long, env = "NEXUS_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: Duration,
}

/// What routes may have, and how often the controller looks.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Routes")]
pub struct ControllerArgs {
    /// Whether a route may name an upstream that no NexusProvider grants
    #[arg(
        long,
        env = "NEXUS_INLINE_UPSTREAMS",
        value_name = "POLICY",
        value_enum,
        default_value_t
    )]
    pub inline_upstreams: Policy,

    /// Accept http:// upstreams that say allowInsecure
    #[arg(long, env = "NEXUS_ALLOW_INSECURE_UPSTREAMS")]
    pub allow_insecure_upstreams: bool,

    /// Gateway whose api_base_url of a provider is granted where there is no NexusProvider
    ///
    /// Until it has answered once, tables and conditions stay as they are.
    #[arg(long, env = "NEXUS_GATEWAY_URL", value_name = "URL")]
    pub gateway_url: Option<Url>,

    /// PEM file of the authorities that replace the public roots for that gateway; read again with each look at it
    #[arg(
        long,
        env = "NEXUS_GATEWAY_CA",
        value_name = "FILE",
        requires = "gateway_url"
    )]
    pub gateway_ca: Option<PathBuf>,

    /// How long changes are collected before routes are compiled
    #[arg(long, env = "NEXUS_DEBOUNCE", value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub debounce: Duration,

    /// How often pods are counted for a route's boundPods
    #[arg(long, env = "NEXUS_BOUND_PODS_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub bound_pods_interval: Duration,

    /// How often annotated pods without a sidecar are looked for
    #[arg(long, env = "NEXUS_POD_SWEEP_INTERVAL", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub pod_sweep_interval: Duration,
}

/// What is allowed or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// It is refused.
    #[default]
    Deny,
    /// It is accepted.
    Allow,
}

/// The sidecars that are injected.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sidecars")]
pub struct SidecarArgs {
    /// Image of the sidecar
    #[arg(long, env = "NEXUS_SIDECAR_IMAGE", value_name = "IMAGE")]
    pub sidecar_image: String,

    /// When the image is pulled [default: as Kubernetes has it]
    #[arg(long, env = "NEXUS_SIDECAR_IMAGE_PULL_POLICY", value_name = "POLICY")]
    pub sidecar_image_pull_policy: Option<String>,

    /// Gateway that sidecars fetch credentials from
    #[arg(
        long,
        env = "NEXUS_SIDECAR_GATEWAY_URL",
        value_name = "URL",
        required_unless_present = "sidecar_broker_url"
    )]
    pub sidecar_gateway_url: Option<Url>,

    /// Broker that sidecars fetch credentials from instead of a gateway
    #[arg(
        long,
        env = "NEXUS_SIDECAR_BROKER_URL",
        value_name = "URL",
        conflicts_with = "sidecar_gateway_url"
    )]
    pub sidecar_broker_url: Option<Url>,

    /// Let sidecars reach a control plane over http:// that is not in their pod
    #[arg(long, env = "NEXUS_SIDECAR_ALLOW_INSECURE_GATEWAY")]
    pub sidecar_allow_insecure_gateway: bool,

    /// ConfigMap of each pod's namespace whose ca.crt replaces the public roots for the control plane
    #[arg(long, env = "NEXUS_SIDECAR_CA_CONFIG_MAP", value_name = "NAME")]
    pub sidecar_ca_config_map: Option<String>,

    /// What sidecars show to the control plane
    #[arg(
        long,
        env = "NEXUS_SIDECAR_AUTH",
        value_name = "KIND",
        value_enum,
        default_value_t
    )]
    pub sidecar_auth: SidecarAuth,

    /// Secret of each pod's namespace, for --sidecar-auth api-key (api-key) and client-certificate (tls.crt, tls.key)
    #[arg(
        long,
        env = "NEXUS_SIDECAR_AUTH_SECRET",
        value_name = "NAME",
        required_if_eq_any([("sidecar_auth", "api-key"), ("sidecar_auth", "client-certificate")])
    )]
    pub sidecar_auth_secret: Option<String>,

    /// Port of the sidecar's proxy in the pod
    #[arg(long, env = "NEXUS_SIDECAR_PORT", value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub sidecar_port: u16,

    /// Port of the sidecar's /metrics, /healthz and /readyz in the pod
    #[arg(long, env = "NEXUS_SIDECAR_ADMIN_PORT", value_name = "PORT", default_value_t = 9901, value_parser = clap::value_parser!(u16).range(1..))]
    pub sidecar_admin_port: u16,

    /// The sidecar's --log-level
    #[arg(
        long,
        env = "NEXUS_SIDECAR_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub sidecar_log_level: String,

    /// CPU the sidecar requests
    #[arg(
        long,
        env = "NEXUS_SIDECAR_CPU_REQUEST",
        value_name = "QUANTITY",
        default_value = "10m"
    )]
    pub sidecar_cpu_request: String,

    /// Memory the sidecar requests
    #[arg(
        long,
        env = "NEXUS_SIDECAR_MEMORY_REQUEST",
        value_name = "QUANTITY",
        default_value = "32Mi"
    )]
    pub sidecar_memory_request: String,

    /// CPU the sidecar may use [default: any]
    #[arg(long, env = "NEXUS_SIDECAR_CPU_LIMIT", value_name = "QUANTITY")]
    pub sidecar_cpu_limit: Option<String>,

    /// Memory the sidecar may use
    #[arg(
        long,
        env = "NEXUS_SIDECAR_MEMORY_LIMIT",
        value_name = "QUANTITY",
        default_value = "256Mi"
    )]
    pub sidecar_memory_limit: String,

    /// User and group the sidecar runs as: nobody else's, so not that of common images either
    #[arg(long, env = "NEXUS_SIDECAR_RUN_AS_USER", value_name = "UID", default_value_t = 28080, value_parser = clap::value_parser!(i64).range(1..))]
    pub sidecar_run_as_user: i64,

    /// Leave the sidecar's user to the cluster, as OpenShift wants it
    #[arg(long, env = "NEXUS_SIDECAR_NO_RUN_AS_USER")]
    pub sidecar_no_run_as_user: bool,
}

/// What sidecars show to the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SidecarAuth {
    /// Nothing: the network decides who may ask.
    #[default]
    None,
    /// The key `api-key` of the Secret, as X-API-Key.
    ApiKey,
    /// The keys `tls.crt` and `tls.key` of the Secret, in the TLS handshake.
    ClientCertificate,
    /// A token of the pod's service account for the audience nexus-gateway, as a bearer token.
    Token,
}

fn duration(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is not a duration; write it like 30s, 5m or 1h30m");
    let span: jiff::SignedDuration = text.parse().map_err(|_| malformed())?;
    Duration::try_from(span)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("{text:?} must be more than nothing"))
}

/// Whether an address is on this machine, or in this pod, where there is nobody on the way to it.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_of_its_name() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let mut count = 0;
        for argument in run.get_arguments() {
            let Some(flag) = argument
                .get_long()
                .filter(|it| !["help", "version"].contains(it))
            else {
                continue;
            };
            let variable = format!("NEXUS_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(argument.get_env(), Some(variable.as_ref()), "--{flag}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn durations_are_written_with_units() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        for text in ["5", "0s", "-5s", ""] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
