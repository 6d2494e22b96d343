//! Route files become a table. A path flows in, a [`RouteTable`] with warnings or a list of problems flows out; `run`,
//! `dev` and `check` call it, at start and at every change.
//!
//! A file holds either a compiled table (JSON, maybe gzip) or NexusRoute and NexusProvider manifests (YAML or JSON,
//! several documents per file). A directory holds either one table or manifests.

pub(crate) mod files;
pub(crate) mod objects;
pub mod problem;
mod typed;
pub(crate) mod yaml;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use nexus_crds::matcher::{LoadError, Matcher};
use nexus_crds::table::RouteTable;
use serde::Deserialize;
use serde::de::IgnoredAny;

use self::files::Text;
use self::objects::Object;
use self::problem::{Position, Problem};
pub(crate) use self::typed::Manifests;

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

impl Error for Failure {}

/// Loads what the sidecar serves from a file or directory. Blocks: it reads and compiles. All manifests must be of one
/// namespace.
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    match read(path)? {
        Contents::Table(table) => Ok(Loaded {
            table,
            warnings: Vec::new(),
        }),
        Contents::Objects(objects) => Manifests::new(objects).into_loaded(path),
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
    RouteTable::decode(bytes).map_err(|error| {
        let (mut message, mut position) = (error.to_string(), None);
        let mut source = error.source();
        while let Some(error) = source {
            message = format!("{message}: {error}");
            if let Some(json) = error.downcast_ref::<serde_json::Error>() {
                position = json_position(json);
            }
            source = error.source();
        }
        Problem::error(file, message).at(position)
    })
}

/// Where a JSON error is; nowhere, if it is of a value that was parsed before.
fn json_position(error: &serde_json::Error) -> Option<Position> {
    let line = u32::try_from(error.line()).ok().filter(|line| *line > 0)?;
    let column = u32::try_from(error.column()).ok()?;
    Some(Position { line, column })
}

/// Judges that a table can be served, and counts its routes.
pub(crate) fn verify(path: &Path, table: &RouteTable) -> Result<usize, Problem> {
    Matcher::load(table, |_| Ok::<_, LoadError>(()))
        .map(|matcher| matcher.routes().len())
        .map_err(|error| Problem::error(path, error.to_string()))
}

fn parse_objects(file: &Path, bytes: &[u8]) -> Result<Vec<Object>, Vec<Problem>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let lines = before.split(|byte| *byte == b'\n').count();
        let position = u32::try_from(lines)
            .ok()
            .map(|line| Position { line, column: 1 });
        vec![Problem::error(file, "not UTF-8 text").at(position)]
    })?;
    objects::read(file, text.trim_start_matches('\u{feff}'))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use tempfile::TempDir;

    use super::*;

    fn route(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: nexus.io/v1alpha1\nkind: NexusRoute\nmetadata:\n  name: {name}\nspec:\n  connections: [{{connectionId: 7d6f3c1e-0000-4000-8000-000000000001}}]\n{spec}"
        )
    }

    fn good(name: &str) -> String {
        route(name, "  upstream:\n    url: https://api.example.com\n").replace(
            "000000000001",
            &format!("{:012x}", name.bytes().map(u64::from).sum::<u64>()),
        )
    }

    fn directory(files: &[(&str, &[u8])]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let table = load(dir.path()).unwrap().table;
        table
            .routes
            .into_iter()
            .map(|route| route.provider)
            .collect()
    }

    fn refused(dir: &TempDir) -> String {
        let text = load(dir.path()).unwrap_err().to_string();
        text.replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn manifests_of_several_files_make_one_table() {
        let dir = directory(&[
            ("b.yaml", format!("{}{}", good("b1"), good("b2")).as_bytes()),
            ("a.yml", good("a").as_bytes()),
        ]);
        assert_eq!(names(&dir), ["a", "b1", "b2"]);
    }

    #[test]
    fn a_compiled_table_is_read_packed_or_not() {
        let dir = directory(&[("r.yaml", good("p").as_bytes())]);
        let table = load(dir.path()).unwrap().table;
        let json = serde_json::to_vec(&table).unwrap();
        let dir = directory(&[("routes.json", &json)]);
        assert_eq!(load(dir.path()).unwrap().table, table);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&json).unwrap();
        let dir = directory(&[("routes.json.gz", &gzip.finish().unwrap())]);
        assert_eq!(load(dir.path()).unwrap().table, table);
        let text = String::from_utf8(json).unwrap();
        let reader = format!("\"minReader\":{}", nexus_crds::table::FORMAT);
        let newer = text.replace(&reader, "\"minReader\":99");
        let dir = directory(&[("routes.json", newer.as_bytes())]);
        assert!(refused(&dir).contains("upgrade the sidecar"));
        let cut = text.replace(&format!("{reader},"), "");
        let dir = directory(&[("routes.json", cut.as_bytes())]);
        assert!(refused(&dir).contains("minReader"), "{}", refused(&dir));
    }

    #[test]
    fn a_table_beside_manifests_is_refused() {
        let dir = directory(&[("r.yaml", good("p").as_bytes())]);
        let json = serde_json::to_vec(&load(dir.path()).unwrap().table).unwrap();
        fs::write(dir.path().join("routes.json"), json).unwrap();
        let text = refused(&dir);
        assert!(
            text.contains("routes.json: a compiled table must be the only"),
            "{text}"
        );
    }

    #[test]
    fn what_the_compiler_refuses_is_shown_at_its_line() {
        let bad = route("p", "  upstream:\n    url: http://api.example.com\n");
        let dir = directory(&[("r.yaml", format!("{}{bad}", good("a")).as_bytes())]);
        let text = refused(&dir);
        let line = text.lines().find(|line| !line.contains("warning")).unwrap();
        assert!(
            line.starts_with("r.yaml:18:5: spec.upstream.url: "),
            "{text}"
        );
    }

    #[test]
    fn every_problem_of_every_file_is_shown() {
        let dir = directory(&[
            ("a.yaml", b"kind: Secret\n"),
            ("b.yaml", b"a: [\n"),
            ("c.yaml", b"\xff\n"),
        ]);
        let text = refused(&dir);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("c.yaml:1:1: not UTF-8"), "{text}");
    }

    #[test]
    fn nothing_there_is_told_from_something_wrong() {
        let dir = directory(&[("notes.txt", b"")]);
        assert!(matches!(load(dir.path()), Err(Failure::Missing(_))));
        assert!(matches!(
            load(&dir.path().join("no")),
            Err(Failure::Missing(_))
        ));
        let dir = directory(&[("r.yaml", b"# nothing\n")]);
        assert!(matches!(load(dir.path()), Err(Failure::Invalid(_))));
    }

    #[test]
    fn a_name_is_given_once() {
        let text = good("a");
        let dir = directory(&[("a.yaml", text.as_bytes()), ("b.yaml", text.as_bytes())]);
        let problem = refused(&dir);
        assert!(
            problem.starts_with("b.yaml:5:3: metadata.name: an earlier"),
            "{problem}"
        );
    }

    #[test]
    fn a_sidecar_serves_one_namespace() {
        let other = good("b").replace("name: b", "name: b\n  namespace: other");
        let dir = directory(&[("r.yaml", format!("{}{other}", good("a")).as_bytes())]);
        let text = refused(&dir);
        assert!(
            text.contains("metadata.namespace: a sidecar serves one namespace"),
            "{text}"
        );
    }
}
