//! Tests that start and end the operator themselves: what it holds is the cluster's, so they take turns.

use std::fmt;
use std::sync::OnceLock;

use tokio::sync::{Mutex, MutexGuard};

use crate::apiserver::Cluster;
use crate::caller::Caller;
use crate::forwarder::Forwarder;
use crate::operator::Installation;

/// One test's turn. The first of a test process installs the chart, and the values are those of the process.
pub struct Turn {
    /// The control plane.
    pub cluster: &'static Cluster,
    /// An administrator of it.
    pub admin: Caller,
    /// The chart.
    pub installation: &'static Installation,
    forwarder: Option<&'static Forwarder>,
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits for it. The API server finds the webhooks on the installation's port.
    ///
    /// # Panics
    ///
    /// When the chart cannot be installed.
    pub async fn new(values: &[(&str, &str)]) -> Self {
        Self::of(|cluster| (None, Installation::new(cluster, values))).await
    }

    /// Waits for it. The API server finds the webhooks wherever the [`Turn::forwarder`] leads.
    ///
    /// # Panics
    ///
    /// When the chart cannot be installed.
    pub async fn behind_forwarder(values: &[(&str, &str)]) -> Self {
        Self::of(|cluster| {
            let forwarder = Forwarder::start();
            let installation = Installation::behind(cluster, values, forwarder.port());
            (Some(forwarder), installation)
        })
        .await
    }

    async fn of(
        install: impl FnOnce(&'static Cluster) -> (Option<Forwarder>, Installation),
    ) -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        static INSTALLED: OnceLock<(Option<Forwarder>, Installation)> = OnceLock::new();
        let turn = TURN.lock().await;
        let cluster = Cluster::shared();
        let (forwarder, installation) = INSTALLED.get_or_init(|| install(cluster));
        Self {
            cluster,
            admin: Caller::new(cluster.client().await),
            installation,
            forwarder: forwarder.as_ref(),
            _guard: turn,
        }
    }

    /// Leads the API server to replicas.
    ///
    /// # Panics
    ///
    /// Without one: see [`Turn::behind_forwarder`].
    pub fn forwarder(&self) -> &'static Forwarder {
        self.forwarder.unwrap()
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}
