use proptest::prelude::*;

use super::*;

fn texts(path: &str) -> Vec<String> {
    let mut all: Vec<_> = readings(path).into_iter().map(Cow::into_owned).collect();
    all.sort();
    all
}

#[test]
fn ordinary_paths_pass_and_read_as_themselves() {
    for path in [
        "/",
        "/user",
        "/repos/o/r.git/x..y",
        "/.well-known/x",
        "/a/..b/...",
        "/v1/models/x:generateContent",
    ] {
        assert_eq!(check(path), Ok(()), "{path}");
        assert_eq!(readings(path), [path]);
        assert!(matches!(readings(path)[0], Cow::Borrowed(_)));
    }
}

#[test]
fn a_dot_segment_in_any_reading_is_refused() {
    for path in [
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/%2e%2E/b",
        "/.%2e",
        "/%252e%252e/",
        "/%25252e%25252e",
        "/a%2f..%2fb",
        "/a\\..\\b",
        "/a%5c..%5Cb",
        "/a%255c..",
        "/..;x=1/b",
        "/..%3bx/b",
        "/.;/b",
        "/a/..%252f",
    ] {
        assert_eq!(check(path), Err(PathError::DotSegment), "{path}");
    }
}

#[test]
fn each_other_fault_has_its_error() {
    let table = [
        ("", PathError::NotAbsolute),
        ("*", PathError::NotAbsolute),
        ("a/b", PathError::NotAbsolute),
        ("/a%00", PathError::Nul),
        ("/a%2500", PathError::Nul),
        ("/a%252500", PathError::Nul),
        ("/a\tb", PathError::Control),
        ("/a\x7f", PathError::Control),
        ("/a%", PathError::Encoding),
        ("/a%2", PathError::Encoding),
        ("/a%zz", PathError::Encoding),
        ("/\u{e9}", PathError::NonAscii),
    ];
    for (path, error) in table {
        assert_eq!(check(path), Err(error), "{path:?}");
    }
}

#[test]
fn encoded_and_doubled_slashes_pass_the_check() {
    for path in ["/bucket//key", "/projects/group%2Fproject", "/@scope%2fpkg"] {
        assert_eq!(check(path), Ok(()), "{path}");
    }
}

#[test]
fn readings_cover_slashes_decoding_empty_segments_and_params() {
    assert_eq!(texts("/a//b"), ["/a//b", "/a/b"]);
    assert_eq!(texts("/g%2Fp"), ["/g%2Fp", "/g/p"]);
    assert_eq!(texts("/ke%79s"), ["/ke%79s", "/keys"]);
    assert_eq!(texts("/a;x=1/b"), ["/a/b", "/a;x=1/b"]);
    assert_eq!(texts("/a%5Cb"), ["/a%5Cb", "/a/b", "/a\\b"]);
    assert_eq!(texts("/z%252Fy"), ["/z%252Fy", "/z%2Fy", "/z/y"]);
    assert!(texts("/%ff/b").contains(&"/\u{fffd}/b".to_owned()));
}

#[test]
fn a_trailing_slash_stays() {
    assert_eq!(texts("/a//"), ["/a/", "/a//"]);
}

/// Encodes some bytes of a text, `levels` times.
fn encode(text: &str, levels: usize, pick: &[bool]) -> String {
    let mut text = text.to_owned();
    for level in 0..levels {
        text = text
            .bytes()
            .enumerate()
            .map(|(index, byte)| {
                let picked = pick.get((index + level) % pick.len().max(1));
                if byte == b'%' || (picked == Some(&true) && index > 0) {
                    format!("%{byte:02x}")
                } else {
                    char::from(byte).to_string()
                }
            })
            .collect();
    }
    text
}

proptest! {
    #[test]
    fn nothing_panics(path in ".{0,64}") {
        if check(&path).is_ok() {
            prop_assert!(readings(&path).iter().any(|reading| *reading == path));
        }
    }

    #[test]
    fn a_dot_segment_hidden_by_any_encoding_is_refused(
        before in "/[a-z]{0,4}",
        slash in "[/\\\\]",
        dots in "\\.{1,2}",
        params in "(;[a-z]{0,2})?",
        after in "([/\\\\][a-z]{0,4})?",
        levels in 0_usize..=3,
        pick in prop::collection::vec(any::<bool>(), 1..16),
    ) {
        let path = encode(&format!("{before}{slash}{dots}{params}{after}"), levels, &pick);
        prop_assert_eq!(check(&path), Err(PathError::DotSegment), "{}", path);
    }

    #[test]
    fn what_a_path_says_is_among_its_readings(
        said in "/[a-z]{1,4}/[a-z]{1,6}",
        levels in 0_usize..=3,
        pick in prop::collection::vec(any::<bool>(), 1..16),
    ) {
        let sent = encode(&said, levels, &pick);
        prop_assert!(readings(&sent).iter().any(|reading| *reading == said), "{}", sent);
    }
}
