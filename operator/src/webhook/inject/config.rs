//! How sidecars are injected: the operator's flags, checked once at the start.

use tracing_subscriber::filter::Targets;
use url::Url;

use super::quantity::Quantity;
use crate::args::{SidecarArgs, SidecarAuth, is_loopback};

/// The operator's settings for sidecars.
#[derive(Clone, Debug)]
pub struct InjectConfig {
    pub(super) image: String,
    pub(super) pull_policy: Option<String>,
    pub(super) control: ControlPlane,
    pub(super) ca_config_map: Option<String>,
    pub(super) auth: Auth,
    pub(super) port: u16,
    pub(super) admin_port: u16,
    pub(super) log_level: String,
    pub(super) cpu_request: Quantity,
    pub(super) cpu_limit: Option<Quantity>,
    pub(super) memory_request: Quantity,
    pub(super) memory_limit: Quantity,
    /// `None` leaves the user to the cluster.
    pub(super) run_as_user: Option<i64>,
}

/// Where sidecars fetch credentials.
#[derive(Clone, Debug)]
pub(super) struct ControlPlane {
    /// The sidecar's flag for this kind of control plane.
    pub(super) flag: &'static str,
    pub(super) url: Url,
    /// Clear text although it leaves the pod.
    pub(super) insecure: bool,
}

/// What sidecars show to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Auth {
    None,
    ApiKey { secret: String },
    ClientCertificate { secret: String },
    Token,
}

impl Auth {
    /// Name of the Secret that holds it.
    pub(super) fn secret(&self) -> Option<&str> {
        match self {
            Self::None | Self::Token => None,
            Self::ApiKey { secret } | Self::ClientCertificate { secret } => Some(secret),
        }
    }
}

/// A flag of the operator that no sidecar could be injected with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: {why}")]
pub struct ConfigError {
    flag: &'static str,
    why: String,
}

fn wrong(flag: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError {
        flag,
        why: why.into(),
    }
}

impl TryFrom<&SidecarArgs> for InjectConfig {
    type Error = ConfigError;

    fn try_from(args: &SidecarArgs) -> Result<Self, ConfigError> {
        let config = Self {
            image: image(&args.sidecar_image)?,
            pull_policy: pull_policy(args.sidecar_image_pull_policy.as_deref())?,
            control: control_plane(args)?,
            ca_config_map: args
                .sidecar_ca_config_map
                .as_deref()
                .map(|name| object_name("--sidecar-ca-config-map", name))
                .transpose()?,
            auth: auth(args)?,
            port: args.sidecar_port,
            admin_port: args.sidecar_admin_port,
            log_level: log_level(&args.sidecar_log_level)
                .map_err(|why| wrong("--sidecar-log-level", why))?,
            cpu_request: Quantity::cpu(&args.sidecar_cpu_request)
                .map_err(|why| wrong("--sidecar-cpu-request", why))?,
            cpu_limit: args
                .sidecar_cpu_limit
                .as_deref()
                .map(|text| limit(Quantity::cpu(text)))
                .transpose()
                .map_err(|why| wrong("--sidecar-cpu-limit", why))?,
            memory_request: Quantity::memory(&args.sidecar_memory_request)
                .map_err(|why| wrong("--sidecar-memory-request", why))?,
            memory_limit: limit(Quantity::memory(&args.sidecar_memory_limit))
                .map_err(|why| wrong("--sidecar-memory-limit", why))?,
            run_as_user: (!args.sidecar_no_run_as_user).then_some(args.sidecar_run_as_user),
        };
        config.consistent()
    }
}

impl InjectConfig {
    fn consistent(self) -> Result<Self, ConfigError> {
        if self.port == self.admin_port {
            let why = format!("{} is --sidecar-port too; choose another", self.port);
            return Err(wrong("--sidecar-admin-port", why));
        }
        if self.memory_request > self.memory_limit {
            let why = format!(
                "{} is more than --sidecar-memory-limit, {}",
                self.memory_request, self.memory_limit
            );
            return Err(wrong("--sidecar-memory-request", why));
        }
        if let Some(limit) = self
            .cpu_limit
            .as_ref()
            .filter(|limit| self.cpu_request > **limit)
        {
            let why = format!(
                "{} is more than --sidecar-cpu-limit, {limit}",
                self.cpu_request
            );
            return Err(wrong("--sidecar-cpu-request", why));
        }
        Ok(self)
    }
}

fn image(image: &str) -> Result<String, ConfigError> {
    let plain = |c: char| c.is_ascii_graphic();
    if image.is_empty() || !image.chars().all(plain) {
        return Err(wrong(
            "--sidecar-image",
            format!("{image:?} is not an image"),
        ));
    }
    Ok(image.to_owned())
}

fn pull_policy(policy: Option<&str>) -> Result<Option<String>, ConfigError> {
    match policy {
        None | Some("Always" | "IfNotPresent" | "Never") => Ok(policy.map(str::to_owned)),
        Some(other) => {
            let why = format!("{other:?} is neither Always, IfNotPresent nor Never");
            Err(wrong("--sidecar-image-pull-policy", why))
        }
    }
}

/// What the sidecar itself would refuse at its start is refused here, where one reads it.
fn control_plane(args: &SidecarArgs) -> Result<ControlPlane, ConfigError> {
    let (ours, flag, url) = match (&args.sidecar_gateway_url, &args.sidecar_broker_url) {
        (Some(url), _) => ("--sidecar-gateway-url", "--gateway-url", url),
        (None, Some(url)) => ("--sidecar-broker-url", "--broker-url", url),
        (None, None) => {
            let why = "is missing, and so is --sidecar-broker-url; give one of them";
            return Err(wrong("--sidecar-gateway-url", why));
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        let why = "holds a user or a password; give --sidecar-auth and a Secret instead";
        return Err(wrong(ours, why));
    }
    // Kubernetes would take $(NAME) in an argument for a variable.
    if url.as_str().contains('$') {
        return Err(wrong(ours, "holds a $, which Kubernetes expands"));
    }
    let clear_text = match url.scheme() {
        "https" if url.has_host() => false,
        "http" if url.has_host() => !is_loopback(url),
        _ => return Err(wrong(ours, format!("{url} is not an https:// address"))),
    };
    if clear_text && !args.sidecar_allow_insecure_gateway {
        let why = format!(
            "{url} would carry credentials in clear text; use https:// or add --sidecar-allow-insecure-gateway"
        );
        return Err(wrong(ours, why));
    }
    Ok(ControlPlane {
        flag,
        url: url.clone(),
        insecure: clear_text,
    })
}

fn auth(args: &SidecarArgs) -> Result<Auth, ConfigError> {
    let secret = || {
        let name = args.sidecar_auth_secret.as_deref().unwrap_or_default();
        object_name("--sidecar-auth-secret", name)
    };
    Ok(match args.sidecar_auth {
        SidecarAuth::None => Auth::None,
        SidecarAuth::ApiKey => Auth::ApiKey { secret: secret()? },
        SidecarAuth::ClientCertificate => Auth::ClientCertificate { secret: secret()? },
        SidecarAuth::Token => Auth::Token,
    })
}

fn object_name(flag: &'static str, name: &str) -> Result<String, ConfigError> {
    let fits = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    let edge = |b: &u8| b.is_ascii_alphanumeric();
    let bytes = name.as_bytes();
    if matches!(bytes.len(), 1..=253)
        && bytes.iter().all(|b| fits(*b))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
    {
        return Ok(name.to_owned());
    }
    Err(wrong(
        flag,
        format!("{name:?} is not the name of an object"),
    ))
}

/// Reads a filter as the sidecar would.
pub(super) fn log_level(filter: &str) -> Result<String, String> {
    // Nothing that Kubernetes would expand.
    let plain = |c: char| c.is_ascii_alphanumeric() || "_:=,-".contains(c);
    if !filter.is_empty() && filter.chars().all(plain) && filter.parse::<Targets>().is_ok() {
        return Ok(filter.to_owned());
    }
    Err(format!(
        "{filter:?} is not a log level; give off, error, warn, info, debug, trace or target=level,..."
    ))
}

/// A limit of nothing would be none.
pub(super) fn limit(quantity: Result<Quantity, String>) -> Result<Quantity, String> {
    match quantity {
        Ok(limit) if limit.is_zero() => Err(format!(
            "\"{limit}\" would be no limit; give more than nothing"
        )),
        quantity => quantity,
    }
}
