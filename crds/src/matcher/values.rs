//! Values of a document's fields: durations, methods, headers.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use jiff::SignedDuration;

use crate::header::{is_credential, is_reserved};
use crate::matcher::HeaderRules;
use crate::spec::HeadersSpec;
use crate::status::{Problem, Reason};

/// Parses `10s`, `1m30s`, `500ms`; `none` is `None`. An error is a message.
pub(super) fn duration(text: &str) -> Result<Option<Duration>, String> {
    if text == "none" {
        return Ok(None);
    }
    let hint = || format!("{text:?} is not a duration such as 10s, 1m30s, 500ms or none");
    // The parser knows more spellings than the schema lets through.
    let plain = |c: char| c.is_ascii_digit() || matches!(c, 'h' | 'm' | 's');
    if !text.starts_with(|c: char| c.is_ascii_digit()) || !text.chars().all(plain) {
        return Err(hint());
    }
    let parsed: SignedDuration = text.parse().map_err(|_| hint())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(Some(duration)),
        Ok(_) => Err("must be longer than zero; use none for no limit".to_owned()),
        Err(_) => Err(hint()),
    }
}

const STANDARD_METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE",
];

/// Parses methods; `*` among them is `None`. An error is a message.
pub(crate) fn methods(methods: &[String]) -> Result<Option<Vec<Method>>, String> {
    if methods.is_empty() {
        return Err("is empty; leave it out to mean every method".to_owned());
    }
    if methods.iter().any(|method| method == "*") {
        return Ok(None);
    }
    methods
        .iter()
        .map(|method| {
            let parsed = Method::from_bytes(method.as_bytes());
            let parsed = parsed.map_err(|_| format!("{method:?} is not a method"))?;
            let upper = method.to_ascii_uppercase();
            if upper != *method && STANDARD_METHODS.contains(&upper.as_str()) {
                // Methods are case-sensitive (RFC 9110 section 9.1): it would match no request.
                return Err(format!("{method:?} is no method of HTTP; write {upper}"));
            }
            Ok(parsed)
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

pub(super) fn header_names(names: &[String], field: &str) -> Result<Vec<HeaderName>, Problem> {
    names.iter().map(|name| header_name(name, field)).collect()
}

/// Parses the header rules of a route.
pub(super) fn header_rules(spec: &HeadersSpec) -> Result<HeaderRules, Problem> {
    let HeadersSpec { set, remove, keep } = spec;
    let mut rules = HeaderRules {
        set: Vec::with_capacity(set.len()),
        remove: header_names(remove.as_deref().unwrap_or_default(), "spec.headers.remove")?,
        keep: header_names(keep.as_deref().unwrap_or_default(), "spec.headers.keep")?,
    };
    for (name, value) in set {
        let field = format!("spec.headers.set[{name}]");
        let name = header_name(name, &field)?;
        if is_reserved(&name) {
            let message = "belongs to the connection or to the sidecar and cannot be set";
            return Err(invalid(&field, message));
        }
        if is_credential(name.as_str()) {
            let message = "carries a credential; let a strategy set it, from a connection";
            return Err(invalid(&field, message));
        }
        if rules.set.iter().any(|(known, _)| *known == name) {
            return Err(invalid(&field, "is set twice, in different case"));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| invalid(&field, "has a character that a header value cannot have"))?;
        rules.set.push((name, value));
    }
    if let Some(name) = rules.keep.iter().find(|name| is_reserved(name)) {
        let message =
            format!("{name} belongs to the connection or to the sidecar and is never passed on");
        return Err(invalid("spec.headers.keep", &message));
    }
    Ok(rules)
}

fn header_name(name: &str, field: &str) -> Result<HeaderName, Problem> {
    HeaderName::try_from(name)
        .map_err(|_| invalid(field, &format!("{name:?} is not a header name")))
}

fn invalid(field: &str, message: &str) -> Problem {
    Problem::new(Reason::InvalidValue, field, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_documented() {
        for (text, expected) in [
            ("10s", Some(Duration::from_secs(10))),
            ("660s", Some(Duration::from_mins(11))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("500ms", Some(Duration::from_millis(500))),
            ("2h", Some(Duration::from_hours(2))),
            ("none", None),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1 s",
            "1d",
            "PT1S",
            "1.5s",
            "0s",
            "ten",
            "1s1m",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn methods_are_written_as_they_are_sent() {
        let parse = |method: &str| methods(&[method.to_owned()]);
        assert!(parse("get").unwrap_err().contains("write GET"));
        assert!(parse("Delete").is_err());
        assert!(parse("GET").is_ok() && parse("PROPFIND").is_ok() && parse("own").is_ok());
        assert_eq!(parse("*"), Ok(None));
    }

    #[test]
    fn headers_that_frame_route_or_authenticate_cannot_be_set() {
        for name in [
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "TE",
            "Authorization",
            "Cookie",
            "X-Api-Key",
            "X-Nexus-Provider",
            "bad name",
            "",
        ] {
            let spec = HeadersSpec {
                set: [(name.to_owned(), "x".to_owned())].into(),
                ..HeadersSpec::default()
            };
            let problem = header_rules(&spec).unwrap_err();
            assert_eq!(problem.field, format!("spec.headers.set[{name}]"));
        }
    }

    #[test]
    fn header_values_and_doubles_are_judged() {
        for set in [vec![("X-A", "a\nb")], vec![("X-A", "1"), ("x-a", "2")]] {
            let spec = HeadersSpec {
                set: set
                    .iter()
                    .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                    .collect(),
                ..HeadersSpec::default()
            };
            assert!(header_rules(&spec).is_err(), "{set:?}");
        }
    }

    #[test]
    fn framing_cannot_be_kept() {
        let spec = HeadersSpec {
            keep: Some(vec!["Transfer-Encoding".to_owned()]),
            ..HeadersSpec::default()
        };
        assert_eq!(header_rules(&spec).unwrap_err().field, "spec.headers.keep");
    }
}
