//! What was found of one certificate or one thing, and the rules by which it is judged.

use std::time::{Duration, SystemTime};

use maille_pki::{Description, RevocationList};
use serde_json::{Value, json};

use crate::commands::ca::described::{distance, moment};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Level {
    /// All is well.
    #[value(skip)]
    Ok,
    /// Not looked at, and why.
    #[value(skip)]
    Note,
    /// Somebody should look soon.
    Warning,
    /// It does not work, or not any more.
    Error,
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What it is about.
    pub(super) what: String,
    /// When it ends.
    pub(super) not_after: Option<SystemTime>,
    /// What is the matter; empty if nothing is.
    pub(super) message: String,
    /// What to do.
    pub(super) action: Option<String>,
}

impl Finding {
    pub(super) fn new(level: Level, what: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level, what: what.into(), not_after: None, message: message.into(), action: None }
    }

    pub(super) fn ending(mut self, not_after: SystemTime) -> Self {
        self.not_after = Some(not_after);
        self
    }

    pub(super) fn doing(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "level": self.level.name(), "what": self.what, "notAfter": self.not_after.map(moment),
            "message": self.message, "action": self.action,
        })
    }
}

/// The time of the check, and how early it warns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) now: SystemTime,
    early: Duration,
}

impl Rule {
    pub(super) fn new(now: SystemTime, days: u32) -> Self {
        Self { now, early: Duration::from_secs(u64::from(days) * 86_400) }
    }

    /// Of a certificate that people renew.
    pub(super) fn by_people(
        &self,
        what: impl Into<String>,
        (not_before, not_after): (SystemTime, SystemTime),
        action: impl Into<String>,
    ) -> Finding {
        let (level, message) = match self.outside(not_before, not_after) {
            Some(problem) => (Level::Error, problem),
            None if not_after <= self.now + self.early => {
                (Level::Warning, format!("ends within {} days", self.early.as_secs() / 86_400))
            }
            None => (Level::Ok, String::new()),
        };
        let finding = Finding::new(level, what, message).ending(not_after);
        if level == Level::Ok { finding } else { finding.doing(action) }
    }

    /// Of a certificate that is renewed at half of its life, if nothing is wrong.
    pub(super) fn by_itself(
        &self,
        what: impl Into<String>,
        (not_before, not_after): (SystemTime, SystemTime),
        action: impl Into<String>,
    ) -> Finding {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(self.now).unwrap_or_default();
        let (level, message) = match self.outside(not_before, not_after) {
            Some(problem) => (Level::Error, problem),
            None if left < life / 3 => (
                Level::Warning,
                format!("ends {}, and should have been renewed", distance(not_after, self.now)),
            ),
            None => (Level::Ok, String::new()),
        };
        let finding = Finding::new(level, what, message).ending(not_after);
        if level == Level::Ok { finding } else { finding.doing(action) }
    }

    /// Of a revocation list: after its next update verifiers refuse everything of its issuer.
    pub(super) fn of_list(&self, what: impl Into<String>, list: &RevocationList) -> Finding {
        let what = what.into();
        let Some(due) = list.next_update() else {
            return Finding::new(Level::Ok, what, "it does not say when the next one is due");
        };
        let period = due.duration_since(list.this_update()).unwrap_or_default();
        let left = due.duration_since(self.now).unwrap_or_default();
        let (level, message) = match () {
            () if due <= self.now => {
                (Level::Error, format!("was due for an update {}", distance(due, self.now)))
            }
            // A list of a week would warn for ever by days.
            () if left < self.early.min(period / 4) => {
                (Level::Warning, format!("is due for an update {}", distance(due, self.now)))
            }
            () => (Level::Ok, String::new()),
        };
        let finding = Finding::new(level, what, message).ending(due);
        let action = "fetch the CA's current list into ca-crl.pem of the Secret cacerts";
        if level == Level::Ok { finding } else { finding.doing(action) }
    }

    fn outside(&self, not_before: SystemTime, not_after: SystemTime) -> Option<String> {
        if not_after <= self.now {
            return Some(format!("expired {}", distance(not_after, self.now)));
        }
        (self.now < not_before).then(|| {
            format!(
                "is valid from {} on only: is this machine's clock right, and that of who made it?",
                moment(not_before)
            )
        })
    }
}

/// A certificate's life.
pub(super) fn life(certificate: &Description) -> (SystemTime, SystemTime) {
    (certificate.not_before, certificate.not_after)
}

/// `LEVEL | WHAT | ENDS | MESSAGE`.
pub(super) fn table(findings: &[Finding], now: SystemTime) -> Vec<Vec<String>> {
    let mut table = vec![["LEVEL", "WHAT", "ENDS", "MESSAGE"].map(str::to_owned).to_vec()];
    table.extend(findings.iter().map(|finding| {
        let ends = finding.not_after.map_or_else(|| "-".to_owned(), |end| distance(end, now));
        vec![finding.level.name().to_owned(), finding.what.clone(), ends, finding.message.clone()]
    }));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_people_renew_is_judged_by_days() {
        let rule = Rule::new(at(100 * DAY), 30);
        for (start, end, level) in [
            (0, 131 * DAY, Level::Ok),
            (0, 130 * DAY, Level::Warning),
            (0, 100 * DAY + 1, Level::Warning),
            (0, 100 * DAY, Level::Error),
            (101 * DAY, 900 * DAY, Level::Error),
        ] {
            let finding = rule.by_people("root", (at(start), at(end)), "rotate");
            assert_eq!(
                (finding.level, finding.action.is_some()),
                (level, level != Level::Ok),
                "{start} {end}"
            );
        }
    }

    #[test]
    fn what_renews_itself_is_judged_by_its_life() {
        let rule = Rule::new(at(100 * DAY), 30);
        let day =
            |left: u64| rule.by_itself("leaf", (at(99 * DAY + left), at(100 * DAY + left)), "look").level;
        // Renewed at half of its life: a third left means that attempts have failed.
        assert_eq!(
            (day(DAY / 2), day(DAY / 3), day(DAY / 3 - 1), day(0)),
            (Level::Ok, Level::Ok, Level::Warning, Level::Error)
        );
    }

    #[test]
    fn levels_are_ordered_from_fine_to_bad() {
        assert!(Level::Ok < Level::Note && Level::Note < Level::Warning && Level::Warning < Level::Error);
    }
}
