//! Query parameters as a rule sees them.

use url::form_urlencoded;

/// Calls `each` with every value of a parameter; `false` from it ends the search and is returned.
///
/// Some servers take `;` for a separator beside `&`. A query that has one is read both ways.
fn every_value(query: &str, name: &str, mut each: impl FnMut(&str) -> bool) -> bool {
    let mut judge = |query: &str| {
        form_urlencoded::parse(query.as_bytes())
            .filter(|(key, _)| key == name)
            .all(|(_, value)| each(&value))
    };
    if !query.contains(';') {
        return judge(query);
    }
    let split = query.replace(';', "&");
    judge(query) && judge(&split)
}

/// `true` if the parameter occurs, with or without a value.
pub(super) fn is_present(query: &str, name: &str) -> bool {
    !every_value(query, name, |_| false)
}

/// `true` if the parameter occurs with this value.
pub(super) fn has(query: &str, name: &str, value: &str) -> bool {
    !every_value(query, name, |found| found != value)
}

/// `true` if the parameter occurs, and with this value only.
pub(super) fn has_only(query: &str, name: &str, value: &str) -> bool {
    is_present(query, name) && every_value(query, name, |found| found == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_decoded() {
        for query in ["type=za+k", "type=za%20k", "%74ype=za%20k", "a=b&type=za+k"] {
            assert!(has(query, "type", "za k"), "{query}");
        }
        assert!(!has("Type=zak", "type", "zak"));
    }

    #[test]
    fn a_second_value_counts_for_deny_and_against_allow() {
        let query = "type=ok&type=zak";
        assert!(has(query, "type", "zak"));
        assert!(!has_only(query, "type", "ok"));
        assert!(has_only("type=ok", "type", "ok"));
        assert!(!has_only("", "type", "ok"));
    }

    #[test]
    fn a_semicolon_may_separate() {
        let query = "type=ok;type=zak";
        assert!(has(query, "type", "zak"));
        assert!(!has_only(query, "type", "ok"));
    }

    #[test]
    fn presence_needs_no_value() {
        for query in ["session", "session=", "a&session=1", "a;session"] {
            assert!(is_present(query, "session"), "{query}");
        }
        assert!(!is_present("sessions", "session"));
    }
}
