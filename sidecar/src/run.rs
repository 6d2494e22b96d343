//! `nexus-sidecar run`: from the command line to a serving process.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nexus_crds::admitted::Admitted;
use nexus_crds::names;
use nexus_crds::table::RouteTable;
use tokio::runtime::{Builder, Runtime};
use url::Url;

use crate::app::{self, Config, RouteSource};
use crate::args::{ControlArgs, DevArgs, EgressArgs, RunArgs, ServeArgs};
use crate::credential::cache::CacheSettings;
use crate::credential::client::{ControlPlane, ControlPlaneConfig, Flavour};
use crate::dev::{self, DevOptions, DevSetup, banner};
use crate::hardening;
use crate::identity::Identity;
use crate::manifest::problem::Problem;
use crate::manifest::{self, Failure, Loaded};
use crate::routes::Tenants;
use crate::routes::watch::{RouteWatch, Timing};
use crate::telemetry;
use crate::upstream::egress::{EgressConfigError, EgressProxy};

/// Serves until the process is told to stop.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    telemetry::start(&args.serve.log_level)?;
    hardening::apply();
    raise_file_limit();
    let (identity, tenants) = identity(args.admitted.as_deref(), args.tenants.clone())?;
    let control = ControlPlane::new(control_plane(args.control.clone())?)?;
    let egress = egress(&args.serve.egress)?;
    log_configuration(&args);
    let RunArgs {
        routes,
        control: ControlArgs {
            credential_max_age: max_age,
            ..
        },
        serve,
        ..
    } = args;
    let cache = CacheSettings {
        max_age,
        ..CacheSettings::default()
    };
    runtime(&serve)?.block_on(async {
        let watch = RouteWatch::start(vec![routes.clone()], Timing::default());
        let load = Arc::new(move || load(&routes));
        let routes = RouteSource { load, watch };
        app::build(Config {
            serve,
            routes,
            control,
            cache,
            identity,
            tenants,
            egress,
        })
        .await?
        .run("")
        .await
    })
}

/// Serves the built-in routes, or the user's own, with credentials from a broker in this process.
pub fn dev(args: DevArgs) -> anyhow::Result<()> {
    let DevArgs {
        routes,
        credentials,
        gateway_listen,
        gateway_key_file,
        mut serve,
    } = args;
    telemetry::start(&serve.log_level)?;
    hardening::apply();
    raise_file_limit();
    if routes.is_none() {
        // The built-in upstream is in this process, where no proxy finds it.
        serve.egress.no_egress_proxy.push("127.0.0.1".into());
    }
    let egress = egress(&serve.egress)?;
    let options = DevOptions {
        routes,
        credentials,
        gateway: gateway_listen.zip(gateway_key_file),
        environment: |name| std::env::var(name).ok(),
    };
    runtime(&serve)?.block_on(async {
        let DevSetup {
            gateway_url,
            api_key,
            loaded,
            loader,
            watch,
            served_at,
            mut servers,
        } = dev::prepare(options).await?;
        warn(&loaded.warnings);
        let control = ControlPlaneConfig {
            api_key: Some(api_key),
            ..ControlPlaneConfig::new(Flavour::Gateway, gateway_url)
        };
        let reload = Arc::clone(&loader);
        let bound = app::build(Config {
            serve,
            routes: RouteSource {
                watch,
                load: Arc::new(move || table(reload.load())),
            },
            control: ControlPlane::new(control)?,
            cache: CacheSettings::default(),
            identity: Identity::unknown(),
            tenants: Tenants::NamedByRoutes,
            egress,
        })
        .await?;
        let mut banner = bound
            .proxy_addresses()
            .first()
            .map(|proxy| loader.banner(*proxy))
            .unwrap_or_default();
        if let Some(address) = served_at {
            banner += &banner::gateway(address);
        }
        tokio::select! {
            ended = bound.run(&banner) => ended,
            _ = servers.join_next() => anyhow::bail!("the built-in broker or echo upstream ended"),
        }
    })
}

fn table(loaded: Result<Loaded, Failure>) -> anyhow::Result<Option<RouteTable>> {
    let Loaded { table, warnings } = loaded?;
    warn(&warnings);
    Ok(Some(table))
}

fn warn(warnings: &[Problem]) {
    for warning in warnings {
        tracing::warn!(%warning, "routes");
    }
}

/// The table of a path; `None` where there is no file yet, as in a pod whose ConfigMap is still to come.
fn load(path: &Path) -> anyhow::Result<Option<RouteTable>> {
    match manifest::load(path) {
        Err(Failure::Missing(_)) if path.is_dir() => Ok(None),
        loaded => table(loaded),
    }
}

/// The runtime that `--threads` asks for.
pub fn runtime(serve: &ServeArgs) -> anyhow::Result<Runtime> {
    let mut builder = if serve.threads == 1 {
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    };
    if serve.threads > 1 {
        builder
            .worker_threads(usize::from(serve.threads))
            .thread_name("nexus-sidecar");
    }
    builder
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Sockets are file descriptors, and the soft limit is often 1,024 where the hard one is far above.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn control_plane(args: ControlArgs) -> anyhow::Result<ControlPlaneConfig> {
    let ControlArgs {
        gateway_url,
        broker_url,
        api_key_file,
        token_file,
        client_cert,
        client_key,
        gateway_ca,
        allow_insecure_gateway,
        credential_max_age: _,
    } = args;
    let (flavour, url) = match (gateway_url, broker_url) {
        (Some(url), _) => (Flavour::Gateway, url),
        (None, Some(url)) => (Flavour::Broker, url),
        (None, None) => anyhow::bail!("give --gateway-url or --broker-url"),
    };
    Ok(ControlPlaneConfig {
        api_key_file,
        token_file,
        client_cert_file: client_cert,
        client_key_file: client_key,
        ca_file: gateway_ca,
        allow_insecure: allow_insecure_gateway,
        ..ControlPlaneConfig::new(flavour, url)
    })
}

/// Whom the sidecar works for, and the tenants that this lets requests name.
fn identity(
    admitted: Option<&str>,
    tenants: Option<Vec<String>>,
) -> anyhow::Result<(Identity, Tenants)> {
    let Some(json) = admitted else {
        return Ok((Identity::unknown(), allowed(tenants)?));
    };
    let admitted = Admitted::parse(json).context("--admitted (NEXUS_ADMITTED)")?;
    let tenants = admitted.tenants.iter().cloned();
    let tenants = Tenants::Listed(tenants.map(String::into_boxed_str).collect());
    Ok((Identity::pod(admitted), tenants))
}

/// Before anything is logged, since only then a password in the URL is known to be none.
fn egress(args: &EgressArgs) -> Result<Option<EgressProxy>, EgressConfigError> {
    let EgressArgs {
        egress_proxy,
        no_egress_proxy,
        egress_proxy_credentials,
        egress_proxy_ca,
    } = args;
    egress_proxy
        .as_ref()
        .map(|url| {
            EgressProxy::new(
                url,
                no_egress_proxy,
                egress_proxy_credentials.as_deref(),
                egress_proxy_ca.as_deref(),
            )
        })
        .transpose()
}

fn allowed(tenants: Option<Vec<String>>) -> anyhow::Result<Tenants> {
    let Some(tenants) = tenants else {
        return Ok(Tenants::NamedByRoutes);
    };
    let tenants: Vec<String> = tenants
        .into_iter()
        .map(|tenant| tenant.trim().to_owned())
        .filter(|tenant| !tenant.is_empty())
        .collect();
    for tenant in &tenants {
        anyhow::ensure!(
            names::is_tenant(tenant),
            "--tenants: {tenant:?} is not a tenant name: [A-Za-z0-9._:-]{{1,128}}"
        );
    }
    Ok(Tenants::Listed(
        tenants.into_iter().map(String::into_boxed_str).collect(),
    ))
}

/// Once, and nothing secret: secrets are only ever named by their files, and a URL with a password is refused.
fn log_configuration(args: &RunArgs) {
    let RunArgs {
        routes,
        control,
        tenants,
        admitted,
        serve,
    } = args;
    let ControlArgs {
        gateway_url,
        broker_url,
        api_key_file,
        token_file,
        client_cert,
        client_key,
        gateway_ca,
        allow_insecure_gateway,
        credential_max_age,
    } = control;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        routes = %routes.display(),
        gateway_url = gateway_url.as_ref().map(Url::as_str),
        broker_url = broker_url.as_ref().map(Url::as_str),
        ?api_key_file,
        ?token_file,
        ?client_cert,
        ?client_key,
        ?gateway_ca,
        allow_insecure_gateway,
        ?credential_max_age,
        ?tenants,
        admitted,
        ?serve,
        "starting"
    );
}
