//! Strict decoding of an object into its type: every unknown field, every value of a wrong type and every unknown
//! enum value is found and named by field path, not only the first.
//!
//! A `null` counts as absent, as in Kubernetes. A mistake is cut out and decoding starts again, until
//! nothing is left to complain about.

mod deserializer;

use std::cell::RefCell;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field_error::FieldError;
use crate::path::FieldPath;
use deserializer::{Mismatch, Path, Step, Strict};

/// So many mistakes of type are reported for one object; a person mends these first.
const MAX_MISTAKES: usize = 50;

/// Decodes `value`, whose path in the object is `at`. `None` if a value has a wrong type; unknown
/// fields alone do not hinder the decoding, but are errors all the same.
pub(crate) fn decode<T: DeserializeOwned>(value: &Value, at: &FieldPath) -> (Option<T>, Vec<FieldError>) {
    let unknown = RefCell::new(Vec::new());
    let first = match attempt::<T>(value, at, &unknown) {
        Ok(decoded) => return (Some(decoded), unknown.into_inner()),
        Err(mistake) => mistake,
    };
    let mut mended = value.clone();
    let mut errors: Vec<FieldError> = Vec::new();
    let mut mistake = first;
    // Each mistake costs at most three rounds: two replacements of a list's element, then the list.
    for _ in 0..3 * MAX_MISTAKES {
        if !errors.iter().any(|e| is_within(&mistake.error.path, &e.path)) {
            errors.push(mistake.error);
        }
        unknown.borrow_mut().clear();
        if errors.len() >= MAX_MISTAKES || !mend(&mut mended, &mistake.steps) {
            break;
        }
        match attempt::<T>(&mended, at, &unknown) {
            Ok(_) => break,
            Err(next) => mistake = next,
        }
    }
    errors.append(&mut unknown.into_inner());
    (None, errors)
}

struct Mistake {
    steps: Vec<Step>,
    error: FieldError,
}

fn attempt<T: DeserializeOwned>(
    value: &Value,
    at: &FieldPath,
    unknown: &RefCell<Vec<FieldError>>,
) -> Result<T, Mistake> {
    let root = Path::Root(at);
    T::deserialize(Strict::new(value, &root, unknown)).map_err(|mismatch: Mismatch| mismatch.into_mistake(at))
}

impl Mismatch {
    fn into_mistake(self, at: &FieldPath) -> Mistake {
        let path = self.path.unwrap_or_else(|| at.clone());
        let error = FieldError::new(path, self.kind, self.message).maybe_help(self.help);
        Mistake { steps: self.steps, error }
    }
}

/// Takes the value at `steps` out of the way. An element of a list keeps its place, so that the paths
/// of its neighbours stay true: it is replaced by something simpler, and the list goes only when nothing fits.
fn mend(value: &mut Value, steps: &[Step]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    let replaced = match (last, navigate(value, parents)) {
        (Step::Key(key), Some(Value::Object(members))) => return members.shift_remove(key).is_some(),
        (Step::Index(index), Some(Value::Array(elements))) => elements.get_mut(*index).is_some_and(simplify),
        _ => return false,
    };
    replaced || mend(value, parents)
}

fn simplify(element: &mut Value) -> bool {
    match element {
        Value::String(text) if text.is_empty() => *element = Value::Object(serde_json::Map::new()),
        Value::Object(members) if members.is_empty() => return false,
        _ => *element = Value::String(String::new()),
    }
    true
}

fn navigate<'v>(value: &'v mut Value, steps: &[Step]) -> Option<&'v mut Value> {
    steps.iter().try_fold(value, |value, step| match (step, value) {
        (Step::Key(key), Value::Object(members)) => members.get_mut(key),
        (Step::Index(index), Value::Array(elements)) => elements.get_mut(*index),
        _ => None,
    })
}

fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests;
