//! Route files become a table. A path flows in, a [`RouteTable`] with warnings or a list of problems flows out; `run`,
//! `dev` and `check` call it, at start and at every change.
//!
//! A file holds either a compiled table (JSON, maybe gzip) or NexusRoute and NexusProvider manifests (YAML or JSON,
//! several documents per file). A directory holds either one table or manifests.

pub(crate) mod files;
pub(crate) mod objects;
pub mod problem;
pub(crate) mod yaml;

use std::fmt;
use std::io;
use std::path::Path;

use nexus_crds::compile::{Grants, Verdict, compile};
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use nexus_crds::table::RouteTable;
use serde::Deserialize;
use serde::de::IgnoredAny;

use self::files::Text;
use self::objects::{Kind, Object};
use self::problem::{Position, Problem, Severity};

/// Namespace of manifests that name none, as `kubectl` has it.
const DEFAULT_NAMESPACE: &str = "default";

/// Routes that can be served.
#[derive(Debug)]
pub struct Loaded {
    /// The compiled routes.
    pub table: RouteTable,
    /// What works, and probably not as meant.
    pub warnings: Vec<Problem>,
}

/// Why a path gives no table.
#[derive(Clone, Debug)]
pub enum Failure {
    /// There is no such file, or no route file in the directory. What was loaded before stays.
    Missing(Problem),
    /// A file cannot be read.
    Unreadable(Problem),
    /// The files are wrong; the list has at least one error, and the warnings beside it.
    Invalid(Vec<Problem>),
}

impl Failure {
    /// Everything there is to say, one line each.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Missing(problem) | Self::Unreadable(problem) => std::slice::from_ref(problem),
            Self::Invalid(problems) => problems,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems().iter().enumerate() {
            let line = if index == 0 { "" } else { "\n" };
            write!(f, "{line}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Loads what the sidecar serves from a file or directory. Blocks: it reads and compiles. All manifests must be of one
/// namespace.
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    match read(path)? {
        Contents::Table(table) => Ok(Loaded {
            table,
            warnings: Vec::new(),
        }),
        Contents::Objects(objects) => Manifests::new(objects)?.into_loaded(path),
    }
}

/// What the files of a path are.
pub(crate) enum Contents {
    Table(RouteTable),
    Objects(Vec<Object>),
}

/// Reads the files of a path.
pub(crate) fn read(path: &Path) -> Result<Contents, Failure> {
    let texts = files::read(path).map_err(|(file, error)| {
        let problem = Problem::error(&file, format!("cannot be read: {error}"));
        match error.kind() {
            io::ErrorKind::NotFound => Failure::Missing(problem),
            _ => Failure::Unreadable(problem),
        }
    })?;
    let (mut tables, mut objects, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let no_file = texts.is_empty();
    for Text { file, bytes } in texts {
        if is_table(&bytes) {
            match parse_table(&file, &bytes) {
                Ok(table) => tables.push((file, table)),
                Err(problem) => problems.push(problem),
            }
            continue;
        }
        match parse_objects(&file, &bytes) {
            Ok(found) => objects.extend(found),
            Err(found) => problems.extend(found),
        }
    }
    let mixed = tables.len() > 1 || (!tables.is_empty() && !objects.is_empty());
    if let Some((file, _)) = tables.last().filter(|_| mixed) {
        let message = "a compiled table must be the only route file of its directory";
        problems.push(Problem::error(file, message));
    }
    if !problems.is_empty() {
        return Err(Failure::Invalid(problems));
    }
    if no_file {
        let message = "no route files (*.yaml, *.yml, *.json, *.json.gz) in the directory";
        return Err(Failure::Missing(Problem::error(path, message)));
    }
    Ok(match tables.pop() {
        Some((_, table)) => Contents::Table(table),
        None => Contents::Objects(objects),
    })
}

/// Manifests by type, each with where it stands.
pub(crate) struct Manifests {
    pub(crate) routes: Vec<NexusRoute>,
    pub(crate) route_objects: Vec<Object>,
    pub(crate) providers: Vec<NexusProvider>,
    provider_objects: Vec<Object>,
}

impl Manifests {
    /// Gives objects their types.
    pub(crate) fn new(objects: Vec<Object>) -> Result<Self, Failure> {
        let mut this = Self {
            routes: Vec::new(),
            route_objects: Vec::new(),
            providers: Vec::new(),
            provider_objects: Vec::new(),
        };
        let mut problems = Vec::new();
        for object in objects {
            let result = match object.kind {
                Kind::Route => object.typed::<NexusRoute>().map(|mut route| {
                    let namespace = &mut route.metadata.namespace;
                    namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
                    this.routes.push(route);
                    this.route_objects.push(object);
                }),
                Kind::Provider => object.typed::<NexusProvider>().map(|provider| {
                    this.providers.push(provider);
                    this.provider_objects.push(object);
                }),
            };
            problems.extend(result.err());
        }
        match problems.is_empty() {
            true => Ok(this),
            false => Err(Failure::Invalid(problems)),
        }
    }

    /// Compiles, and says of every verdict where in the files it belongs.
    pub(crate) fn compile(&self) -> (Vec<RouteTable>, Vec<Problem>) {
        let compiled = compile(&self.routes, &self.providers, &Grants::Local);
        let problems = compiled
            .verdicts
            .iter()
            .flat_map(|verdict| self.problems(verdict))
            .collect();
        (compiled.tables.into_values().collect(), problems)
    }

    /// The one table of a sidecar. `path` is named where no single file is at fault.
    pub(crate) fn into_loaded(self, path: &Path) -> Result<Loaded, Failure> {
        let (mut tables, mut problems) = self.compile();
        if let Some(problem) = self.second_namespace() {
            problems.push(problem);
        }
        if self.routes.is_empty() {
            problems.push(Problem::error(path, "no NexusRoute; there is nothing to serve"));
        }
        if problems.iter().any(|it| it.severity == Severity::Error) {
            return Err(Failure::Invalid(problems));
        }
        match tables.pop() {
            Some(table) => Ok(Loaded {
                table,
                warnings: problems,
            }),
            None => Err(Failure::Invalid(vec![Problem::error(path, "no table")])),
        }
    }

    fn second_namespace(&self) -> Option<Problem> {
        let first = self.routes.first()?.metadata.namespace.as_deref()?;
        let other = |route: &NexusRoute| route.metadata.namespace.as_deref() != Some(first);
        let index = self.routes.iter().position(other)?;
        let message = format!("a sidecar serves one namespace, and earlier routes are of {first}");
        Some(self.route_objects.get(index)?.error("metadata.namespace", message))
    }

    fn problems(&self, verdict: &Verdict) -> Vec<Problem> {
        todo!()
    }
}

/// True if a file is meant as a compiled table: a JSON object with a `format` and no `kind`.
fn is_table(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Head {
        format: Option<IgnoredAny>,
        kind: Option<IgnoredAny>,
    }
    serde_json::from_slice(bytes)
        .is_ok_and(|Head { format, kind }| format.is_some() && kind.is_none())
}

fn parse_table(file: &Path, bytes: &[u8]) -> Result<RouteTable, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        let position = u32::try_from(error.line())
            .ok()
            .zip(u32::try_from(error.column()).ok())
            .map(|(line, column)| Position { line, column });
        let message = error.to_string();
        let message = message
            .rsplit_once(" at line ")
            .map_or(message.as_str(), |(message, _)| message);
        Problem::error(file, message)
            .at(position)
            .field(if field == "." { "" } else { &field })
    })
}

fn parse_objects(file: &Path, bytes: &[u8]) -> Result<Vec<Object>, Vec<Problem>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let newlines = before.iter().filter(|byte| **byte == b'\n').count();
        let position = u32::try_from(newlines + 1)
            .ok()
            .map(|line| Position { line, column: 1 });
        vec![Problem::error(file, "not UTF-8 text").at(position)]
    })?;
    objects::read(file, text.trim_start_matches('\u{feff}'))
}
