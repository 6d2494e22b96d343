//! What is wrong with a file, and where: one line a person can click on and a script can match.

use std::fmt;
use std::path::{Path, PathBuf};

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file works, and probably not as meant.
    Warning,
}

/// A place in a file, both counted from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// Something wrong in a file. Shown as `FILE:LINE:COLUMN: [warning: ]FIELD: MESSAGE`.
///
/// Never holds a value of a credentials file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the user named it.
    pub file: PathBuf,
    /// Where in the file, if it is one place.
    pub position: Option<Position>,
    /// Path of the field from the document's root, e.g. `spec.upstream.url`.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
    /// Error or warning.
    pub severity: Severity,
}

impl Problem {
    /// An error in a file, without a place.
    pub fn error(file: &Path, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            field: None,
            message: message.into(),
            severity: Severity::Error,
        }
    }

    /// A warning about a file, without a place.
    pub fn warning(file: &Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(file, message)
        }
    }

    /// Adds the place.
    #[must_use]
    pub fn at(mut self, position: impl Into<Option<Position>>) -> Self {
        self.position = position.into();
        self
    }

    /// Adds the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        let field = field.into();
        self.field = (!field.is_empty()).then_some(field);
        self
    }

    /// True if both are warnings about the same field of the same document.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        let place = |it: &Self| (it.severity, it.position, it.field.clone(), it.file.clone());
        self.severity == Severity::Warning && place(self) == place(other)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(match self.severity {
            Severity::Error => ": ",
            Severity::Warning => ": warning: ",
        })?;
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_like_a_compiler_message() {
        let problem = Problem::error(Path::new("routes.yaml"), "must be https")
            .at(Position {
                line: 7,
                column: 10,
            })
            .field("spec.upstream.url");
        assert_eq!(
            problem.to_string(),
            "routes.yaml:7:10: spec.upstream.url: must be https"
        );
        let problem = Problem::warning(Path::new("dir"), "no rules");
        assert_eq!(problem.to_string(), "dir: warning: no rules");
    }
}
