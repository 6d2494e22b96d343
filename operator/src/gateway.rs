//! The base URLs that the control plane has for providers: they grant an origin where there is no NexusProvider.
//!
//! Every replica reads them, since each admits. What was read last counts for as long as reading fails; before the first
//! time the leader does not write.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::stores::Stores;

/// How often they are read.
const EVERY: Duration = Duration::from_mins(5);
/// How soon they are read again after a failure.
const RETRY: Duration = Duration::from_secs(30);
/// How soon as long as nothing was read.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer: a control plane has some hundred providers.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// One provider of the answer.
#[derive(Deserialize)]
struct Provider {
    #[serde(default)]
    api_base_url: Option<String>,
}

/// Reads them for as long as the process lives.
pub(crate) async fn follow(gateway: Url, stores: Stores) -> anyhow::Result<()> {
    let client = Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("cannot make a client for --gateway-url")?;
    let mut url = gateway;
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("--gateway-url: is no http:// or https:// URL"))?
        .pop_if_empty()
        .extend(["v1", "providers"]);
    let mut last_error = String::new();
    loop {
        let wait = match read(&client, &url).await {
            Ok(urls) => {
                if !last_error.is_empty() {
                    tracing::info!(%url, "the gateway answers again");
                    last_error.clear();
                }
                stores.set_gateway_urls(urls);
                EVERY
            }
            Err(error) => {
                let error = format!("{error:#}");
                let known = stores.gateway_is_known();
                if error != last_error {
                    let meanwhile = if known {
                        "what was read last counts"
                    } else {
                        "tables and conditions stay as they are until it answers"
                    };
                    tracing::warn!(%url, error, meanwhile, "cannot read providers of the gateway");
                    last_error = error;
                }
                if known { RETRY } else { FIRST_RETRY }
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn read(client: &Client, url: &Url) -> anyhow::Result<BTreeMap<String, String>> {
    let mut answer = client.get(url.clone()).send().await?;
    ensure!(answer.status().is_success(), "answered {}", answer.status());
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        bytes.extend_from_slice(&chunk);
        ensure!(
            bytes.len() <= MAX_BYTES,
            "answered more than {MAX_BYTES} bytes"
        );
    }
    parse(&bytes)
}

/// `auth_type -> name -> provider`. A provider that is not what it should be grants nothing.
fn parse(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, String>> {
    let kinds: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_slice(bytes).context("answered something else than providers by name")?;
    let providers = kinds.into_values().flatten();
    let urls = providers.filter_map(|(name, provider)| {
        let provider: Provider = serde_json::from_value(provider).ok()?;
        let url = provider.api_base_url.filter(|url| !url.is_empty())?;
        Some((name, url))
    });
    Ok(urls.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_found_under_every_kind_and_odd_ones_grant_nothing() {
        let answer = br#"{
            "oauth2": {"github": {"id": "1", "api_base_url": "https://api.github.com", "scopes": []}, "none": {"api_base_url": null}},
            "api_key": {"openai": {"api_base_url": "https://api.openai.com"}, "empty": {"api_base_url": ""}, "odd": "x"}
        }"#;
        let urls = parse(answer).unwrap();
        assert_eq!(urls.keys().collect::<Vec<_>>(), ["github", "openai"]);
        assert_eq!(urls["github"], "https://api.github.com");
        assert!(parse(b"[]").is_err() && parse(b"").is_err());
        assert!(parse(b"{}").unwrap().is_empty());
    }
}
