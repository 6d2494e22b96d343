//! One access rule. All of its conditions must hold; one that is not written holds.

use http::{HeaderName, HeaderValue, Method};

use crate::access::pattern::{PathReading, Patterns};
use crate::access::{AccessError, AccessRequest, query};
use crate::header::alike;
use crate::matcher::values;
use crate::spec::AccessRuleSpec;

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

#[derive(Debug)]
pub(super) struct Rule {
    effect: Effect,
    /// Place in its list, for messages.
    index: usize,
    /// `None` is every method.
    methods: Option<Box<[Method]>>,
    /// `None` is every path.
    paths: Option<Patterns>,
    headers: Box<[(HeaderName, Box<str>)]>,
    query_params: Box<[(Box<str>, Box<str>)]>,
    query_params_present: Box<[Box<str>]>,
}

impl Rule {
    pub(super) fn compile(
        effect: Effect,
        index: usize,
        spec: &AccessRuleSpec,
        ignore_case: bool,
    ) -> Result<Self, AccessError> {
        let AccessRuleSpec {
            methods,
            paths,
            headers,
            query_params,
            query_params_present,
        } = spec;
        let at = |field: &str| field_of(effect, index, field);
        let headers = headers
            .iter()
            .map(|(name, value)| match HeaderName::try_from(name) {
                Ok(name) => Ok((name, value.as_str().into())),
                Err(_) => Err(error(
                    at("headers"),
                    &format!("{name:?} is not a header name"),
                )),
            });
        Ok(Self {
            effect,
            index,
            methods: match methods.as_deref() {
                None => None,
                Some(methods) => values::methods(methods)
                    .map_err(|reason| error(at("methods"), &reason))?
                    .map(Vec::into_boxed_slice),
            },
            paths: match paths.as_deref() {
                None => None,
                Some([]) => {
                    return Err(error(
                        at("paths"),
                        "is empty; leave it out to mean every path",
                    ));
                }
                Some(paths) => Some(Patterns::parse(paths, effect, ignore_case).map_err(
                    |(path, reason)| {
                        let reason = format!("{:?} {reason}", paths[path]);
                        error(at(&format!("paths[{path}]")), &reason)
                    },
                )?),
            },
            headers: headers.collect::<Result<_, _>>()?,
            query_params: query_params
                .iter()
                .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
                .collect(),
            query_params_present: query_params_present
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
        })
    }

    pub(super) fn build(&self) -> Result<(), AccessError> {
        match &self.paths {
            Some(paths) if !paths.build() => Err(error(
                field_of(self.effect, self.index, "paths"),
                "is too large; split the rule",
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Judges one reading of the request's path; the cheap conditions come first.
    pub(super) fn matches(&self, request: &AccessRequest<'_>, path: &PathReading<'_>) -> bool {
        self.method_matches(request.method)
            && self.headers_match(request)
            && self.query_matches(request.query)
            && self.paths.as_ref().is_none_or(|paths| paths.matches(path))
    }

    fn method_matches(&self, method: &Method) -> bool {
        self.methods.as_ref().is_none_or(|methods| {
            methods.iter().any(|ours| match self.effect {
                Effect::Allow => ours == method,
                // Methods are case-sensitive (RFC 9110 section 9.1), yet servers exist that take `delete`.
                Effect::Deny => ours.as_str().eq_ignore_ascii_case(method.as_str()),
            })
        })
    }

    fn headers_match(&self, request: &AccessRequest<'_>) -> bool {
        self.headers.iter().all(|(name, value)| match self.effect {
            Effect::Allow => {
                let mut found = request.headers.get_all(name).iter();
                let equal = |found: &HeaderValue| found.as_bytes() == value.as_bytes();
                found.next().is_some_and(equal) && found.all(equal)
            }
            Effect::Deny => request
                .headers
                .iter()
                .any(|(found, text)| alike(found, name) && lists(text, value)),
        })
    }

    fn query_matches(&self, query: Option<&str>) -> bool {
        let query = query.unwrap_or_default();
        let has = match self.effect {
            Effect::Allow => query::has_only,
            Effect::Deny => query::has,
        };
        self.query_params
            .iter()
            .all(|(name, value)| has(query, name, value))
            && self
                .query_params_present
                .iter()
                .all(|name| query::is_present(query, name))
    }
}

/// True if the field is the value, or a list (RFC 9110 section 5.6.1) that holds it.
fn lists(field: &HeaderValue, value: &str) -> bool {
    field.as_bytes() == value.as_bytes()
        || field
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|item| item.trim_ascii() == value.as_bytes())
}

fn field_of(effect: Effect, index: usize, field: &str) -> String {
    let list = match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    };
    format!("{list}[{index}].{field}")
}

fn error(field: String, reason: &str) -> AccessError {
    AccessError {
        field,
        reason: reason.to_owned(),
    }
}
