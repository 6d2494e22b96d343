//! Loads what `dev` serves: routes, with the credentials of the user's file bound to them.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::banner::{self, RouteLine};
use super::bindings::bind;
use super::vault::Vault;
use crate::manifest::problem::{Problem, Severity};
use crate::manifest::{self, Contents, Failure, Loaded, Manifests, objects};

/// Where the routes are written.
pub(crate) enum RouteSource {
    /// Here: the text of the manifests.
    BuiltIn(String),
    /// In the user's files.
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
    pub(crate) fn new(routes: RouteSource, vault: Arc<Vault>) -> Self {
        Self {
            routes,
            vault,
            lines: Mutex::default(),
        }
    }

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
        let mut manifests = Manifests::new(objects);
        let credentials = self.vault.credentials().map_err(Failure::Invalid)?;
        let bound = bind(&mut manifests, &credentials, &self.vault);
        let loaded = manifests.into_loaded(path);
        let (table, mut problems) = match loaded {
            Ok(loaded) => (Some(loaded.table), loaded.warnings),
            Err(failure) => (None, failure.problems().to_vec()),
        };
        // Where both have a warning, the one about credentials says more.
        problems.retain(|it| !bound.problems.iter().any(|other| other.same_place(it)));
        problems.extend(bound.problems);
        let wrong = problems.iter().any(|it| it.severity == Severity::Error);
        let Some(table) = table.filter(|_| !wrong) else {
            return Err(Failure::Invalid(problems));
        };
        self.vault.set_strategies(bound.strategies);
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = bound.lines;
        Ok(Loaded {
            table,
            warnings: problems,
        })
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
