//! From the command line to a serving process: bind, start what runs beside each other, end when one of them does.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::admin::{self, Admin};
use crate::args::RunArgs;
use crate::metrics::{Exposition, Metrics};
use crate::ready::Readiness;
use crate::stores::Stores;
use crate::webhook::inject::InjectConfig;
use crate::webhook::{self, Webhook};
use crate::{controller, lease, telemetry, tls};

/// What the Lease and open connections may take beyond the drain timeout.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until the process is told to stop.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    telemetry::start(&args.log_level)?;
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        bail!("another cryptography provider was installed before");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(args))
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let inject = InjectConfig::try_from(&args.sidecar)?;
    let webhook_listener = bind("--webhook-listen", args.webhook.webhook_listen).await?;
    let admin_listener = bind("--admin", args.admin).await?;
    let client = Client::try_default()
        .await
        .context("neither a service account nor KUBECONFIG says where the API server is")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;

    let metrics = Arc::new(Metrics::default());
    let readiness = Arc::new(Readiness::default());
    let (stop, shutdown) = watch::channel(false);
    // The first are stopped at the end, the second finish what they do.
    let (mut endless, mut finishing) = (JoinSet::new(), JoinSet::new());
    let addresses = (webhook_listener.local_addr()?, admin_listener.local_addr()?);
    spawn_admin(admin_listener, &metrics, &readiness, &mut endless);

    let synced = readiness.task("the first lists of routes, providers and namespaces");
    let stores = Stores::start(&client, &args.controller, &metrics, &mut endless);
    let certificate = tls::start(
        client.clone(),
        &args,
        metrics.clone(),
        &readiness,
        &mut endless,
    )
    .await?;
    let router = webhook::router(Webhook {
        stores: stores.clone(),
        client: client.clone(),
        inject: Arc::new(inject),
        metrics: metrics.clone(),
    });
    finishing.spawn(webhook::server::serve(
        webhook_listener,
        router,
        certificate,
        shutdown.clone(),
        args.drain_timeout,
    ));
    announce(addresses)?;
    let waiting = stores.clone();
    endless.spawn(async move {
        waiting.admission_synced().await;
        synced.done();
        std::future::pending().await
    });
    let leader = lease::start(
        client.clone(),
        &args,
        metrics.clone(),
        &mut finishing,
        shutdown.clone(),
    )?;
    let settings = args.controller.clone();
    finishing.spawn(async move {
        controller::run(client, stores, &settings, metrics, leader, shutdown).await
    });

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT"),
        Some(ended) = endless.join_next() => Err(premature(ended)),
        Some(ended) = finishing.join_next() => Err(premature(ended)),
    };
    stop.send_replace(true);
    let finished = async { while finishing.join_next().await.is_some() {} };
    if tokio::time::timeout(args.drain_timeout + GRACE, finished)
        .await
        .is_err()
    {
        tracing::warn!("work in flight did not finish in time and is given up");
    }
    outcome
}

/// A task ended although nobody asked for it: what the process is for is no longer done.
fn premature(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a task ended that never should"),
        Ok(Err(error)) => error,
        Err(error) => anyhow::Error::new(error).context("a task panicked"),
    }
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(error) => match without_ipv6(address, &error) {
            Some(address) => TcpListener::bind(address).await,
            None => Err(error),
        },
        bound => bound,
    };
    listener.with_context(|| format!("{flag} {address}: cannot listen there"))
}

/// Every address, on a machine that knows no IPv6.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let unknown = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::AFNOSUPPORT)
        || error.kind() == io::ErrorKind::AddrNotAvailable;
    let every = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    (unknown && every).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

fn spawn_admin(
    listener: TcpListener,
    metrics: &Metrics,
    readiness: &Arc<Readiness>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) {
    let router = admin::router(Admin {
        exposition: Arc::new(Exposition::new(metrics)),
        readiness: readiness.clone(),
    });
    tasks.spawn(async {
        axum::serve(listener, router)
            .await
            .context("the admin listener failed")
    });
}

/// Says where the process listens, on standard output.
fn announce((webhook, admin): (SocketAddr, SocketAddr)) -> anyhow::Result<()> {
    writeln!(io::stdout(), "listening webhook={webhook} admin={admin}")
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_every_address_is_another_one_without_ipv6() {
        let unknown = io::Error::from(rustix::io::Errno::AFNOSUPPORT);
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let every = address("[::]:9901");
        assert_eq!(without_ipv6(every, &unknown), Some(address("0.0.0.0:9901")));
        assert_eq!(without_ipv6(every, &taken), None);
        assert_eq!(without_ipv6(address("[::1]:9901"), &unknown), None);
    }
}
