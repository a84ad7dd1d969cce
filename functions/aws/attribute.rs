//! JSON values as attributes of items, and back.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;
use stopover::errors::StoreError;
use stopover::ports::Result;

/// A JSON value as an attribute.
pub(crate) fn attribute(value: Value) -> AttributeValue {
    match value {
        Value::Null => AttributeValue::Null(true),
        Value::Bool(flag) => AttributeValue::Bool(flag),
        Value::Number(number) => AttributeValue::N(number.to_string()),
        Value::String(text) => AttributeValue::S(text),
        Value::Array(values) => AttributeValue::L(values.into_iter().map(attribute).collect()),
        Value::Object(fields) => {
            AttributeValue::M(fields.into_iter().map(|(name, value)| (name, attribute(value))).collect())
        }
    }
}

/// An attribute as a JSON value.
pub(crate) fn value(attribute: AttributeValue) -> Result<Value> {
    Ok(match attribute {
        AttributeValue::Null(_) => Value::Null,
        AttributeValue::Bool(flag) => Value::Bool(flag),
        AttributeValue::N(digits) => {
            Value::Number(digits.parse().map_err(|_| StoreError::Corrupt(format!("{digits} is no number").into()))?)
        }
        AttributeValue::S(text) => Value::String(text),
        AttributeValue::L(values) => Value::Array(values.into_iter().map(value).collect::<Result<_, _>>()?),
        AttributeValue::M(fields) => {
            Value::Object(fields.into_iter().map(|(name, inner)| Ok((name, value(inner)?))).collect::<Result<_, _>>()?)
        }
        _ => {
            return Err(StoreError::Corrupt("an attribute has a type that is never written".into()));
        }
    })
}
