//! `nexus-sidecar dev`: everything that a sidecar needs beside it, in one process. Options flow in; a gateway to talk
//! to, a table, a banner and a way to load again flow out. The sidecar itself runs as it does with `run`.

pub(crate) mod banner;
pub(crate) mod bindings;
pub(crate) mod broker;
pub(crate) mod builtin;
pub(crate) mod credentials;
pub(crate) mod echo;
pub(crate) mod vault;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::Url;

use self::banner::RouteLine;
use self::bindings::bind;
pub use self::credentials::Environment;
use self::vault::{CredentialSource, Vault};
use crate::manifest::problem::{Problem, Severity};
use crate::manifest::{self, Contents, Failure, Loaded, Manifests, objects};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// File or directory of NexusRoute manifests; none: three routes to a built-in echo upstream.
    pub routes: Option<PathBuf>,
    /// Credentials file; needed with `routes`.
    pub credentials: Option<PathBuf>,
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
    /// A loopback port cannot be opened.
    #[error("no loopback port can be opened")]
    Listen(#[source] io::Error),
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
            let echo = serve(&mut servers, echo::router()).await?;
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
    let loader = Arc::new(DevLoader {
        routes,
        vault: Arc::new(Vault::new(source, options.environment)),
        lines: Mutex::default(),
    });
    let loaded = loader.load()?;
    let key = builtin::secret()?;
    let broker = broker::router(Arc::clone(&loader.vault), key.clone().into());
    let broker = serve(&mut servers, broker).await?;
    let mut gateway_url = Url::parse("http://127.0.0.1").map_err(|_| SetupError::Random)?;
    let _ = gateway_url.set_port(Some(broker.port()));
    Ok(DevSetup {
        gateway_url,
        api_key: key.into(),
        loaded,
        loader,
        servers,
    })
}

async fn serve(
    servers: &mut JoinSet<io::Result<()>>,
    router: Router,
) -> Result<SocketAddr, SetupError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(SetupError::Listen)?;
    let address = listener.local_addr().map_err(SetupError::Listen)?;
    servers.spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

enum RouteSource {
    BuiltIn(String),
    Path(PathBuf),
}

/// Loads routes and binds credentials to them.
pub struct DevLoader {
    routes: RouteSource,
    vault: Arc<Vault>,
    lines: Mutex<Vec<RouteLine>>,
}

impl fmt::Debug for DevLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevLoader")
            .field("watched", &self.watched())
            .finish_non_exhaustive()
    }
}

impl DevLoader {
    /// The files whose changes call for another [`Self::load`].
    pub fn watched(&self) -> Vec<PathBuf> {
        let routes = match &self.routes {
            RouteSource::BuiltIn(_) => None,
            RouteSource::Path(path) => Some(path.clone()),
        };
        let credentials = self.vault.watched().map(Path::to_owned);
        routes.into_iter().chain(credentials).collect()
    }

    /// Loads the files as they are now. Blocks: it reads and compiles. After a failure the broker goes on as before.
    pub fn load(&self) -> Result<Loaded, Failure> {
        let (path, objects) = match &self.routes {
            RouteSource::BuiltIn(text) => {
                let path = Path::new("built-in routes");
                (path, objects::read(path, text).map_err(Failure::Invalid)?)
            }
            RouteSource::Path(path) => match manifest::read(path)? {
                Contents::Objects(objects) => (path.as_path(), objects),
                Contents::Table(_) => {
                    let message = "a compiled table; dev takes NexusRoute manifests";
                    return Err(Failure::Invalid(vec![Problem::error(path, message)]));
                }
            },
        };
        let mut manifests = Manifests::new(objects)?;
        let credentials = self.vault.credentials().map_err(Failure::Invalid)?;
        let bound = bind(&mut manifests, &credentials, &self.vault);
        let loaded = manifests.into_loaded(path);
        let wrong = bound.problems.iter().any(|it| it.severity == Severity::Error);
        let mut loaded = match loaded {
            Ok(loaded) if !wrong => loaded,
            Ok(loaded) => return Err(Failure::Invalid(join(loaded.warnings, bound.problems))),
            Err(failure) => {
                let problems = failure.problems().to_vec();
                return Err(Failure::Invalid(join(problems, bound.problems)));
            }
        };
        self.vault.set_strategies(bound.strategies);
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = bound.lines;
        loaded.warnings.extend(bound.problems);
        Ok(loaded)
    }

    /// What to print, after the ready line, once the proxy listens on `proxy`.
    pub fn banner(&self, proxy: SocketAddr) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.routes {
            RouteSource::BuiltIn(_) => banner::built_in(proxy),
            RouteSource::Path(_) => banner::own(proxy, &lines),
        }
    }
}

fn join(mut problems: Vec<Problem>, more: Vec<Problem>) -> Vec<Problem> {
    problems.extend(more);
    problems
}
