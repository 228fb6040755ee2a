//! Lenient readers for requests, since each SDK has its own ways. Pure.
//!
//! A `null` field counts as absent (opentok-python). The body's content type is ignored (vonage-python). Unknown fields are
//! ignored. Empty parameters count as absent (opentok-java).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use serde::de::value::{Error as TextError, MapDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::model::field_error::FieldError;

/// Longest description of a field's error, in characters: it can quote the request.
const ERROR_CHARS_MAX: usize = 300;

/// A request whose body is a JSON object.
pub trait JsonRequest: DeserializeOwned {
    /// What the handler works with.
    type Checked;

    /// Rewrites other spellings of SDKs to the fields of this type, and checks what must be reported before any type error.
    ///
    /// # Errors
    /// 400, with the field and its problem.
    fn normalize(_fields: &mut Map<String, Value>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Checks what the types of the fields cannot express.
    ///
    /// # Errors
    /// 400, with the field and its problem.
    fn check(self) -> Result<Self::Checked, ApiError>;
}

/// Reads a JSON body. An empty body counts as `{}`.
///
/// # Errors
/// 400, with the field and its problem.
pub fn read_json<T: JsonRequest>(body: &[u8]) -> Result<T::Checked, ApiError> {
    let value: Value = match body.trim_ascii() {
        b"" => Value::Object(Map::new()),
        text => serde_json::from_slice(text).map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))?,
    };
    let Value::Object(mut fields) = without_nulls(value) else {
        return Err(ApiError::invalid("the body is not a JSON object"));
    };
    T::normalize(&mut fields)?;
    let request: T = serde_path_to_error::deserialize(Value::Object(fields)).map_err(|e| {
        let field = e.path().to_string();
        let problem: String = e.into_inner().to_string().chars().take(ERROR_CHARS_MAX).collect();
        ApiError::invalid(if field == "." { problem } else { format!("{field}: {problem}") })
    })?;
    request.check()
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        other => other,
    }
}

/// A request whose query an SDK writes.
pub trait QueryRequest: DeserializeOwned {
    /// Other names of parameters, each with the name of the field.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];
}

/// Reads the query of an SDK. The last of several parameters with one name counts.
///
/// # Errors
/// 400, with the parameter and its problem.
pub fn read_query<T: QueryRequest>(query: &str) -> Result<T, ApiError> {
    let mut last = Texts::default();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let value = value.trim();
        if is_absent(value) {
            continue;
        }
        let field = T::ALIASES.iter().find(|(alias, _)| *alias == name).map_or(&*name, |(_, field)| field);
        // Alone, so that an error names the parameter as it was written, also if a later one replaces it.
        let alone = Texts([(field.to_owned(), value.to_owned())].into());
        alone.read::<T>().map_err(|e| ApiError::invalid(format!("{name}{}", e.what)))?;
        last.0.extend(alone.0);
    }
    last.read().map_err(|e| ApiError::invalid(format!("{}{}", e.field, e.what)))
}

/// Whether a text stands for no value: SDKs write these words for a variable that is not set.
pub fn is_absent(text: &str) -> bool {
    ["", "null", "undefined", "None"].contains(&text)
}

/// Named texts: the fields of a form, of a query or of a path.
#[derive(Debug, Default)]
pub struct Texts(pub BTreeMap<String, String>);

impl Texts {
    /// Reads the fields of a struct, in the order of their declaration.
    ///
    /// # Errors
    /// The first field that cannot be read, with the text of the error that its `deserialize_with` made.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        serde_path_to_error::deserialize(self)
            .map_err(|e| FieldError { field: e.path().to_string(), what: e.into_inner().to_string() })
    }
}

impl<'de> Deserializer<'de> for &Texts {
    type Error = TextError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TextError> {
        visitor.visit_map(MapDeserializer::new(self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TextError> {
        let given = fields.iter().filter_map(|field| Some((*field, self.0.get(*field)?.as_str())));
        visitor.visit_map(MapDeserializer::new(given))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Parses a field of [`Texts`]. `problem` makes the text of the error.
pub fn parse_text<'de, D: Deserializer<'de>, T: FromStr>(
    text: D,
    problem: impl FnOnce(T::Err) -> String,
) -> Result<T, D::Error> {
    String::deserialize(text)?.parse().map_err(|e| D::Error::custom(problem(e)))
}

/// For `deserialize_with`: a field that has to be there, with the error of its type after a colon.
pub fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(text: D) -> Result<T, D::Error> {
    parse_text(text, |e: T::Err| format!(": {e}"))
}

/// For `deserialize_with`: a field that may be absent, with the error of its type after a colon.
pub fn parsed_option<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(text: D) -> Result<Option<T>, D::Error> {
    parsed(text).map(Some)
}
