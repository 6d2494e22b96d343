//! Secrets that are recognised in whatever form they come to light.

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::upstream::hex;

/// A secret value, made so that every encoding changes it.
#[derive(Clone, Debug)]
pub struct Canary {
    name: String,
    value: String,
    forms: Vec<(&'static str, String)>,
}

impl Canary {
    /// A new one; `name` only has to tell it from others.
    pub fn new(name: &str) -> Self {
        // Fit for a header, yet different when URL-encoded, JSON-escaped or form-encoded.
        let value = format!("canary-{name}/+\"\\&=%?{}", hex(name.as_bytes()).repeat(2));
        let forms = forms(&value);
        Self {
            name: name.to_owned(),
            value,
            forms,
        }
    }

    /// The secret itself.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// In which form `text` holds it, if it does.
    pub fn find_in(&self, text: &str) -> Option<String> {
        self.forms
            .iter()
            .find(|(_, form)| text.contains(form.as_str()))
            .map(|(kind, _)| format!("{} ({kind})", self.name))
    }

    /// Every form it may come to light in.
    pub fn forms(&self) -> &[(&'static str, String)] {
        &self.forms
    }
}

fn forms(value: &str) -> Vec<(&'static str, String)> {
    let encoded = utf8_percent_encode(value, NON_ALPHANUMERIC).to_string();
    // What is usual to leave alone in a path or a query.
    let lenient = encoded
        .replace("%2D", "-")
        .replace("%2F", "/")
        .replace("%3D", "=");
    let json = serde_json::to_string(value).unwrap();
    let json = json.trim_matches('"').to_owned();
    let mut forms = vec![
        ("raw", value.to_owned()),
        (
            "JSON in JSON",
            json.replace('\\', "\\\\").replace('"', "\\\""),
        ),
        ("JSON with escaped slashes", json.replace('/', "\\/")),
        ("JSON", json),
        ("hexadecimal", hex(value.as_bytes())),
        (
            "hexadecimal in capitals",
            hex(value.as_bytes()).to_uppercase(),
        ),
        ("URL-encoded in lower case", lower_escapes(&encoded)),
        ("URL-encoded, lenient", lenient.clone()),
        (
            "URL-encoded, lenient, in lower case",
            lower_escapes(&lenient),
        ),
        ("URL-encoded but for the dash", encoded.replace("%2D", "-")),
        ("URL-encoded", encoded),
        // The middle alone, so that a secret that is cut or joined with others is found too.
        (
            "fragment",
            value[value.len() / 2 - 8..value.len() / 2 + 8].to_owned(),
        ),
    ];
    for (alignment, kind) in ["base64", "base64, shifted by one", "base64, shifted by two"]
        .into_iter()
        .enumerate()
    {
        forms.push((kind, aligned(value, alignment, &STANDARD_NO_PAD)));
        forms.push((kind, aligned(value, alignment, &URL_SAFE_NO_PAD)));
    }
    forms
}

/// The characters of a base64 text that depend on `value` alone, when `shift` bytes (modulo 3) stand before it.
fn aligned(value: &str, shift: usize, engine: &impl base64::Engine) -> String {
    let mut bytes = vec![0; shift];
    bytes.extend_from_slice(value.as_bytes());
    let whole = bytes.len() / 3 * 3;
    let text = engine.encode(&bytes[..whole]);
    let shared = if shift == 0 { 0 } else { shift + 1 };
    text[shared..].to_owned()
}

fn lower_escapes(text: &str) -> String {
    let mut lowered = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        lowered += &rest[..at];
        lowered += &rest[at..at + 3].to_lowercase();
        rest = &rest[at + 3..];
    }
    lowered + rest
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_canary_is_found_in_every_form_and_alignment() {
        let canary = Canary::new("control");
        for prefix in ["", "u", "us", "use", "user:"] {
            let text = STANDARD.encode(format!("{prefix}{}:and more", canary.value()));
            assert!(canary.find_in(&text).is_some(), "{prefix:?}: {text}");
        }
        for (kind, form) in canary.forms() {
            let line = format!("2026-01-01 level=trace field={form} more");
            assert!(canary.find_in(&line).is_some(), "{kind}");
        }
        let quoted = serde_json::json!({"message": canary.value()}).to_string();
        assert!(canary.find_in(&quoted).is_some());
        assert!(canary.find_in("nothing of the kind").is_none());
        assert!(Canary::new("other").find_in(canary.value()).is_none());
    }

    #[test]
    fn every_form_differs_from_the_others_where_it_can() {
        let canary = Canary::new("forms");
        let raw = canary.value();
        for (kind, form) in canary.forms().iter().skip(1) {
            assert_ne!(form, raw, "{kind}");
        }
    }
}
