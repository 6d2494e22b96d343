//! The certificate that admission is served with. From files of cert-manager and its like, read again when they
//! change; or from an authority of our own, which all replicas keep together in two Secrets and in the `caBundle` of
//! the webhook configurations. [`start`] is called once; what it returns goes to [`crate::webhook::server`].

pub mod authority;
pub mod bundle;
pub mod files;
pub mod keeper;
pub mod plan;
pub mod policy;
pub mod serving;
pub mod stored;

use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use tokio::task::JoinSet;

pub use self::serving::ServingCertificate;

use self::keeper::Keeper;
use self::policy::Policy;
use crate::args::RunArgs;
use crate::metrics::{Certificate, CertificateLabels, Metrics};
use crate::ready::Readiness;

/// Keeps a certificate served from now on. Fails where the command line or the files are wrong; a cluster that cannot
/// be reached or lacks the webhook configurations only leaves the process not ready.
pub async fn start(
    client: Client,
    args: &RunArgs,
    metrics: Arc<Metrics>,
    readiness: &Arc<Readiness>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<ServingCertificate> {
    let (publisher, serving) = serving::pair().context("TLS")?;
    let certificates = &args.certificates;
    if let (Some(certificate), Some(key)) = (&certificates.tls_cert, &certificates.tls_key) {
        let files = files::Files::load(certificate, key, publisher, metrics).await?;
        tasks.spawn(files.follow());
        return Ok(serving);
    }
    let policy = Policy::try_from(args)?;
    let ready = readiness.task("the serving certificate and its caBundle");
    let keeper = Keeper::new(client, args, policy, publisher, metrics, ready);
    tasks.spawn(keeper.run());
    Ok(serving)
}

fn expires(metrics: &Metrics, certificate: Certificate, life: authority::Life) {
    let labels = CertificateLabels { certificate };
    let gauge = metrics.certificate_expiration.get_or_create(&labels);
    gauge.set(life.ends.as_second());
}
