//! `nexus-sidecar dev`: everything that a sidecar needs beside it, in one process. Options flow in; a gateway to talk
//! to, a table, a banner and a way to load again flow out. The sidecar itself runs as it does with `run`.

pub(crate) mod banner;
pub(crate) mod bindings;
pub(crate) mod broker;
pub(crate) mod builtin;
pub(crate) mod credentials;
pub(crate) mod echo;
mod loader;
pub(crate) mod vault;

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::Url;
use zeroize::Zeroizing;

pub use self::credentials::Environment;
pub use self::loader::DevLoader;
use self::loader::RouteSource;
use self::vault::{CredentialSource, Vault};
use crate::manifest::{Failure, Loaded};
use crate::routes::watch::{RouteWatch, Timing};

/// A free port that only this machine reaches.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// File or directory of NexusRoute manifests; none: three routes to a built-in echo upstream.
    pub routes: Option<PathBuf>,
    /// Credentials file; needed with `routes`.
    pub credentials: Option<PathBuf>,
    /// Where other sidecars may ask the broker too, and the file with the key that they have to send.
    pub gateway: Option<(SocketAddr, PathBuf)>,
    /// Where `{env: NAME}` looks.
    pub environment: Environment,
}

/// Why `dev` cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The files are wrong.
    #[error(transparent)]
    Files(#[from] Failure),
    /// The options do not go together.
    #[error("{0}")]
    Options(&'static str),
    /// A port cannot be opened.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The key that other sidecars have to send is not there.
    #[error("--gateway-key-file {}", .0.display())]
    Key(PathBuf, #[source] io::Error),
    /// The address of the broker is no URL, which only a bug can cause.
    #[error("the broker's address is not a URL")]
    Url(#[from] url::ParseError),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// A running surrounding for the sidecar.
pub struct DevSetup {
    /// For `--gateway-url`.
    pub gateway_url: Url,
    /// What the gateway wants as `X-API-Key`. Made for this run; it must not leave the process.
    pub api_key: SecretString,
    /// The first table.
    pub loaded: Loaded,
    /// Makes the next ones.
    pub loader: Arc<DevLoader>,
    /// Says when the next one is due; never without files.
    pub watch: RouteWatch,
    /// Where other sidecars may ask, if they may.
    pub served_at: Option<SocketAddr>,
    /// Broker and echo upstream; they run until dropped, and one that ends is a failure.
    pub servers: JoinSet<io::Result<()>>,
}

impl fmt::Debug for DevSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevSetup")
            .field("gateway_url", &self.gateway_url.as_str())
            .finish_non_exhaustive()
    }
}

/// Starts broker and echo upstream, and loads the routes.
pub async fn prepare(options: DevOptions) -> Result<DevSetup, SetupError> {
    let mut servers = JoinSet::new();
    let (routes, source) = match (options.routes, options.credentials) {
        (None, None) => {
            let echo = serve(&mut servers, LOOPBACK, echo::router()).await?;
            let credentials = CredentialSource::BuiltIn(builtin::credentials()?);
            (RouteSource::BuiltIn(builtin::routes(echo)), credentials)
        }
        (Some(routes), Some(credentials)) => (
            RouteSource::Path(routes),
            CredentialSource::File(credentials),
        ),
        (Some(_), None) => {
            let message = "--routes needs --credentials FILE, such as `credentials: {github: {access_token: {env: GITHUB_TOKEN}}}`";
            return Err(SetupError::Options(message));
        }
        (None, Some(_)) => {
            let message = "--credentials needs --routes PATH, with the NexusRoutes that use them";
            return Err(SetupError::Options(message));
        }
    };
    let vault = Arc::new(Vault::new(source, options.environment));
    let loader = Arc::new(DevLoader::new(routes, Arc::clone(&vault)));
    let watch = RouteWatch::start(loader.watched(), Timing::default());
    let first = loader.load()?;
    let key = builtin::secret()?;
    let broker = broker::router(Arc::clone(&vault), key.clone().into());
    let broker = serve(&mut servers, LOOPBACK, broker).await?;
    let served_at = match options.gateway {
        None => None,
        Some((address, file)) => {
            let key = gateway_key(&file).map_err(|error| SetupError::Key(file, error))?;
            Some(serve(&mut servers, address, broker::router(vault, key)).await?)
        }
    };
    Ok(DevSetup {
        gateway_url: Url::parse(&format!("http://{broker}"))?,
        api_key: key.into(),
        loaded: first,
        loader,
        watch,
        served_at,
        servers,
    })
}

/// One line, whose end editors add.
fn gateway_key(file: &Path) -> io::Result<SecretString> {
    let text = Zeroizing::new(fs::read_to_string(file)?);
    let key = text.trim();
    if key.is_empty() || key.contains(char::is_control) {
        let message = "must hold one line, the key";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(key.into())
}

async fn serve(
    servers: &mut JoinSet<io::Result<()>>,
    address: SocketAddr,
    router: Router,
) -> Result<SocketAddr, SetupError> {
    let failed = |error| SetupError::Listen(address, error);
    let listener = match TcpListener::bind(address).await {
        // Where there is no IPv6.
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = listener.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    servers.spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use secrecy::ExposeSecret;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        (name == "GITHUB_TOKEN").then(|| "gh-token".to_owned())
    }

    fn options(files: Option<&TempDir>) -> DevOptions {
        DevOptions {
            routes: files.map(|dir| dir.path().join("routes.yaml")),
            credentials: files.map(|dir| dir.path().join("credentials.yaml")),
            gateway: None,
            environment,
        }
    }

    fn route(name: &str, rest: &str) -> String {
        format!(
            "---\napiVersion: nexus.io/v1alpha1\nkind: NexusRoute\nmetadata: {{name: {name}}}\nspec:\n  upstream: {{url: \"https://{name}.example.com\"}}\n{rest}"
        )
    }

    fn files(routes: &str, credentials: &str) -> TempDir {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("routes.yaml"), routes).unwrap();
        fs::write(dir.path().join("credentials.yaml"), credentials).unwrap();
        dir
    }

    async fn prepared(routes: &str, credentials: &str) -> Result<DevSetup, String> {
        let dir = files(routes, credentials);
        let result = prepare(options(Some(&dir))).await;
        result.map_err(|error| {
            let text = error.to_string();
            text.replace(&format!("{}/", dir.path().display()), "")
        })
    }

    async fn token(setup: &DevSetup, route: usize) -> serde_json::Value {
        let address = setup.gateway_url.socket_addrs(|| None).unwrap()[0];
        let id = &setup.loaded.table.routes[route].connections[0].id;
        let key = setup.api_key.expose_secret();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/token/{id} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    #[tokio::test]
    async fn without_any_file_three_routes_have_credentials() {
        let setup = prepare(options(None)).await.unwrap();
        let table = &setup.loaded.table;
        let providers: Vec<&str> = table.routes.iter().map(|it| it.provider.as_str()).collect();
        assert_eq!(providers, ["bearer", "aws", "query"]);
        for (route, kind) in ["oauth2", "aws_sigv4", "query_param"].iter().enumerate() {
            assert_eq!(token(&setup, route).await["strategy"]["type"], *kind);
        }
        assert!(setup.loader.watched().is_empty());
        let debug = format!("{setup:?} {:?}", setup.loader);
        assert!(!debug.contains(setup.api_key.expose_secret()), "{debug}");
    }

    #[tokio::test]
    async fn a_route_gets_the_credentials_of_its_provider() {
        let setup = prepared(
            &route("github", ""),
            "credentials:\n  github: {access_token: {env: GITHUB_TOKEN}}\n  github@work: {access_token: w}\n",
        )
        .await
        .unwrap();
        let connections = &setup.loaded.table.routes[0].connections;
        let tenants: Vec<Option<&str>> =
            connections.iter().map(|it| it.tenant.as_deref()).collect();
        assert_eq!(tenants, [None, Some("work")]);
    }

    #[tokio::test]
    async fn a_listed_connection_is_served_by_its_id() {
        let id = "7d6f3c1e-0000-4000-8000-000000000001";
        let dir = files(
            &route(
                "p",
                &format!(
                    "  connections: [{{tenant: t, connectionId: {id}}}]\n  strategy: {{type: query_param, config: {{param_name: key}}}}\n"
                ),
            ),
            &format!("credentials: {{{id}: {{api_key: k}}}}"),
        );
        let setup = prepare(options(Some(&dir))).await.unwrap();
        assert_eq!(
            token(&setup, 0).await["strategy"]["config"]["param_name"],
            "key"
        );
        let banner = setup.loader.banner("127.0.0.1:8080".parse().unwrap());
        assert!(banner.contains("/via/p@t/"), "{banner}");
    }

    #[tokio::test]
    async fn a_missing_variable_stops_the_start() {
        let error = prepared(
            &route("github", ""),
            "credentials:\n  github:\n    access_token: {env: NOPE}\n",
        )
        .await
        .unwrap_err();
        assert!(
            error.contains("credentials.yaml:3:5: credentials.github.access_token: the environment variable NOPE"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_route_without_credential_and_a_credential_without_route_are_pointed_out() {
        let routes = format!("{}{}", route("a", ""), route("b", ""));
        let setup = prepared(
            &routes,
            "credentials:\n  a: {api_key: k}\n  c: {api_key: k}\n",
        )
        .await
        .unwrap();
        let warnings: Vec<String> = setup
            .loaded
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        let found = |text: &str| warnings.iter().any(|it| it.contains(text));
        assert!(
            found("routes.yaml:11:1: warning: spec.connections: no credential for provider b"),
            "{warnings:#?}"
        );
        assert!(
            found("credentials.yaml:3:3: warning: credentials.c: no route has the provider c"),
            "{warnings:#?}"
        );
        let error = prepared(&route("a", ""), "credentials: {c: {api_key: k}}").await;
        assert!(
            error
                .unwrap_err()
                .contains("none of these is the credential of a route")
        );
    }

    #[tokio::test]
    async fn a_field_that_the_strategy_needs_is_named() {
        let strategy = "  strategy: {type: aws_sigv4, config: {service: s3}}\n";
        let error = prepared(
            &route("a", strategy),
            "credentials:\n  a: {access_key: k}\n",
        )
        .await;
        let error = error.unwrap_err();
        assert!(
            error.contains("credentials.yaml:2:3: credentials.a.secret_key: missing; strategy aws_sigv4 needs it"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_mistake_while_running_leaves_the_broker_as_it_was() {
        let dir = files(
            &route("github", ""),
            "credentials: {github: {access_token: t}}",
        );
        let setup = prepare(options(Some(&dir))).await.unwrap();
        fs::write(dir.path().join("routes.yaml"), "a: [").unwrap();
        assert!(setup.loader.load().is_err());
        assert_eq!(token(&setup, 0).await["access_token"], "t");
    }

    #[tokio::test]
    async fn changes_of_either_file_are_noticed() {
        let dir = files(
            &route("github", ""),
            "credentials: {github: {access_token: t}}",
        );
        let mut setup = prepare(options(Some(&dir))).await.unwrap();
        for (name, text) in [
            (
                "credentials.yaml",
                "credentials: {b: {api_key: k}}".to_owned(),
            ),
            ("routes.yaml", route("b", "")),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
            let changed = tokio::time::timeout(Duration::from_secs(5), setup.watch.changed());
            changed.await.unwrap().unwrap();
        }
        assert_eq!(setup.loader.load().unwrap().table.routes[0].provider, "b");
    }

    #[tokio::test]
    async fn routes_and_credentials_go_together() {
        let dir = files("", "");
        for (routes, credentials) in [(true, false), (false, true)] {
            let mut options = options(Some(&dir));
            options.routes = options.routes.filter(|_| routes);
            options.credentials = options.credentials.filter(|_| credentials);
            let error = prepare(options).await.unwrap_err();
            assert!(matches!(error, SetupError::Options(_)));
        }
    }

    #[tokio::test]
    async fn the_example_starts_when_its_variables_are_set() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/local");
        let options = DevOptions {
            routes: Some(example.join("routes.yaml")),
            credentials: Some(example.join("credentials.yaml")),
            gateway: None,
            environment: |name| Some(format!("value-of-{name}")),
        };
        let setup = prepare(options).await.unwrap();
        assert_eq!(setup.loaded.table.routes.len(), 3);
    }
}
