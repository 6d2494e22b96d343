//! `nexus-sidecar check`: says what is wrong with route files, for people and for scripts.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::manifest::problem::{Problem, Severity};
use crate::manifest::{self, Contents, Failure, Manifests};

/// Nothing is wrong; there may be warnings.
pub const OK: u8 = 0;
/// A file is wrong.
pub const WRONG: u8 = 1;
/// A path cannot be read.
pub const UNREADABLE: u8 = 2;

/// Judges files and directories as one set, so that a NexusProvider may be in one and its routes in another. Prints a
/// line per problem, then a summary. The result is the exit code.
pub fn run(paths: &[PathBuf], out: &mut impl Write) -> io::Result<u8> {
    let (mut problems, mut objects) = (Vec::new(), Vec::new());
    let (mut routes, mut unreadable) = (0, false);
    for path in paths {
        match manifest::read(path) {
            Ok(Contents::Table(table)) => match manifest::verify(path, &table) {
                Ok(count) => routes += count,
                Err(problem) => problems.push(problem),
            },
            Ok(Contents::Objects(found)) => objects.extend(found),
            Err(failure) => {
                unreadable |= !matches!(failure, Failure::Invalid(_));
                problems.extend_from_slice(failure.problems());
            }
        }
    }
    let manifests = Manifests::new(objects);
    routes += manifests.routes.len();
    problems.extend(manifests.compile().1);
    report(&problems, routes, unreadable, out)
}

fn report(
    problems: &[Problem],
    routes: usize,
    unreadable: bool,
    out: &mut impl Write,
) -> io::Result<u8> {
    for problem in problems {
        writeln!(out, "{problem}")?;
    }
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .count();
    let warnings = problems.len() - errors;
    writeln!(
        out,
        "{}, {}, {}",
        counted(routes, "route"),
        counted(errors, "error"),
        counted(warnings, "warning")
    )?;
    Ok(match (unreadable, errors) {
        (true, _) => UNREADABLE,
        (false, 0) => OK,
        (false, _) => WRONG,
    })
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const ROUTE: &str = "apiVersion: nexus.io/v1alpha1\nkind: NexusRoute\nmetadata: {name: p}\nspec:\n  connections: [{connectionId: 7d6f3c1e-0000-4000-8000-000000000001}]\n";

    fn check(files: &[(&str, &str)]) -> (u8, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let paths: Vec<PathBuf> = files
            .iter()
            .map(|(name, _)| dir.path().join(name))
            .collect();
        let mut out = Vec::new();
        let code = run(&paths, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        (code, out.replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn a_good_file_is_summed_up() {
        let text = format!("{ROUTE}  upstream: {{url: https://api.example.com}}\n");
        let (code, out) = check(&[("r.yaml", &text)]);
        assert_eq!(code, OK, "{out}");
        assert!(
            out.lines()
                .last()
                .unwrap()
                .starts_with("1 route, 0 errors, "),
            "{out}"
        );
    }

    #[test]
    fn an_error_is_shown_with_its_line_and_field() {
        let text = format!("{ROUTE}  upstream: {{url: ftp://api.example.com}}\n");
        let (code, out) = check(&[("r.yaml", &text)]);
        assert_eq!(code, WRONG, "{out}");
        assert!(out.contains("r.yaml:6:14: spec.upstream.url: "), "{out}");
    }

    #[test]
    fn one_wrong_document_does_not_hide_what_is_wrong_with_another() {
        let second = ROUTE.replace("name: p", "name: q");
        let text = format!("{ROUTE}  upstrem: {{}}\n---\n{second}  upstream: {{url: ftp://x}}\n");
        let (code, out) = check(&[("r.yaml", &text)]);
        assert_eq!(code, WRONG, "{out}");
        assert!(out.contains("r.yaml:6:3: spec.upstrem: "), "{out}");
        assert!(out.contains("r.yaml:13:14: spec.upstream.url: "), "{out}");
    }

    #[test]
    fn a_provider_in_one_file_serves_a_route_in_another() {
        let provider = "apiVersion: nexus.io/v1alpha1\nkind: NexusProvider\nmetadata: {name: p}\nspec:\n  upstream: {url: https://api.example.com}\n";
        let (code, out) = check(&[("r.yaml", ROUTE), ("p.yaml", provider)]);
        assert_eq!(code, OK, "{out}");
    }

    #[test]
    fn a_missing_path_has_its_own_exit_code() {
        let mut out = Vec::new();
        assert_eq!(
            run(&["/no/such/routes.yaml".into()], &mut out).unwrap(),
            UNREADABLE
        );
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.starts_with("/no/such/routes.yaml: cannot be read: "),
            "{out}"
        );
    }

    #[test]
    fn the_example_has_no_errors() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/local/routes.yaml");
        let mut out = Vec::new();
        let code = run(&[path], &mut out).unwrap();
        assert_eq!(code, OK, "{}", String::from_utf8(out).unwrap());
    }
}
