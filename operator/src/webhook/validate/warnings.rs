//! The words of a judgement, within the limits of the API server: it cuts warnings of more than 256 characters once all
//! of them have more than 4096, and drops the rest.

use nexus_crds::status::{Problem, Verdict, Warning};

/// Longest warning, in bytes.
const MAX_WARNING: usize = 256;
/// All warnings together, in bytes.
const MAX_TOTAL: usize = 4096;
/// Routes that are named; of more than these there is only the number.
const MAX_NAMED: usize = 3;
const CUT: &str = "...";

/// Who reads: names of other namespaces are nobody's business in one.
#[derive(Clone, Copy)]
pub(super) enum Viewpoint<'a> {
    /// Whoever writes routes of this namespace.
    Of(&'a str),
    /// Whoever writes for the whole cluster.
    Administrator,
}

/// Warnings so far, most important first.
#[derive(Default)]
pub(super) struct Warnings(Vec<String>);

impl Warnings {
    /// The object is stored, and not served.
    pub(super) fn not_accepted(&mut self, problem: &Problem) {
        let reason = problem.reason;
        self.0
            .push(format!("will not be accepted ({reason}): {problem}"));
    }

    /// Routes that were accepted and would not be any more.
    pub(super) fn losses(&mut self, viewpoint: Viewpoint<'_>, losses: &[(&Verdict, &Problem)]) {
        let (shown, hidden): (Vec<_>, Vec<_>) =
            losses.iter().partition(|(route, _)| match viewpoint {
                Viewpoint::Of(namespace) => route.namespace == namespace,
                Viewpoint::Administrator => true,
            });
        for (route, problem) in shown.iter().take(MAX_NAMED) {
            let Verdict {
                namespace, name, ..
            } = route;
            let reason = problem.reason;
            self.0.push(format!(
                "NexusRoute {namespace}/{name} will no longer be accepted ({reason}): {problem}"
            ));
        }
        for (count, whose) in [
            (shown.len().saturating_sub(MAX_NAMED), "more NexusRoutes"),
            (hidden.len(), "NexusRoutes of other namespaces"),
        ] {
            if count > 0 {
                self.0
                    .push(format!("{count} {whose} will no longer be accepted"));
            }
        }
    }

    /// What the compiler says of an object that it accepts or not.
    pub(super) fn compiler(&mut self, warnings: &[Warning]) {
        let texts = warnings
            .iter()
            .map(|Warning { field, message }| format!("{field}: {message}"));
        self.0.extend(texts);
    }

    /// As many as there is room for, each cut where it is too long.
    pub(super) fn finish(self) -> Vec<String> {
        let mut left = MAX_TOTAL;
        let mut warnings: Vec<String> = self.0.iter().map(|text| cut(text)).collect();
        warnings.retain(|text| match left.checked_sub(text.len()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        });
        warnings
    }
}

/// At most [`MAX_WARNING`] bytes. A header, which a warning becomes, cannot hold control characters.
fn cut(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    if text.len() <= MAX_WARNING {
        return text;
    }
    let end = text.floor_char_boundary(MAX_WARNING - CUT.len());
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_cut_between_characters_and_fits_a_header() {
        assert_eq!(cut("a\nb\tc\u{85}"), "a b c ");
        let exact = "x".repeat(MAX_WARNING);
        assert_eq!(cut(&exact), exact);
        for text in [
            "x".repeat(257),
            "\u{e9}".repeat(200),
            format!("x{}", "\u{1f600}".repeat(90)),
        ] {
            let cut = cut(&text);
            assert!(
                cut.len() <= MAX_WARNING && cut.len() > MAX_WARNING - 8,
                "{cut}"
            );
            assert!(cut.ends_with(CUT));
            assert!(text.starts_with(cut.trim_end_matches('.')));
        }
    }

    #[test]
    fn the_first_warnings_are_those_that_remain() {
        let all = (0..40)
            .map(|n| format!("{n:02}{}", "x".repeat(300)))
            .collect();
        let kept = Warnings(all).finish();
        assert_eq!(kept.len(), MAX_TOTAL / MAX_WARNING);
        assert!(
            kept.iter()
                .enumerate()
                .all(|(n, text)| text.starts_with(&format!("{n:02}")))
        );
    }
}
