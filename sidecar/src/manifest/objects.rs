//! NexusRoute and NexusProvider manifests: documents of a file, judged by their head and given a type.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::problem::{Position, Problem};
use super::yaml::{self, Node, Value};

/// The version of the objects that is read.
const API_VERSION: &str = "nexus.io/v1alpha1";

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Route,
    Provider,
}

/// One object and where it stands.
pub(crate) struct Object {
    pub(crate) file: PathBuf,
    pub(crate) kind: Kind,
    node: Node,
}

impl Object {
    /// An error in a field of the object.
    pub(crate) fn error(&self, field: &str, message: impl Into<String>) -> Problem {
        Problem::error(&self.file, message)
            .at(self.node.locate(field))
            .field(field)
    }

    /// A warning about a field of the object.
    pub(crate) fn warning(&self, field: &str, message: impl Into<String>) -> Problem {
        Problem::warning(&self.file, message)
            .at(self.node.locate(field))
            .field(field)
    }

    /// What no two objects share: kind, namespace and name.
    pub(crate) fn identity(&self) -> (Kind, String, String) {
        let metadata = |field| {
            let value = self.node.get("metadata").and_then(|it| it.get_str(field));
            value.unwrap_or_default().to_owned()
        };
        (self.kind, metadata("namespace"), metadata("name"))
    }

    /// The object as its type.
    pub(crate) fn typed<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_path_to_error::deserialize(self.node.to_json()).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            match unknown_field(&message) {
                Some((field, message)) => {
                    // The deserializer names the parent for some errors and the field for others.
                    let end = format!(".{field}");
                    let path = match path.as_str() {
                        "." => field.to_owned(),
                        path if path.ends_with(&end) || path == field => path.to_owned(),
                        path => format!("{path}{end}"),
                    };
                    self.error(&path, message)
                }
                None if path == "." => self.error("", message),
                None => self.error(&path, message),
            }
        })
    }
}

/// The objects of a file's text.
pub(crate) fn read(file: &Path, text: &str) -> Result<Vec<Object>, Vec<Problem>> {
    let documents = yaml::parse(file, text).map_err(|problem| vec![problem])?;
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for document in documents {
        collect(file, document, &mut objects, &mut problems);
    }
    if problems.is_empty() {
        Ok(objects)
    } else {
        Err(problems)
    }
}

fn collect(file: &Path, node: Node, objects: &mut Vec<Object>, problems: &mut Vec<Problem>) {
    let kind = match node.get_str("kind") {
        Some("List" | "NexusRouteList" | "NexusProviderList") => {
            for item in items(node) {
                collect(file, item, objects, problems);
            }
            return;
        }
        Some("NexusRoute") => Kind::Route,
        Some("NexusProvider") => Kind::Provider,
        other => {
            let message = no_object(&node, other);
            let (position, field) = (node.locate("kind"), other.map_or("", |_| "kind"));
            problems.push(Problem::error(file, message).at(position).field(field));
            return;
        }
    };
    let before = problems.len();
    problems.extend(judge_head(file, &node));
    if problems.len() == before {
        objects.push(Object {
            file: file.to_owned(),
            kind,
            node,
        });
    }
}

fn items(list: Node) -> Vec<Node> {
    let Value::Mapping(entries) = list.value else {
        return Vec::new();
    };
    entries
        .into_iter()
        .find(|entry| entry.key == "items")
        .map_or(Vec::new(), |entry| match entry.node.value {
            Value::Sequence(items) => items,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Mapping(_) => Vec::new(),
        })
}

fn no_object(node: &Node, kind: Option<&str>) -> String {
    match kind {
        Some(kind) => {
            format!("{kind} is not read here; only NexusRoute, NexusProvider and List are")
        }
        None if node.get("credentials").is_some() => {
            "this is a credentials file; pass it with --credentials, not among the routes"
                .to_owned()
        }
        None => "not a manifest: `kind: NexusRoute` or `kind: NexusProvider` is missing".to_owned(),
    }
}

/// What the types do not look at: version, name, and fields beside the known ones.
fn judge_head(file: &Path, node: &Node) -> Vec<Problem> {
    let error = |position: Position, field: &str, message: String| {
        Problem::error(file, message).at(position).field(field)
    };
    let mut problems = Vec::new();
    if node.get_str("apiVersion") != Some(API_VERSION) {
        let message = format!("must be {API_VERSION}");
        problems.push(error(node.locate("apiVersion"), "apiVersion", message));
    }
    let name = node.get("metadata").and_then(|it| it.get_str("name"));
    if !name.is_some_and(is_object_name) {
        let message = "must be a name of lower-case letters, digits, `-` and `.`".to_owned();
        let position = node.locate("metadata.name");
        problems.push(error(position, "metadata.name", message));
    }
    if node.get("spec").is_none() {
        problems.push(error(node.position, "spec", "missing".to_owned()));
    }
    let mut only = |node: &Node, parent: &str, known: &[&str]| {
        for entry in node.entries() {
            if !known.contains(&entry.key.as_str()) {
                let message = format!("unknown field{}", suggestion(&entry.key, known));
                let field = format!("{parent}{}", entry.key);
                problems.push(error(entry.position, &field, message));
            }
        }
    };
    only(
        node,
        "",
        &["apiVersion", "kind", "metadata", "spec", "status"],
    );
    // This type also reads what a newer control plane sends, so it lets unknown fields pass.
    if let Some(strategy) = node.get("spec").and_then(|spec| spec.get("strategy")) {
        only(strategy, "spec.strategy.", &["type", "config"]);
    }
    problems
}

/// A DNS subdomain name, as Kubernetes wants it (RFC 1123).
fn is_object_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    matches!(name.len(), 1..=253)
        && name.bytes().all(allowed)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
}

/// The field and a shorter message, if serde's message is about an unknown field.
fn unknown_field(message: &str) -> Option<(&str, String)> {
    let (field, expected) = message.strip_prefix("unknown field `")?.split_once("`, ")?;
    let names: Vec<&str> = expected
        .split('`')
        .enumerate()
        .filter_map(|(index, part)| (index % 2 == 1).then_some(part))
        .collect();
    Some((field, format!("unknown field{}", suggestion(field, &names))))
}

fn suggestion(field: &str, names: &[&str]) -> String {
    let nearest = names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(field, name), name))
        .min();
    match nearest {
        Some((distance, name)) if distance <= 1 + field.len() / 3 => {
            format!("; did you mean `{name}`?")
        }
        Some(_) => format!("; known are {}", names.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Typed {
        spec: Spec,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Spec {
        upstream: Option<Upstream>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Upstream {
        url: String,
        allow_insecure: Option<bool>,
    }

    fn route(spec: &str) -> String {
        format!(
            "apiVersion: nexus.io/v1alpha1\nkind: NexusRoute\nmetadata:\n  name: p\nspec:\n{spec}"
        )
    }

    fn only(text: &str) -> Object {
        read(Path::new("r.yaml"), text)
            .unwrap_or_default()
            .remove(0)
    }

    fn refused(text: &str) -> String {
        let problems = read(Path::new("r.yaml"), text).err().unwrap();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems[0].to_string()
    }

    fn wrong(spec: &str) -> String {
        let result = only(&route(spec)).typed::<Typed>();
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_manifest_becomes_its_type() {
        let typed: Typed = only(&route("  upstream: {url: x, allowInsecure: true}\n"))
            .typed()
            .unwrap();
        let upstream = typed.spec.upstream.unwrap();
        assert_eq!(
            (upstream.url.as_str(), upstream.allow_insecure),
            ("x", Some(true))
        );
    }

    #[test]
    fn an_unknown_field_is_shown_at_its_line_with_the_nearest_name() {
        assert_eq!(
            wrong("  upstrem:\n    url: x\n"),
            "r.yaml:6:3: spec.upstrem: unknown field; did you mean `upstream`?"
        );
        assert_eq!(
            wrong("  upstream:\n    url: x\n    allowInsecur: true\n"),
            "r.yaml:8:5: spec.upstream.allowInsecur: unknown field; did you mean `allowInsecure`?"
        );
        assert_eq!(
            refused(&format!("{}stauts: {{}}\n", route("  {}\n"))),
            "r.yaml:7:1: stauts: unknown field; did you mean `status`?"
        );
        assert_eq!(
            refused(&route("  strategy: {type: header, confg: {}}\n")),
            "r.yaml:6:28: spec.strategy.confg: unknown field; did you mean `config`?"
        );
    }

    #[test]
    fn a_wrong_type_is_shown_at_its_line() {
        let text = wrong("  upstream:\n    url: [x]\n");
        assert!(
            text.starts_with("r.yaml:7:5: spec.upstream.url: invalid type"),
            "{text}"
        );
        let text = wrong("  upstream:\n    allowInsecure: true\n");
        assert!(
            text.starts_with("r.yaml:6:3: spec.upstream: missing field `url`"),
            "{text}"
        );
    }

    #[test]
    fn other_kinds_and_versions_are_named() {
        assert_eq!(
            refused("apiVersion: v1\nkind: ConfigMap\n"),
            "r.yaml:2:1: kind: ConfigMap is not read here; only NexusRoute, NexusProvider and List are"
        );
        assert!(refused("credentials: {}").contains("--credentials"));
        assert!(refused("a: 1").contains("`kind: NexusRoute`"));
        assert!(refused("- a").contains("`kind: NexusRoute`"));
        let text = refused(&route("  {}\n").replace("v1alpha1", "v2"));
        assert_eq!(text, "r.yaml:1:1: apiVersion: must be nexus.io/v1alpha1");
    }

    #[test]
    fn a_name_is_needed() {
        let text = route("  {}\n").replace("name: p", "namespace: p");
        assert!(refused(&text).starts_with("r.yaml:3:1: metadata.name: "));
    }

    #[test]
    fn lists_and_several_documents_are_read_in_order() {
        let item = |kind: &str| {
            format!(
                "{{apiVersion: nexus.io/v1alpha1, kind: {kind}, metadata: {{name: p}}, spec: {{}}}}"
            )
        };
        let text = format!(
            "---\nkind: List\napiVersion: v1\nitems:\n- {}\n- {}\n---\n\n---\n{}\n",
            item("NexusRoute"),
            item("NexusProvider"),
            item("NexusRoute")
        );
        let kinds: Vec<Kind> = read(Path::new("r"), &text)
            .unwrap_or_default()
            .iter()
            .map(|object| object.kind)
            .collect();
        assert_eq!(kinds, [Kind::Route, Kind::Provider, Kind::Route]);
    }
}
