//! Conditions as they are written: equal but for time is equal, and time moves only with the status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use nexus_crds::status::{ACCEPTED, PROGRAMMED, Problem, ProgrammedReason, Reason, Warning};

/// Longest message, in bytes: a parser may quote a whole document.
const MAX_MESSAGE: usize = 2048;

/// What became of a route beyond its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Programmed {
    /// The ConfigMap has it.
    Yes,
    /// The ConfigMap cannot be written, and why.
    Pending(String),
    /// There is no room for it.
    TooLarge,
}

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// The condition `Accepted`.
pub(crate) fn accepted(result: &Result<(), Problem>, warnings: &[Warning]) -> Wanted {
    let (status, reason, mut message) = match result {
        Ok(()) => (true, Reason::Accepted, "valid and granted".to_owned()),
        Err(problem) => (false, problem.reason, problem.to_string()),
    };
    for Warning {
        field,
        message: text,
    } in warnings
    {
        message = format!("{message}; warning: {field}: {text}");
    }
    Wanted {
        type_: ACCEPTED,
        status,
        reason: reason.as_str(),
        message: shorten(message, MAX_MESSAGE),
    }
}

/// The condition `Accepted` of an object that cannot be read.
pub(crate) fn unreadable(error: &str) -> Wanted {
    Wanted {
        type_: ACCEPTED,
        status: false,
        reason: Reason::InvalidValue.as_str(),
        message: shorten(format!("cannot be read: {error}"), MAX_MESSAGE),
    }
}

/// The condition `Programmed`; `None` for a route that is not accepted.
pub(crate) fn programmed(programmed: Option<&Programmed>) -> Wanted {
    let (reason, message) = match programmed {
        Some(Programmed::Yes) => (
            ProgrammedReason::Programmed,
            "in the table that sidecars read".to_owned(),
        ),
        Some(Programmed::Pending(why)) => (ProgrammedReason::Pending, why.clone()),
        Some(Programmed::TooLarge) => (
            ProgrammedReason::TableTooLarge,
            "the namespace's table has no room left, and older routes come first; use fewer connections, or another \
             namespace for some of them"
                .to_owned(),
        ),
        None => (
            ProgrammedReason::Pending,
            "not in the table, since it is not accepted".to_owned(),
        ),
    };
    Wanted {
        type_: PROGRAMMED,
        status: programmed == Some(&Programmed::Yes),
        reason: reason.as_str(),
        message: shorten(message, MAX_MESSAGE),
    }
}

impl Wanted {
    pub(crate) fn status(&self) -> bool {
        self.status
    }

    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    fn text(&self) -> &'static str {
        if self.status { "True" } else { "False" }
    }

    fn find<'a>(&self, live: &'a [Condition]) -> Option<&'a Condition> {
        live.iter().find(|condition| condition.type_ == self.type_)
    }

    /// Whether the object says so already, of this generation.
    pub(crate) fn is_in(&self, live: &[Condition], generation: Option<i64>) -> bool {
        self.find(live).is_some_and(|condition| {
            condition.status == self.text()
                && condition.reason == self.reason
                && condition.message == self.message
                && condition.observed_generation == generation
        })
    }

    /// Whether it is news beside what the object says: another status or reason, or trouble of another kind.
    pub(crate) fn is_news(&self, live: &[Condition]) -> bool {
        !self.find(live).is_some_and(|condition| {
            condition.status == self.text()
                && condition.reason == self.reason
                && (self.status || condition.message == self.message)
        })
    }

    /// The condition, with the time of the last change of its status.
    pub(crate) fn condition(
        &self,
        live: &[Condition],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Condition {
        let since = self
            .find(live)
            .filter(|condition| condition.status == self.text())
            .map(|condition| condition.last_transition_time.clone());
        Condition {
            type_: self.type_.to_owned(),
            status: self.text().to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            observed_generation: generation,
            last_transition_time: since.unwrap_or(Time(now)),
        }
    }
}

/// At most `limit` bytes of a text.
pub(crate) fn shorten(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let mark = "...";
        text.truncate(text.floor_char_boundary(limit - mark.len()));
        text.push_str(mark);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_moves_only_when_the_status_does() {
        let yes = accepted(&Ok(()), &[]);
        let first = yes.condition(&[], Some(1), at(1));
        assert_eq!(first.last_transition_time.0, at(1));
        let warning = Warning {
            field: "spec.access".to_owned(),
            message: "is wide".to_owned(),
        };
        let warned = accepted(&Ok(()), &[warning]);
        let live = [first];
        assert!(!warned.is_in(&live, Some(1)) && yes.is_in(&live, Some(1)));
        let second = warned.condition(&live, Some(2), at(2));
        assert_eq!(second.last_transition_time.0, at(1));
        assert!(second.message.ends_with("; warning: spec.access: is wide"));
        let no = unreadable("x").condition(&live, Some(2), at(3));
        assert_eq!(no.last_transition_time.0, at(3));
    }

    #[test]
    fn another_generation_is_written_but_is_no_news() {
        let yes = accepted(&Ok(()), &[]);
        let live = [yes.condition(&[], Some(1), at(1))];
        assert!(!yes.is_in(&live, Some(2)));
        assert!(!yes.is_news(&live) && yes.is_news(&[]));
        assert!(unreadable("x").is_news(&live));
        let live = [unreadable("x").condition(&[], Some(1), at(1))];
        assert!(!unreadable("x").is_news(&live) && unreadable("y").is_news(&live));
    }

    #[test]
    fn only_what_is_in_the_table_is_programmed() {
        let all = [
            Some(Programmed::Yes),
            Some(Programmed::Pending("403".into())),
            Some(Programmed::TooLarge),
            None,
        ];
        let found = all.map(|one| {
            let wanted = programmed(one.as_ref());
            (wanted.status(), wanted.reason())
        });
        let expected = [
            (true, "Programmed"),
            (false, "Pending"),
            (false, "TableTooLarge"),
            (false, "Pending"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(
            shorten("\u{e9}\u{e9}\u{e9}\u{e9}".to_owned(), 7),
            "\u{e9}\u{e9}..."
        );
        assert_eq!(shorten("1234567".to_owned(), 7), "1234567");
    }
}
