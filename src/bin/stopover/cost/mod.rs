//! `stopover cost`: what a deployment on AWS costs in a month. Arithmetic: counts of calls ([`counted`]) times list prices
//! ([`prices`]), with a few assumptions, which it names.

#![expect(clippy::cast_precision_loss, reason = "a bill is rounded more than that")]

mod counted;
mod prices;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use indicatif::HumanCount;
use serde_json::{Value, json};

use self::counted::Counted;
use self::prices::Item;

/// The memory of the functions in GB (`MemorySize` in template.yaml).
const REGISTRY_GB: f64 = 0.5;
const FILLER_GB: f64 = 1769.0 / 1024.0;
/// Assumed: how long the registry function takes, how fast a fill is, and how long one takes beside that.
const REQUEST_SECONDS: f64 = 0.008;
const FILL_BYTES_PER_SECOND: f64 = 50e6;
const FILL_SECONDS: f64 = 0.2;
/// Assumed: bytes of the access log for a request, and of other lines for what is cold.
const ACCESS_LOG_BYTES: f64 = 350.0;
const COLD_LOG_BYTES: f64 = 700.0;
/// Blobs of up to so many bytes are stored in one request, larger ones in parts (functions/aws/s3.rs, multipart.rs).
const ONE_REQUEST_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
const PART_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// Lambda asks each of the two queues with five connections, and each call waits up to 20 seconds.
const POLLS: f64 = 2.0 * 5.0 * 30.0 * 24.0 * 3600.0 / 20.0;
/// Of template.yaml: what its alarms look at, and the most metrics that the functions write.
const ALARM_METRICS: f64 = 14.0;
const OWN_METRICS: f64 = 15.0;

/// What a month is like.
#[derive(clap::Args)]
pub(crate) struct CostArguments {
    /// Pulls of an image of which nothing is stored yet
    #[arg(long, value_name = "NUMBER", default_value = "1M", value_parser = amount)]
    cold: u64,
    /// Pulls of an image that is stored, by a client that has none of its layers
    #[arg(long, value_name = "NUMBER", default_value = "1M", value_parser = amount)]
    warm: u64,
    /// The layers of an image
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    layers: u32,
    /// The size of an image
    #[arg(long, value_name = "SIZE", default_value = "500MB", value_parser = amount)]
    size: u64,
    /// What is stored, on average
    #[arg(long, value_name = "SIZE", default_value = "300GB", value_parser = amount)]
    stored: u64,
    /// Clients log in: each pull is refused once, and gets a token
    #[arg(long)]
    login: bool,
    /// Print JSON, with the prices and the counted calls
    #[arg(long)]
    json: bool,
}

/// A number like `20`, `1.5M` or `300GB`; the prefixes are powers of a thousand.
fn amount(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no amount like 20, 1.5M or 300GB");
    let plain = text.strip_suffix('B').unwrap_or(text);
    let digits = plain.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match plain.strip_prefix(digits).unwrap_or_default() {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let most = 1e18;
    let whole = (number * factor).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between zero and 1e18")]
    if (0.0..=most).contains(&whole) { Ok(whole as u64) } else { Err(wrong()) }
}

/// Units of what is paid for.
#[derive(Clone, Default)]
struct Usage(BTreeMap<Item, f64>);

impl Usage {
    fn of(counted: &Counted) -> Self {
        let charged = |(operation, count): &(&str, u32)| Some((Item::of_operation(operation)?, f64::from(*count)));
        let units = [(Item::Reads, counted.half_reads as f64 / 2.0), (Item::Writes, counted.writes as f64)];
        Self::default().and(counted.calls.iter().filter_map(charged).chain(units))
    }

    /// A request at the front, beside what the function asks for it: the gateway, the function's own time, and logs.
    fn front(log_bytes: f64) -> Self {
        Self::default().and([
            (Item::Requests, 1.0),
            (Item::Invocations, 1.0),
            (Item::Compute, REQUEST_SECONDS * REGISTRY_GB),
            (Item::Logs, log_bytes / 1e9),
        ])
    }

    fn and(mut self, more: impl IntoIterator<Item = (Item, f64)>) -> Self {
        for (item, units) in more {
            *self.0.entry(item).or_default() += units;
        }
        self
    }

    fn plus(self, other: &Self) -> Self {
        self.and(other.0.iter().map(|(item, units)| (*item, *units)))
    }

    fn dollars(&self) -> f64 {
        self.0.iter().map(|(item, units)| item.dollars(*units)).sum()
    }

    fn as_json(&self) -> Value {
        let line = |(item, units): (&Item, &f64)| {
            let price = item.price();
            json!({
                "service": price.service, "units": units, "unit": price.unit, "dollars": item.dollars(*units),
                "price": { "dollars": price.dollars, "per": price.per, "page": price.page, "read_at_aws": price.read_at_aws },
            })
        };
        let counted = |counted: &Counted| {
            let calls: BTreeMap<&str, u32> = counted.calls.iter().copied().collect();
            let (reads, writes) = (counted.half_reads as f64 / 2.0, counted.writes);
            json!({ "request": counted.kind, "calls": calls, "read_units": reads, "write_units": writes })
        };
        json!({
            "region": prices::REGION,
            "prices_of": prices::LOOKED_UP,
            "lines": self.0.iter().map(line).collect::<Vec<_>>(),
            "dollars": self.dollars(),
            "counted": counted::ALL.iter().map(counted).collect::<Vec<_>>(),
        })
    }

    fn times(mut self, factor: f64) -> Self {
        self.0.values_mut().for_each(|units| *units *= factor);
        self
    }

    /// With `few` and `many` of something this is counted: with `number` of it, if each adds the same.
    fn between((few, at_few): (f64, &Counted), (many, at_many): (f64, &Counted), number: f64) -> Self {
        let share = (number - few) / (many - few);
        Self::of(at_few).times(1.0 - share).plus(&Self::of(at_many).times(share))
    }
}

/// What one fill costs: its message, its time, and the requests that store the blob.
fn fill(bytes: f64) -> Usage {
    let stored = if bytes <= ONE_REQUEST_BYTES {
        Usage::of(&counted::FILL)
    } else {
        let parts = (bytes / PART_BYTES).ceil();
        Usage::between((3.0, &counted::FILL_3_PARTS), (5.0, &counted::FILL_5_PARTS), parts)
    };
    stored.and([
        // Lambda receives a message and deletes it.
        (Item::Messages, 2.0),
        (Item::Invocations, 1.0),
        (Item::Compute, (FILL_SECONDS + bytes / FILL_BYTES_PER_SECOND) * FILLER_GB),
        (Item::Logs, COLD_LOG_BYTES / 1e9),
    ])
}

impl CostArguments {
    /// The bill.
    pub(crate) fn answer(&self) -> anyhow::Result<String> {
        let (cold, warm) = (self.pull(true).times(self.cold as f64), self.pull(false).times(self.warm as f64));
        let usage = self.idle().plus(&cold).plus(&warm);
        if self.json {
            return Ok(format!("{:#}\n", usage.as_json()));
        }
        self.as_text(&usage)
    }

    /// Without any pull.
    fn idle(&self) -> Usage {
        Usage::default().and([
            (Item::Storage, self.stored as f64 / 1e9),
            (Item::Messages, POLLS),
            (Item::Secrets, 1.0),
            (Item::Alarms, ALARM_METRICS),
            (Item::Metrics, OWN_METRICS),
            (Item::Dashboards, 1.0),
        ])
    }

    /// As containerd pulls: HEAD of the tag, the index, the manifest, and the blobs. New instances remember nothing, so
    /// this is the most that it asks for.
    fn pull(&self, cold: bool) -> Usage {
        let (layers, blobs) = (f64::from(self.layers), f64::from(self.layers) + 1.0);
        let front = Usage::front(ACCESS_LOG_BYTES + if cold { COLD_LOG_BYTES } else { 0.0 });
        let request = |counted: &Counted| Usage::of(counted).plus(&front);
        let mut usage = if cold {
            let image =
                Usage::between((2.0, &counted::IMAGE_COLD), (11.0, &counted::IMAGE_COLD_11), blobs).plus(&front);
            let manifests = request(&counted::HEAD_COLD).plus(&request(&counted::INDEX_COLD)).plus(&image);
            let fills = fill(self.size as f64 / layers).times(layers).plus(&fill(0.0));
            manifests.plus(&request(&counted::BLOB_COLD).times(blobs)).plus(&fills)
        } else {
            let manifests = request(&counted::INDEX_NEW).plus(&request(&counted::IMAGE_NEW));
            // What the client itself reads of the bucket is a GET.
            let blob = request(&counted::BLOB_NEW).and([(Item::Gets, 1.0)]);
            request(&counted::HEAD_NEW).plus(&manifests).plus(&blob.times(blobs))
        };
        if self.login {
            usage = usage.plus(&request(&counted::REFUSED)).plus(&request(&counted::TOKEN_NEW));
        }
        usage
    }

    fn as_text(&self, usage: &Usage) -> anyhow::Result<String> {
        let mut text = format!(
            "A month of {} cold and {} warm pulls{} of an image of {} layers and {} MB, with {} GB stored:\n\n",
            HumanCount(self.cold),
            HumanCount(self.warm),
            if self.login { ", each with a login," } else { "" },
            self.layers,
            self.size / 1_000_000,
            self.stored / 1_000_000_000,
        );
        for (item, units) in &usage.0 {
            let (price, dollars) = (item.price(), item.dollars(*units));
            let mark = if price.read_at_aws { "" } else { " *" };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "units are not negative")]
            let units = HumanCount(units.ceil() as u64).to_string();
            writeln!(text, "{:<16}{units:>14} {:<24}{dollars:>10.2}{mark}", price.service, price.unit)?;
        }
        writeln!(text, "{:<55}{:>10.2}\n", "Dollars", usage.dollars())?;
        writeln!(
            text,
            "A thousand cold pulls are ${:.2}, a thousand warm ones ${:.3}; a month without any is ${:.2}.\n\
             List prices of {} as of {}, without free tiers, taxes and traffic. *: repeated by others, not read at AWS.\n\
             Assumed: {} ms for a request, {} MB/s for a fill; no instance remembers anything; no two fills share a layer.",
            self.pull(true).dollars() * 1e3,
            self.pull(false).dollars() * 1e3,
            self.idle().dollars(),
            prices::REGION,
            prices::LOOKED_UP,
            REQUEST_SECONDS * 1e3,
            FILL_BYTES_PER_SECOND / 1e6,
        )?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_a_prefix_and_is_not_negative() {
        for (text, expected) in [("0", 0), ("20", 20), ("1.5M", 1_500_000), ("300GB", 300_000_000_000), ("2k", 2000)] {
            assert_eq!(amount(text), Ok(expected), "{text}");
        }
        for text in ["", "M", "-1", "1Mi", "nan", "inf", "1e30", "9999P", "1 M", "1MM"] {
            assert!(amount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_memory_of_the_functions_is_that_of_the_template() {
        let template = concat!(env!("CARGO_MANIFEST_DIR"), "/template.yaml");
        let template = std::fs::read_to_string(template).unwrap();
        let sizes = template.lines().filter_map(|line| line.trim().strip_prefix("MemorySize: ")?.split(' ').next());
        let sizes: Vec<&str> = sizes.collect();
        assert_eq!(sizes, [REGISTRY_GB, FILLER_GB].map(|size| (size * 1024.0).to_string()));
    }

    #[test]
    fn every_call_that_is_counted_is_charged_or_has_units() {
        let by_units = ["GetItem", "BatchGetItem", "PutItem", "UpdateItem", "BatchWriteItem", "DeleteItem"];
        for counted in counted::ALL {
            for (operation, _) in counted.calls {
                let units = by_units.contains(operation);
                assert!(units != Item::of_operation(operation).is_some(), "{operation} of {}", counted.kind);
                assert!(!units || counted.half_reads + counted.writes > 0, "{}", counted.kind);
            }
        }
    }
}
