//! The base URLs that the control plane has for providers: they grant an origin where there is no NexusProvider.
//!
//! Every replica reads them, since each admits. What was read last counts for as long as reading fails; before the first
//! time the leader does not write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use reqwest::{Certificate, Client};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::args::is_loopback;
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

/// Reads them for as long as the process lives. Fails at once if the gateway cannot be asked safely; a file that is wrong
/// is an outage like others, since admission needs none of this.
pub(crate) async fn follow(
    gateway: Url,
    ca: Option<PathBuf>,
    stores: Stores,
) -> anyhow::Result<()> {
    let url = providers(gateway)?;
    let mut last_error = String::new();
    loop {
        let wait = match read(ca.as_deref(), &url).await {
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

/// Where a gateway has its providers.
fn providers(mut gateway: Url) -> anyhow::Result<Url> {
    ensure!(
        gateway.username().is_empty() && gateway.password().is_none(),
        "--gateway-url holds a user or a password, which it is never asked with; leave them out"
    );
    ensure!(
        gateway.scheme() == "https" || gateway.scheme() == "http" && is_loopback(&gateway),
        "--gateway-url {gateway} is no https:// address; whoever is on the way to it could grant addresses to routes"
    );
    gateway
        .path_segments_mut()
        .map_err(|()| anyhow!("--gateway-url has no path"))?
        .pop_if_empty()
        .extend(["v1", "providers"]);
    Ok(gateway)
}

/// Made anew for each look, which is seldom: authorities are replaced while the process lives.
fn client(ca: Option<&Path>) -> anyhow::Result<Client> {
    let builder = Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none());
    let Some(ca) = ca else {
        return builder
            .build()
            .context("cannot make a client for --gateway-url");
    };
    let with_authorities = || {
        let authorities = Certificate::from_pem_bundle(&std::fs::read(ca)?)?;
        ensure!(!authorities.is_empty(), "holds no certificate in PEM");
        Ok(builder.tls_certs_only(authorities).build()?)
    };
    with_authorities().with_context(|| format!("--gateway-ca {}", ca.display()))
}

async fn read(ca: Option<&Path>, url: &Url) -> anyhow::Result<BTreeMap<String, String>> {
    let mut answer = client(ca)?.get(url.clone()).send().await?;
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

    #[test]
    fn a_gateway_is_asked_where_nobody_is_on_the_way() {
        let asked = |url: &str| providers(url.parse().unwrap()).map(|url| url.to_string());
        for (url, at) in [
            (
                "https://gateway.example",
                "https://gateway.example/v1/providers",
            ),
            (
                "https://gateway.example/base/",
                "https://gateway.example/base/v1/providers",
            ),
            (
                "http://127.0.0.1:7070",
                "http://127.0.0.1:7070/v1/providers",
            ),
            (
                "http://localhost/base",
                "http://localhost/base/v1/providers",
            ),
        ] {
            assert_eq!(asked(url).unwrap(), at);
        }
        for url in [
            "http://gateway.example",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
            "data:x",
        ] {
            let said = asked(url).unwrap_err().to_string();
            assert!(said.contains("is no https:// address"), "{said}");
        }
        let said = asked("https://user:hunter2@gateway.example")
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("a user or a password") && !said.contains("hunter2"),
            "{said}"
        );
    }

    #[test]
    fn a_file_without_authorities_is_refused_by_name() {
        // As main does for the process.
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        for content in [
            None,
            Some(""),
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ] {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let said = format!("{:#}", client(Some(&file)).unwrap_err());
            assert!(
                said.contains(&file.display().to_string()),
                "{content:?}: {said}"
            );
        }
    }
}
