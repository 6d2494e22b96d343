//! The spellings of a secret that an upstream may send back.
//!
//! Long secrets (tokens of several kilobytes) get fewer of the rarer spellings, because every form costs its
//! length in memory for as long as the credential is cached.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use super::MIN_SECRET;

/// Bytes that are zeroized when dropped.
pub(super) type Form = Zeroizing<Vec<u8>>;

/// Secrets above this get no escaped spellings of their base64 forms.
const LONG_SECRET: usize = 512;

/// Every distinct form of the secrets and of the base64 of `user:pass` pairs, in no particular order.
pub(super) fn of<'a>(
    secrets: impl IntoIterator<Item = &'a [u8]>,
    basic_pairs: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Form> {
    let mut forms = Forms(Vec::new());
    for secret in secrets {
        if secret.len() >= MIN_SECRET {
            forms.add_secret(secret);
        }
    }
    for pair in basic_pairs {
        if pair.len() >= MIN_SECRET {
            let text = Zeroizing::new(STANDARD_NO_PAD.encode(pair));
            forms.add_base64(text.as_bytes(), pair.len());
        }
    }
    forms.0
}

struct Forms(Vec<Form>);

impl Forms {
    fn add_secret(&mut self, secret: &[u8]) {
        self.add(secret.to_vec());
        self.add_escaped(secret);
        for shift in 0..3 {
            self.add_base64(&aligned_base64(secret, shift), secret.len());
        }
    }

    fn add_base64(&mut self, standard: &[u8], source_len: usize) {
        self.add(standard.to_vec());
        let url_safe = standard.iter().map(|&byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        });
        self.add(url_safe.collect());
        if source_len <= LONG_SECRET {
            self.add_escaped(standard);
        }
    }

    fn add_escaped(&mut self, text: &[u8]) {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
        // Most tokens: every encoder leaves them as they are.
        if !text.iter().all(plain) {
            self.add_percent(text);
            self.add_json(text);
        }
    }

    fn add_percent(&mut self, text: &[u8]) {
        for kept in &PERCENT_KEPT {
            for upper in [true, false] {
                self.add(percent_encoded(text, kept, upper));
            }
        }
    }

    fn add_json(&mut self, text: &[u8]) {
        for escaped in &JSON_ESCAPED {
            for ascii_only in [false, true] {
                for upper in [true, false] {
                    self.add(json_escaped(text, escaped, ascii_only, upper));
                }
            }
        }
    }

    fn add(&mut self, form: Vec<u8>) {
        let form = Zeroizing::new(form);
        if !self.0.contains(&form) {
            // An exact copy: the encoders reserve for the worst case, so that growing leaves no copy behind.
            self.0.push(Zeroizing::new(form.to_vec()));
        }
    }
}

/// The characters of a base64 text that depend on the secret alone, where `shift` bytes (modulo 3) precede it.
fn aligned_base64(secret: &[u8], shift: usize) -> Zeroizing<Vec<u8>> {
    let mut shifted = Zeroizing::new(vec![0; shift]);
    shifted.extend_from_slice(secret);
    let text = Zeroizing::new(STANDARD_NO_PAD.encode(&*shifted));
    let first = (shift * 8).div_ceil(6);
    let last = shifted.len() * 8 / 6;
    Zeroizing::new(text.as_bytes()[first..last].to_vec())
}

/// What the common encoders leave as it is, next to letters and digits.
const PERCENT_KEPT: [PercentKept; 5] = [
    // RFC 3986 section 2.3.
    PercentKept {
        bytes: b"-._~",
        space_as_plus: false,
    },
    // WHATWG application/x-www-form-urlencoded.
    PercentKept {
        bytes: b"*-._",
        space_as_plus: true,
    },
    // Form encoders that follow RFC 3986 otherwise (Go's url.QueryEscape, Python's quote_plus).
    PercentKept {
        bytes: b"-._~",
        space_as_plus: true,
    },
    // JavaScript's encodeURIComponent.
    PercentKept {
        bytes: b"-._~!'()*",
        space_as_plus: false,
    },
    // Python's quote and other path encoders.
    PercentKept {
        bytes: b"-._~/",
        space_as_plus: false,
    },
];

struct PercentKept {
    bytes: &'static [u8],
    space_as_plus: bool,
}

fn percent_encoded(text: &[u8], kept: &PercentKept, upper: bool) -> Vec<u8> {
    let digits = hex_digits(upper);
    let mut out = Vec::with_capacity(text.len() * 3);
    for &byte in text {
        if byte.is_ascii_alphanumeric() || kept.bytes.contains(&byte) {
            out.push(byte);
        } else if byte == b' ' && kept.space_as_plus {
            out.push(b'+');
        } else {
            out.extend([
                b'%',
                digits[usize::from(byte >> 4)],
                digits[usize::from(byte & 15)],
            ]);
        }
    }
    out
}

/// What JSON writers escape next to quotes, backslashes and control characters (RFC 8259 section 7).
const JSON_ESCAPED: [JsonEscaped; 4] = [
    JsonEscaped {
        unicode: b"",
        slash: false,
    },
    // PHP's json_encode and others.
    JsonEscaped {
        unicode: b"",
        slash: true,
    },
    // Writers whose output may stand in HTML (Go).
    JsonEscaped {
        unicode: b"<>&",
        slash: false,
    },
    // System.Text.Json.
    JsonEscaped {
        unicode: b"\"<>&'+`",
        slash: false,
    },
];

struct JsonEscaped {
    /// Written as `\u00XX`.
    unicode: &'static [u8],
    /// Whether `/` is written as `\/`.
    slash: bool,
}

fn json_escaped(text: &[u8], escaped: &JsonEscaped, ascii_only: bool, upper: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() * 6);
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_json_character(&mut out, character, escaped, ascii_only, upper);
        }
        out.extend_from_slice(chunk.invalid());
    }
    out
}

fn push_json_character(
    out: &mut Vec<u8>,
    character: char,
    escaped: &JsonEscaped,
    ascii_only: bool,
    upper: bool,
) {
    let by_set = u8::try_from(character).is_ok_and(|byte| escaped.unicode.contains(&byte));
    match character {
        _ if by_set || (ascii_only && !character.is_ascii()) => {
            push_unicode_escape(out, character, upper);
        }
        '"' | '\\' => out.extend([b'\\', character as u8]),
        '/' if escaped.slash => out.extend(b"\\/"),
        '\n' => out.extend(b"\\n"),
        '\r' => out.extend(b"\\r"),
        '\t' => out.extend(b"\\t"),
        '\u{8}' => out.extend(b"\\b"),
        '\u{c}' => out.extend(b"\\f"),
        control if control < ' ' => push_unicode_escape(out, control, upper),
        other => out.extend(other.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn push_unicode_escape(out: &mut Vec<u8>, character: char, upper: bool) {
    let digits = hex_digits(upper);
    for unit in character.encode_utf16(&mut [0; 2]) {
        let [high, low] = unit.to_be_bytes();
        out.extend(b"\\u");
        for byte in [high, low] {
            out.extend([
                digits[usize::from(byte >> 4)],
                digits[usize::from(byte & 15)],
            ]);
        }
    }
}

fn hex_digits(upper: bool) -> &'static [u8; 16] {
    if upper {
        b"0123456789ABCDEF"
    } else {
        b"0123456789abcdef"
    }
}
