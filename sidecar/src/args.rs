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
use url::Url;

/// Lets AI agents call APIs without holding a credential.
///
/// An agent sends plain HTTP to the sidecar and names a provider and a tenant; the sidecar fetches a
/// short-lived credential from Nexus, authenticates the request, forwards it and streams the answer back.
#[derive(Debug, Parser)]
#[command(
    name = "nexus-sidecar",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the sidecar.
#[derive(Debug, Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, at the start of the process"
)]
pub enum Command {
    /// Serve routes with credentials from a Nexus gateway or broker
    Run(RunArgs),
    /// Try it: a broker, an echo upstream and the sidecar in one process, no account or file needed
    Dev(DevArgs),
    /// Compile route files and say what is wrong with them
    ///
    /// Exit status: 0 when every route would be served (warnings allowed), 1 when one would not, 2 when a
    /// path cannot be read.
    Check(CheckArgs),
    /// Ask a running sidecar whether it is ready (for exec probes)
    ///
    /// Exit status: 0 when its listeners are bound and its routes were read, 1 otherwise.
    Probe(ProbeArgs),
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// File or directory of routes: a compiled table, or NexusRoute and NexusProvider manifests
    ///
    /// Read again whenever it changes. A change that does not parse is reported, and the last good routes
    /// keep serving.
    #[arg(long, env = "NEXUS_ROUTES", value_name = "PATH")]
    pub routes: PathBuf,

    #[command(flatten)]
    pub control: ControlArgs,

    /// Tenants that requests may name [default: those that the routes name]
    #[arg(
        long,
        env = "NEXUS_TENANTS",
        value_name = "TENANT",
        value_delimiter = ','
    )]
    pub tenants: Option<Vec<String>>,

    /// What the webhook decided when it admitted this pod: its annotation nexus.io/admitted
    ///
    /// JSON with version, tenants, labels and serviceAccount. The tenants are those that requests may name; a
    /// route whose podSelector or serviceAccounts do not fit is not served. Not for use by hand: the webhook
    /// sets NEXUS_ADMITTED.
    #[arg(
        long,
        env = "NEXUS_ADMITTED",
        value_name = "JSON",
        conflicts_with = "tenants"
    )]
    pub admitted: Option<String>,

    #[command(flatten)]
    pub serve: ServeArgs,
}

/// How to reach the control plane.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Nexus gateway to fetch credentials from, e.g. https://nexus-gateway.example.com
    #[arg(
        long,
        env = "NEXUS_GATEWAY_URL",
        value_name = "URL",
        required_unless_present = "broker_url"
    )]
    pub gateway_url: Option<Url>,

    /// Nexus broker to fetch credentials from instead of a gateway
    #[arg(
        long,
        env = "NEXUS_BROKER_URL",
        value_name = "URL",
        conflicts_with = "gateway_url"
    )]
    pub broker_url: Option<Url>,

    /// File with the API key for the control plane, sent as X-API-Key; read again when it changes
    #[arg(
        long,
        env = "NEXUS_API_KEY_FILE",
        value_name = "FILE",
        conflicts_with = "token_file"
    )]
    pub api_key_file: Option<PathBuf>,

    /// File with a bearer token for the control plane, e.g. a projected service account token
    #[arg(long, env = "NEXUS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// PEM file with the client certificate chain for the control plane
    #[arg(
        long,
        env = "NEXUS_CLIENT_CERT",
        value_name = "FILE",
        requires = "client_key"
    )]
    pub client_cert: Option<PathBuf>,

    /// PEM file with the private key of --client-cert
    #[arg(
        long,
        env = "NEXUS_CLIENT_KEY",
        value_name = "FILE",
        requires = "client_cert"
    )]
    pub client_key: Option<PathBuf>,

    /// PEM file with the CA of the control plane; replaces the system's roots
    #[arg(long, env = "NEXUS_GATEWAY_CA", value_name = "FILE")]
    pub gateway_ca: Option<PathBuf>,

    /// Allow a control plane over http:// that is not on a loopback address
    #[arg(long, env = "NEXUS_ALLOW_INSECURE_GATEWAY")]
    pub allow_insecure_gateway: bool,

    /// How long a credential without an expiry is used before it is read again
    #[arg(long, env = "NEXUS_CREDENTIAL_MAX_AGE", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub credential_max_age: Duration,
}

/// Options of `dev`.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Your own route manifests instead of the three built-in echo routes
    #[arg(long, env = "NEXUS_ROUTES", value_name = "PATH")]
    pub routes: Option<PathBuf>,

    /// Your own credentials, e.g. `credentials: {github: {access_token: {env: GITHUB_TOKEN}}}`
    #[arg(long, env = "NEXUS_CREDENTIALS", value_name = "FILE")]
    pub credentials: Option<PathBuf>,

    /// Serve these credentials to other sidecars too, as a Nexus gateway does, e.g. on [::]:7070
    ///
    /// For a test cluster without a Nexus: it speaks http://, and whoever has the key gets every credential of the
    /// file.
    #[arg(
        long,
        env = "NEXUS_GATEWAY_LISTEN",
        value_name = "ADDR",
        requires = "gateway_key_file",
        requires = "credentials"
    )]
    pub gateway_listen: Option<SocketAddr>,

    /// File with the API key that those sidecars have to send; read at the start
    #[arg(
        long,
        env = "NEXUS_GATEWAY_KEY_FILE",
        value_name = "FILE",
        requires = "gateway_listen"
    )]
    pub gateway_key_file: Option<PathBuf>,

    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Options of every command that serves.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Addresses agents connect to; port 0 picks a free one [default: 127.0.0.1:8080 and, where there is IPv6, [::1]:8080]
    #[arg(long, env = "NEXUS_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,

    /// Address of /metrics, /healthz and /readyz [default: [::]:9901, or 0.0.0.0:9901 where there is no IPv6]
    #[arg(long, env = "NEXUS_ADMIN", value_name = "ADDR")]
    pub admin: Option<SocketAddr>,

    /// Further Host names under which agents may address the sidecar, beside localhost
    #[arg(
        long,
        env = "NEXUS_ALLOWED_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub allowed_host: Vec<String>,

    /// Which requests get a line on standard output
    #[arg(
        long,
        env = "NEXUS_ACCESS_LOG",
        value_name = "WHICH",
        default_value = "all"
    )]
    pub access_log: AccessLog,

    /// Log level, or a list such as `info,nexus_sidecar=debug`; logs go to standard error as JSON
    #[arg(
        long,
        env = "NEXUS_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: String,

    /// Worker threads; 1 is a single-threaded runtime
    #[arg(long, env = "NEXUS_THREADS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,

    /// How long requests in flight may take to finish after SIGTERM
    #[arg(long, env = "NEXUS_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    pub drain_timeout: Duration,

    #[command(flatten)]
    pub egress: EgressArgs,
}

/// How to leave a network that only lets a proxy out.
#[derive(Clone, Debug, Args)]
pub struct EgressArgs {
    /// HTTP proxy that connects to the upstreams, e.g. http://proxy.example.com:3128
    ///
    /// It is asked to CONNECT to addresses: names are still resolved here, and the addresses judged. Variables such
    /// as HTTPS_PROXY have no effect.
    #[arg(
        long,
        env = "NEXUS_EGRESS_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub egress_proxy: Option<String>,

    /// Upstreams that are connected to directly: host names, .suffix, addresses or networks, each with or without
    /// :PORT, or *
    #[arg(
        long,
        env = "NEXUS_NO_EGRESS_PROXY",
        value_name = "LIST",
        value_delimiter = ',',
        requires = "egress_proxy"
    )]
    pub no_egress_proxy: Vec<String>,

    /// File with user:password for the egress proxy; read again for every connection
    #[arg(
        long,
        env = "NEXUS_EGRESS_PROXY_CREDENTIALS",
        value_name = "FILE",
        requires = "egress_proxy"
    )]
    pub egress_proxy_credentials: Option<PathBuf>,

    /// PEM file with the CA of an egress proxy over https; replaces the public roots, read at the start
    #[arg(
        long,
        env = "NEXUS_EGRESS_PROXY_CA",
        value_name = "FILE",
        requires = "egress_proxy"
    )]
    pub egress_proxy_ca: Option<PathBuf>,
}

/// Options of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Files or directories of manifests
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// Options of `probe`.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// Admin address of the sidecar to ask
    #[arg(
        long,
        env = "NEXUS_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9901"
    )]
    pub admin: SocketAddr,
}

/// Which requests get an access log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// Every request.
    All,
    /// Requests that were answered by the sidecar itself, or with a status of 500 and above.
    Errors,
    /// None.
    Off,
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is not a duration; write it like 30s, 5m or 1h30m"))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_an_environment_fallback_named_after_it() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments().filter(|a| a.get_long().is_some()) {
                let long = argument.get_long().unwrap();
                if matches!(long, "help" | "version") {
                    continue;
                }
                let expected = format!("NEXUS_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(
                    argument.get_env().and_then(|e| e.to_str()),
                    Some(expected.as_str()),
                    "--{long}"
                );
            }
        }
        Cli::command().debug_assert();
    }

    #[test]
    fn secrets_are_named_by_their_files() {
        const OF_SECRETS: [&str; 7] = [
            "auth",
            "cert",
            "credential",
            "key",
            "password",
            "secret",
            "token",
        ];
        let mut files = 0;
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                // A time, of all credentials together.
                if !OF_SECRETS.iter().any(|word| name.contains(word))
                    || name == "credential_max_age"
                {
                    continue;
                }
                let value = argument.get_value_names().unwrap_or_default();
                assert!(value == ["FILE"], "{name} takes {value:?}");
                files += 1;
            }
        }
        assert!(files >= 5);
    }

    #[test]
    fn durations_are_written_with_units() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("5").is_err());
    }
}
