//! The call to the control plane: a connection id goes out, the body of a 200 answer or a [`FetchError`] comes
//! back. [`super::cache`] is the only caller on the data path.

mod tls;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method};
use nexus_crds::names::ConnectionId;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use url::{Host, Url};
use zeroize::Zeroizing;

use super::PayloadError;
use super::payload::Loose;
use super::status::{Answer, FetchError};
use crate::sign::hmac::hex;

/// Calls at once. A broker with PostgreSQL's defaults starts to fail at about 200.
pub const MAX_CALLS: usize = 32;
/// How long one call may take, and how long it may wait for its turn before that.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refresh may take: gateway and broker give their provider 30 seconds.
pub const REFRESH_TIMEOUT: Duration = Duration::from_secs(35);
/// Refreshes at once. Each may take long, and the rest of [`MAX_CALLS`] stays for reading.
const MAX_REFRESHES: usize = MAX_CALLS / 2;
/// Largest answer that is read, in bytes.
const MAX_PAYLOAD: usize = 1024 * 1024;
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Says which value was rejected, to whoever may hold a newer one.
const REJECTED: HeaderName = HeaderName::from_static("x-nexus-rejected");

/// Which service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `GET /v1/token/{id}`.
    Gateway,
    /// `GET /connections/{id}/token`.
    Broker,
}

/// Where the control plane is and how the sidecar authenticates to it.
///
/// Files are read at every call, so that they can rotate. Values are trimmed.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// Gateway or broker.
    pub flavour: Flavour,
    /// Base URL; a path is kept as a prefix.
    pub url: Url,
    /// File with the value of `X-API-Key`.
    pub api_key_file: Option<PathBuf>,
    /// The same as a value, for a control plane in this process.
    pub api_key: Option<SecretString>,
    /// File with a bearer token.
    pub token_file: Option<PathBuf>,
    /// PEM file with a client certificate and its chain; needs `client_key_file`.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    pub client_key_file: Option<PathBuf>,
    /// PEM file with roots that replace the public ones, as a route's `caBundle` does.
    pub ca_file: Option<PathBuf>,
    /// Clear-text HTTP to a host that is not this machine is accepted.
    pub allow_insecure: bool,
    /// Limit of one read; [`TIMEOUT`] by default.
    pub timeout: Duration,
    /// Limit of one refresh; [`REFRESH_TIMEOUT`] by default.
    pub refresh_timeout: Duration,
}

/// Why the control plane's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Credentials would travel in clear text.
    #[error(
        "the control plane's URL {0} must be https: credentials travel over it; only a loopback host, or an explicit permission, may use http"
    )]
    Insecure(String),
    /// The URL holds a user name or password.
    #[error(
        "the control plane's URL must not hold a user name or password, which process lists would show; give a file with --api-key-file or --token-file"
    )]
    UserInfo,
    /// The URL is not for HTTP.
    #[error("the control plane's URL {0} must start with https:// or http:// and have a host")]
    Url(String),
    /// One of certificate and key is missing.
    #[error("a client certificate needs both its file and its key's file")]
    HalfAnIdentity,
    /// A file cannot be used.
    #[error("{0}")]
    File(String),
    /// The HTTP client cannot be built.
    #[error("the control-plane client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// A client of the control plane.
pub struct ControlPlane {
    config: ControlPlaneConfig,
    client: Mutex<BuiltClient>,
    calls: Semaphore,
    refreshes: Semaphore,
}

/// A client and the file contents it was made of.
struct BuiltClient {
    client: Client,
    files: tls::Files,
}

impl ControlPlaneConfig {
    /// Settings without authentication.
    pub fn new(flavour: Flavour, url: Url) -> Self {
        Self {
            flavour,
            url,
            api_key_file: None,
            api_key: None,
            token_file: None,
            client_cert_file: None,
            client_key_file: None,
            ca_file: None,
            allow_insecure: false,
            timeout: TIMEOUT,
            refresh_timeout: REFRESH_TIMEOUT,
        }
    }
}

impl ControlPlane {
    /// Host (lower case, IPv6 without brackets) and port, so that no route can be pointed at the control plane.
    pub fn address(&self) -> Option<(String, u16)> {
        let url = &self.config.url;
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        Some((host, url.port_or_known_default()?))
    }

    /// Checks the settings and reads every file once, so that mistakes show at the start.
    pub fn new(config: ControlPlaneConfig) -> Result<Self, ConfigError> {
        let url = &config.url;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ConfigError::UserInfo);
        }
        match url.scheme() {
            "https" if url.has_host() => {}
            "http" if url.has_host() => {
                if !is_loopback(url) && !config.allow_insecure {
                    return Err(ConfigError::Insecure(printable(url)));
                }
            }
            _ => return Err(ConfigError::Url(printable(url))),
        }
        if config.client_cert_file.is_some() != config.client_key_file.is_some() {
            return Err(ConfigError::HalfAnIdentity);
        }
        for file in [&config.api_key_file, &config.token_file]
            .into_iter()
            .flatten()
        {
            secret_header(file, "").map_err(ConfigError::File)?;
        }
        let files = tls::Files::read(&config).map_err(ConfigError::File)?;
        let client = build(&config, &files)?;
        Ok(Self {
            client: Mutex::new(BuiltClient { client, files }),
            calls: Semaphore::new(MAX_CALLS),
            refreshes: Semaphore::new(MAX_REFRESHES),
            config,
        })
    }

    /// Fetches the credential payload of a connection. At most [`MAX_CALLS`] calls run at once.
    pub async fn token(&self, id: ConnectionId) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let _turn = self.turn(&self.calls).await?;
        let request = self.request(Method::GET, id)?;
        within(self.config.timeout, answer(request)).await
    }

    /// Asks for a new credential of a connection. `rejected` is the SHA-256 of the value that is to be replaced.
    ///
    /// Success means that the provider has issued a token; the answer is not the credential, which only
    /// [`token`](Self::token) brings. Never repeated here: a refresh whose answer was lost may have used up the
    /// refresh token.
    pub async fn refresh(&self, id: ConnectionId, rejected: [u8; 32]) -> Result<(), FetchError> {
        let _turns = (
            self.turn(&self.refreshes).await?,
            self.turn(&self.calls).await?,
        );
        let request = self
            .request(Method::POST, id)?
            .header(REJECTED, format!("sha256:{}", hex(&rejected)))
            .header(CONTENT_LENGTH, 0);
        let body = within(self.config.refresh_timeout, answer(request)).await?;
        // An error object with status 200 is what some providers answer.
        if has_token(&body) {
            Ok(())
        } else {
            Err(FetchError::Payload(PayloadError::NotACredential))
        }
    }

    async fn turn<'a>(&self, turns: &'a Semaphore) -> Result<SemaphorePermit<'a>, FetchError> {
        match tokio::time::timeout(self.config.timeout, turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(FetchError::Busy),
        }
    }

    fn request(&self, method: Method, id: ConnectionId) -> Result<RequestBuilder, FetchError> {
        let url = self.url(&method, id);
        let mut request = self
            .client()?
            .request(method, url)
            .header(ACCEPT, "application/json");
        if let Some(key) = &self.config.api_key {
            request = request.header(
                API_KEY,
                sensitive(key.expose_secret()).map_err(FetchError::Local)?,
            );
        }
        if let Some(file) = &self.config.api_key_file {
            request = request.header(API_KEY, secret_header(file, "").map_err(FetchError::Local)?);
        }
        if let Some(file) = &self.config.token_file {
            let value = secret_header(file, "Bearer ").map_err(FetchError::Local)?;
            request = request.header(AUTHORIZATION, value);
        }
        Ok(request)
    }

    fn url(&self, method: &Method, id: ConnectionId) -> Url {
        let mut url = self.config.url.clone();
        let id = id.to_string();
        let action = if method == Method::POST {
            "refresh"
        } else {
            "token"
        };
        let path: [&str; 3] = match self.config.flavour {
            Flavour::Gateway => ["v1", action, &id],
            Flavour::Broker => ["connections", &id, action],
        };
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// The client, made anew when a certificate file has changed. Files are small and calls are rare, so they
    /// are read in place.
    fn client(&self) -> Result<Client, FetchError> {
        let files = tls::Files::read(&self.config).map_err(FetchError::Local)?;
        let mut built = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if built.files != files {
            built.client =
                build(&self.config, &files).map_err(|e| FetchError::Local(e.to_string()))?;
            built.files = files;
            tracing::info!("control-plane certificate files have changed and were loaded");
        }
        Ok(built.client.clone())
    }
}

fn build(config: &ControlPlaneConfig, files: &tls::Files) -> Result<Client, ConfigError> {
    let mut builder = Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(config.timeout)
        .pool_max_idle_per_host(MAX_CALLS)
        .pool_idle_timeout(Duration::from_secs(30));
    if config.url.scheme() == "https" {
        builder =
            builder.tls_backend_preconfigured(files.client_config().map_err(ConfigError::File)?);
    } else {
        builder = builder.tls_backend_preconfigured(tls::no_roots().map_err(ConfigError::File)?);
    }
    builder.build().map_err(ConfigError::Client)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// The URL without what may hold a password.
fn printable(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{}://{host}", url.scheme())
}

fn secret_header(file: &Path, prefix: &str) -> Result<HeaderValue, String> {
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let value = text.trim();
    if value.is_empty() {
        return Err(format!("{}: the file is empty", file.display()));
    }
    let line = Zeroizing::new([prefix, value].concat());
    sensitive(&line).map_err(|reason| format!("{}: {reason}", file.display()))
}

fn sensitive(line: &str) -> Result<HeaderValue, String> {
    let mut header =
        HeaderValue::from_str(line).map_err(|_| "not one line of ASCII text".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or(Err(FetchError::TimedOut))
}

/// The body of a 200 answer.
async fn answer(request: RequestBuilder) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let response = request.send().await.map_err(transport)?;
    let status = response.status().as_u16();
    let retry_after = retry_after(&response);
    let body = read(response).await?;
    if status == 200 {
        return Ok(body);
    }
    Err(FetchError::Answer(Answer {
        status,
        code: error_code(&body),
        empty: body.is_empty(),
        retry_after,
    }))
}

/// True if the answer of a refresh names a new access token, at its root or where the gRPC front wraps it.
fn has_token(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Tokens {
        access_token: Loose,
    }
    #[derive(Deserialize)]
    struct Wrapped {
        token: Tokens,
    }
    let tokens = serde_json::from_slice(body)
        .or_else(|_| serde_json::from_slice(body).map(|Wrapped { token }| token));
    let Ok(Tokens { access_token }) = tokens else {
        return false;
    };
    matches!(access_token, Loose::Text(token) if !token.trim().is_empty())
}

/// The kind of failure and its root cause; the URL names the connection and stays out.
fn transport(error: reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError::TimedOut;
    }
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    FetchError::Unreachable(cause.to_string())
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3); a date is rare here and ignored.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

async fn read(mut response: Response) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let expected = response.content_length().unwrap_or(16 * 1024);
    let room = usize::try_from(expected)
        .unwrap_or(MAX_PAYLOAD)
        .min(MAX_PAYLOAD);
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > MAX_PAYLOAD {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The `error` of a failed answer, if it looks like a code. Anything else is not ours to repeat.
fn error_code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        error: String,
    }
    let Problem { error } = serde_json::from_slice(body).ok()?;
    let is_code = !error.is_empty()
        && error.len() <= 64
        && error
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    is_code.then_some(error)
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("flavour", &self.config.flavour)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
