//! Capacity units as `DynamoDB` counts them, by partition key ("Read and write unit consumption", developer guide).
//!
//! A write costs by the larger of the item before and after it, also where its condition fails; a read by the whole item.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// What a partition has served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// Halves of read units: 4 KB each of what may be read late, or 2 KB.
    pub half_reads: usize,
    /// Write units: 1 KB each.
    pub writes: usize,
}

/// What one partition serves in a second ("Best practices for designing and using partition keys").
pub const PARTITION: Units = Units { half_reads: 2 * 3000, writes: 1000 };

/// One item that a request is about: its key, and what a write makes of it.
pub(super) struct Access {
    pub(super) key: Value,
    kind: Kind,
}

enum Kind {
    Read { consistent: bool },
    Write { after: usize },
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
            half_reads: sum.half_reads + partition.units.half_reads,
            writes: sum.writes + partition.units.writes,
        })
    }

    /// Counts an access to an item of this many bytes. `false`: the partition has served too much in this second.
    pub(super) fn take(&self, access: &Access, before: usize) -> bool {
        let mut counting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counting { partitions, limit } = &mut *counting;
        let Some(partitions) = partitions else { return true };
        let key = access.key["pk"]["S"].as_str().unwrap_or_default();
        let units = match access.kind {
            Kind::Read { consistent } => {
                let pages = before.div_ceil(4096).max(1);
                Units { half_reads: if consistent { 2 * pages } else { pages }, writes: 0 }
            }
            Kind::Write { after } => Units { half_reads: 0, writes: before.max(after).div_ceil(1024).max(1) },
        };
        let partition = partitions.entry(key.to_owned()).or_default();
        let now = Instant::now();
        let (_, second) = match &mut partition.second {
            Some(second) if now - second.0 < Duration::from_secs(1) => second,
            second => second.insert((now, Units::default())),
        };
        if limit.is_some_and(|limit| {
            second.half_reads + units.half_reads > limit.half_reads || second.writes + units.writes > limit.writes
        }) {
            return false;
        }
        for sum in [second, &mut partition.units] {
            sum.half_reads += units.half_reads;
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
        "UpdateItem" | "DeleteItem" => vec![Access { key: request["Key"].clone(), kind: Kind::Write { after: 0 } }],
        "BatchWriteItem" => tables()
            .flat_map(|table| table.as_array().into_iter().flatten())
            .map(|write| put(&write["PutRequest"]["Item"]))
            .collect(),
        _ => Vec::new(),
    }
}

/// About how many bytes an item takes: its names and values.
pub(super) fn size(item: &Value) -> usize {
    item.as_object().map_or(0, |attributes| attributes.iter().map(|(name, value)| name.len() + of(value)).sum())
}

/// `{"S": "text"}` and the like.
fn of(attribute: &Value) -> usize {
    let Some((kind, value)) = attribute.as_object().and_then(|typed| typed.iter().next()) else { return 0 };
    match (kind.as_str(), value) {
        ("B", Value::String(base64)) => base64.len() / 4 * 3,
        ("N", Value::String(digits)) => digits.len() / 2 + 1,
        ("M", value) => 3 + size(value),
        ("L", Value::Array(values)) => 3 + values.iter().map(of).sum::<usize>(),
        (_, Value::String(text)) => text.len(),
        _ => 1,
    }
}
