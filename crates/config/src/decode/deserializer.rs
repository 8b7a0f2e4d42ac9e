//! A serde deserializer over JSON values that knows where it is, takes no value for another type, and
//! tells unknown fields from known ones by the field list of each type.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use crate::field_error::{FieldError, FieldErrorKind};
use crate::path::FieldPath;
use crate::suggest;

/// A longer list of fields helps nobody.
const MAX_LISTED: usize = 20;

/// Where the deserializer is: a list on the stack, written out only when something is wrong.
pub(super) enum Path<'p> {
    Root(&'p FieldPath),
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

/// One step into a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Path<'_> {
    fn render(&self) -> FieldPath {
        match self {
            Self::Root(path) => (*path).clone(),
            Self::Key(parent, key) => parent.render().key(key),
            Self::Index(parent, index) => parent.render().index(*index),
        }
    }

    fn steps(&self) -> Vec<Step> {
        match self {
            Self::Root(_) => Vec::new(),
            Self::Key(parent, key) => [parent.steps(), vec![Step::Key((*key).to_owned())]].concat(),
            Self::Index(parent, index) => [parent.steps(), vec![Step::Index(*index)]].concat(),
        }
    }
}

/// A value that does not fit its type.
#[derive(Debug)]
pub(super) struct Mismatch {
    pub(super) path: Option<FieldPath>,
    pub(super) steps: Vec<Step>,
    pub(super) kind: FieldErrorKind,
    pub(super) message: String,
    pub(super) help: Option<String>,
    /// The missing member, until the path of its owner is known.
    member: Option<&'static str>,
}

impl Mismatch {
    fn new(kind: FieldErrorKind, message: String) -> Self {
        Self { path: None, steps: Vec::new(), kind, message, help: None, member: None }
    }

    /// Fixes the place, unless a value further inside has.
    fn at(mut self, path: &Path<'_>) -> Self {
        if self.path.is_none() {
            let rendered = path.render();
            self.path = Some(match self.member {
                Some(member) => rendered.key(member),
                None => rendered,
            });
            self.steps = path.steps();
        }
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(FieldErrorKind::Invalid, message.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(FieldErrorKind::Type, format!("expected {}, found {}", plain(expected), seen(&found)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(FieldErrorKind::Invalid, format!("expected {}, found {found}", plain(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        let mismatch = Self::new(FieldErrorKind::Required, "is required".to_owned());
        Self { member: Some(field), ..mismatch }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(FieldErrorKind::Duplicate, format!("field '{field}' is given in two spellings"))
    }
}

/// What a visitor expects, in the words of people who write YAML.
fn plain(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "i64" => "a whole number".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" | "u64" => "a whole number from 0".to_owned(),
        "f64" => "a number".to_owned(),
        "IntOrString" => "a number or a string".to_owned(),
        other => other.to_owned(),
    }
}

fn seen(found: &de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "an object".to_owned(),
        de::Unexpected::Unit => "null".to_owned(),
        other => other.to_string(),
    }
}

/// What a value is, for messages.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.chars().count() <= 40 => format!("the string {s:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The deserializer: a value, its path, and the unknown fields found so far.
pub(super) struct Strict<'de, 'p> {
    value: &'de Value,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<FieldError>>,
}

impl<'de, 'p> Strict<'de, 'p> {
    pub(super) fn new(value: &'de Value, path: &'p Path<'p>, unknown: &'p RefCell<Vec<FieldError>>) -> Self {
        Self { value, path, unknown }
    }

    fn mismatch(&self, expected: &str) -> Mismatch {
        let mut mismatch =
            Mismatch::new(FieldErrorKind::Type, format!("expected {expected}, found {}", found(self.value)));
        mismatch.help = match (expected, self.value) {
            ("a string", Value::Bool(_)) => Some(
                "put it in quotes (without them YAML reads yes, no, on, off, true, false as booleans)".into(),
            ),
            ("a string", Value::Number(n)) => Some(format!("put it in quotes: \"{n}\"")),
            ("a list", Value::String(s)) if s.len() <= 40 => Some(format!("write [{s:?}]")),
            ("a list", Value::Object(_)) => Some("begin each element with '- '".into()),
            ("true or false", Value::String(s)) if s == "true" || s == "false" => {
                Some(format!("write {s} without quotes"))
            }
            ("a whole number", Value::String(s)) if s.parse::<i64>().is_ok() => {
                Some(format!("write {s} without quotes"))
            }
            _ => None,
        };
        mismatch.at(self.path)
    }

    fn members(&self) -> Result<&'de Map<String, Value>, Mismatch> {
        self.value.as_object().ok_or_else(|| self.mismatch("an object"))
    }

    fn visit_members<V: Visitor<'de>>(
        self,
        members: &'de Map<String, Value>,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let access = Members { rest: members.iter(), current: None, path: self.path, unknown: self.unknown };
        visitor.visit_map(access).map_err(|e| e.at(self.path))
    }

    fn whole_number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Number(n) if n.is_i64() || n.is_u64() => self.deserialize_any(visitor),
            // Kubernetes reads 80.0 as 80.
            Value::Number(n) => match n.as_f64() {
                Some(f) if f.fract() == 0.0 && f.abs() < 9e15 => {
                    #[expect(clippy::cast_possible_truncation, reason = "whole, and within 53 bits")]
                    let whole = f as i64;
                    visitor.visit_i64(whole).map_err(|e: Mismatch| e.at(self.path))
                }
                _ => Err(self.mismatch("a whole number")),
            },
            _ => Err(self.mismatch("a whole number")),
        }
    }
}

macro_rules! whole_numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            self.whole_number(visitor)
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            match self.value {
                Value::String(_) => self.deserialize_any(visitor),
                _ => Err(self.mismatch("a string")),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Strict<'de, '_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let path = self.path;
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
                (Some(n), _, _) => visitor.visit_u64(n),
                (_, Some(n), _) => visitor.visit_i64(n),
                (_, _, Some(n)) => visitor.visit_f64(n),
                _ => return Err(self.mismatch("a number")),
            },
            Value::String(s) => visitor.visit_borrowed_str(s),
            Value::Array(_) => return self.deserialize_seq(visitor),
            Value::Object(members) => return self.visit_members(members, visitor),
        }
        .map_err(|e: Mismatch| e.at(path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let path = self.path;
        visitor.visit_newtype_struct(self).map_err(|e| e.at(path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let members = self.members()?;
        for key in members.keys().filter(|key| !fields.contains(&key.as_str())) {
            // Protobuf's spellings are accepted, not advertised.
            let names: Vec<_> = fields.iter().copied().filter(|field| !field.contains('_')).collect();
            let help = match suggest::nearest(key, names.iter().copied()) {
                Some(nearest) => Some(format!("did you mean '{nearest}'?")),
                None if names.len() <= MAX_LISTED => Some(format!("known here: {}", names.join(", "))),
                None => None,
            };
            self.unknown.borrow_mut().push(
                FieldError::new(
                    self.path.render().key(key),
                    FieldErrorKind::Unknown,
                    format!("unknown field '{key}'"),
                )
                .maybe_help(help),
            );
        }
        self.visit_members(members, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let members = self.members()?;
        self.visit_members(members, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let Value::Array(elements) = self.value else { return Err(self.mismatch("a list")) };
        let access = Elements { rest: elements.iter().enumerate(), path: self.path, unknown: self.unknown };
        visitor.visit_seq(access).map_err(|e| e.at(self.path))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Bool(_) => self.deserialize_any(visitor),
            _ => Err(self.mismatch("true or false")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let all = variants.join(", ");
        let wrong = |help: Option<&str>| {
            let mut mismatch =
                Mismatch::new(FieldErrorKind::Enum, format!("{} is none of {all}", found(self.value)));
            mismatch.help = help.map(|help| format!("did you mean {help}?"));
            mismatch.at(self.path)
        };
        match self.value {
            Value::String(text) if variants.contains(&text.as_str()) => {
                visitor.visit_enum(UnitVariant(text)).map_err(|e| e.at(self.path))
            }
            Value::String(text) => Err(wrong(suggest::nearest(text, variants.iter().copied()))),
            // Protobuf's numbers; the API of a cluster refuses them just so.
            Value::Number(n) => {
                let index = n.as_u64().and_then(|n| usize::try_from(n).ok());
                Err(wrong(index.and_then(|index| variants.get(index)).copied()))
            }
            _ => Err(wrong(None)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    whole_numbers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
    deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 }

    texts! { deserialize_str deserialize_string deserialize_char deserialize_bytes deserialize_byte_buf
    deserialize_identifier }

    forward_to_deserialize_any! { f32 f64 i128 u128 unit unit_struct tuple tuple_struct }
}

struct Members<'de, 'p> {
    rest: serde_json::map::Iter<'de>,
    current: Option<(&'de str, &'de Value)>,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<FieldError>>,
}

impl<'de> MapAccess<'de> for Members<'de, '_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        // A null member is an absent one.
        self.current =
            self.rest.find(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value));
        match self.current {
            Some((key, _)) => {
                let path = Path::Key(self.path, key);
                seed.deserialize(StrDeserializer::<Mismatch>::new(key)).map(Some).map_err(|e| e.at(&path))
            }
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some((key, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Key(self.path, key);
        seed.deserialize(Strict { value, path: &path, unknown: self.unknown }).map_err(|e| e.at(&path))
    }
}

struct Elements<'de, 'p> {
    rest: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<FieldError>>,
}

impl<'de> SeqAccess<'de> for Elements<'de, '_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some((index, value)) = self.rest.next() else { return Ok(None) };
        let path = Path::Index(self.path, index);
        seed.deserialize(Strict { value, path: &path, unknown: self.unknown })
            .map(Some)
            .map_err(|e| e.at(&path))
    }
}

struct UnitVariant<'de>(&'de str);

impl<'de> EnumAccess<'de> for UnitVariant<'de> {
    type Error = Mismatch;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mismatch> {
        Ok((seed.deserialize(StrDeserializer::<Mismatch>::new(self.0))?, self))
    }
}

impl<'de> VariantAccess<'de> for UnitVariant<'de> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Mismatch> {
        Err(de::Error::custom("no enum of these kinds carries a value"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("no enum of these kinds carries a value"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("no enum of these kinds carries a value"))
    }
}
