//! Capacity units as `DynamoDB` counts them, by partition key ("Read and write unit consumption", developer guide).
//!
//! A write costs by the larger of the item before and after it, also where its condition fails; a read by the whole item.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// What a partition has served.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Units {
    /// Read units: 4 KB, or 8 KB if the read may be late.
    pub reads: f64,
    /// Write units: 1 KB.
    pub writes: f64,
}

/// What one partition serves in a second ("Best practices for designing and using partition keys").
pub const PARTITION: Units = Units { reads: 3000.0, writes: 1000.0 };

/// One item that a request is about: its key, and what a write makes of it.
pub(super) struct Access {
    pub(super) key: Value,
    kind: Kind,
}

enum Kind {
    Read { consistent: bool },
    Write { after: f64 },
}

#[derive(Default)]
struct Partition {
    units: Units,
    second: Option<(Instant, Units)>,
}

#[derive(Default)]
pub(super) struct Capacity(Mutex<Counting>);

#[derive(Default)]
struct Counting {
    partitions: Option<HashMap<String, Partition>>,
    limit: Option<Units>,
}

impl Capacity {
    /// Counts from here on, and refuses what exceeds the limit.
    pub(super) fn start(&self, limit: Option<Units>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Counting { partitions: Some(HashMap::new()), limit };
    }

    pub(super) fn is_counting(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).partitions.is_some()
    }

    /// What the partitions with this beginning have served.
    pub(super) fn units(&self, beginning: &str) -> Units {
        let counting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let partitions = counting.partitions.iter().flatten().filter(|(key, _)| key.starts_with(beginning));
        partitions.fold(Units::default(), |sum, (_, partition)| Units {
            reads: sum.reads + partition.units.reads,
            writes: sum.writes + partition.units.writes,
        })
    }

    /// Counts an access to an item of this many bytes. `false`: the partition has served too much in this second.
    pub(super) fn take(&self, access: &Access, before: f64) -> bool {
        let mut counting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counting { partitions, limit } = &mut *counting;
        let Some(partitions) = partitions else { return true };
        let key = access.key["pk"]["S"].as_str().unwrap_or_default();
        let units = match access.kind {
            Kind::Read { consistent } => {
                let whole = (before / 4096.0).ceil().max(1.0);
                Units { reads: if consistent { whole } else { whole / 2.0 }, writes: 0.0 }
            }
            Kind::Write { after } => Units { reads: 0.0, writes: (before.max(after) / 1024.0).ceil().max(1.0) },
        };
        let partition = partitions.entry(key.to_owned()).or_default();
        let now = Instant::now();
        let (_, second) = match &mut partition.second {
            Some(second) if now - second.0 < Duration::from_secs(1) => second,
            second => second.insert((now, Units::default())),
        };
        if limit.is_some_and(|limit| {
            second.reads + units.reads > limit.reads || second.writes + units.writes > limit.writes
        }) {
            return false;
        }
        for sum in [second, &mut partition.units] {
            sum.reads += units.reads;
            sum.writes += units.writes;
        }
        true
    }
}

/// The items that a request reads or writes, but for those of a scan.
pub(super) fn accesses(operation: &str, request: &Value) -> Vec<Access> {
    let key = |item: &Value| serde_json::json!({ "pk": item["pk"], "sk": item["sk"] });
    let read = |key: &Value, of: &Value| {
        let consistent = of["ConsistentRead"].as_bool().unwrap_or_default();
        Access { key: key.clone(), kind: Kind::Read { consistent } }
    };
    let put = |item: &Value| Access { key: key(item), kind: Kind::Write { after: size(item) } };
    let tables = || request["RequestItems"].as_object().into_iter().flat_map(Map::values);
    match operation {
        "GetItem" => vec![read(&request["Key"], request)],
        "BatchGetItem" => tables()
            .flat_map(|table| table["Keys"].as_array().into_iter().flatten().map(|key| read(key, table)))
            .collect(),
        "PutItem" => vec![put(&request["Item"])],
        "UpdateItem" | "DeleteItem" => vec![Access { key: request["Key"].clone(), kind: Kind::Write { after: 0.0 } }],
        "BatchWriteItem" => tables()
            .flat_map(|table| table.as_array().into_iter().flatten())
            .map(|write| put(&write["PutRequest"]["Item"]))
            .collect(),
        _ => Vec::new(),
    }
}

/// About how many bytes an item takes: its names and values.
pub(super) fn size(item: &Value) -> f64 {
    item.as_object()
        .map_or(0.0, |attributes| attributes.iter().map(|(name, value)| name.len() as f64 + of(value)).sum())
}

/// `{"S": "text"}` and the like.
fn of(attribute: &Value) -> f64 {
    let Some((kind, value)) = attribute.as_object().and_then(|typed| typed.iter().next()) else { return 0.0 };
    match (kind.as_str(), value) {
        ("B", Value::String(base64)) => base64.len() as f64 * 0.75,
        ("N", Value::String(digits)) => digits.len() as f64 / 2.0 + 1.0,
        ("M", value) => 3.0 + size(value),
        ("L", Value::Array(values)) => 3.0 + values.iter().map(of).sum::<f64>(),
        (_, Value::String(text)) => text.len() as f64,
        _ => 1.0,
    }
}
