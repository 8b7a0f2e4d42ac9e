//! "May this request go through?", asked of policies in hand.
//!
//! Selection is that of reference authorization 2, decisions and reasons are those of the proxy's own engine
//! ([`maille_policy`]). PeerAuthentication plays no part: an identity in a question counts as proven.

mod answer;
mod checker;
mod fields;
mod judge;
mod providers;
mod question;

pub use answer::{Action, Answer, RuleName, ShadowAnswer, ShadowResult};
pub use checker::{Checker, Settings, authorization};
pub use judge::{Judge, WordLists};
pub use providers::{Provider, Providers};
pub use question::{Protocol, Question, QuestionError, Request, Workload, read_questions};
