//! What is stored, page by page: the keys of the ledger are in the order that a page has.

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use super::ledger::{EmbeddedLedger, HOLDING, manifests_key, repository_in, tag_key};
use super::store::{corrupt, split};
use crate::oci::{Algorithm, Digest, Manifest, Repository, Tag};
use crate::ports::{Inventory, Ledger as _, Result, Section};
use crate::records::{Holding, TagRecord};
use crate::values::time::Timestamp;

/// Comes behind every character of a name or a tag.
const END: char = '~';

fn parsed<T: DeserializeOwned>(item: &[u8]) -> Result<T> {
    serde_json::from_slice(split(item)?.1).map_err(corrupt)
}

#[async_trait]
impl Inventory for EmbeddedLedger {
    async fn holdings(&self, section: &Section) -> Result<Vec<(Repository, Holding)>> {
        let Section { prefix, after, most } = section;
        let (from, end) = (after.as_ref().max(Some(prefix)), format!("{HOLDING}{prefix}{END}"));
        // A repository may be called what the prefix is.
        let from = format!("{HOLDING}{}", from.map_or("", String::as_str));
        let items = self.0.scan_within(&from, after.as_ref().is_none_or(|after| after < prefix), &end, *most)?;
        let holding = |(key, item): &(String, Vec<u8>)| -> Result<_> {
            Ok((repository_in(key, key.strip_prefix(HOLDING).unwrap_or_default())?, parsed(item)?))
        };
        items.iter().map(holding).collect()
    }

    async fn tags(&self, repository: &Repository, after: Option<&Tag>, most: usize) -> Result<Vec<(Tag, TagRecord)>> {
        let all = tag_key(repository, "");
        let (mut from, end) = (tag_key(repository, after.map_or("", Tag::as_str)), format!("{all}{END}"));
        let mut tags = Vec::new();
        while tags.len() < most {
            let items = self.0.scan_within(&from, false, &end, most - tags.len())?;
            let Some((last, _)) = items.last() else { break };
            last.clone_into(&mut from);
            for (key, item) in &items {
                // Between tags there are the digests that are asked for.
                match key.strip_prefix(&all).and_then(|tag| tag.parse().ok()) {
                    Some(tag) => tags.push((tag, parsed(item)?)),
                    None => from = from.max(behind_digests(&all, key)),
                }
            }
        }
        Ok(tags)
    }

    async fn digests(&self, repository: &Repository, after: Option<&Digest>, most: usize) -> Result<Vec<Digest>> {
        let all = manifests_key(repository, "");
        let (mut from, end) = (manifests_key(repository, after.map_or("", Digest::as_str)), format!("{all}{END}"));
        let mut digests = Vec::new();
        while digests.len() < most {
            let items = self.0.scan_within(&from, false, &end, most - digests.len())?;
            let Some((last, _)) = items.last() else { break };
            last.clone_into(&mut from);
            for (key, _) in &items {
                digests.push(key.strip_prefix(&all).unwrap_or_default().parse().map_err(corrupt)?);
            }
        }
        Ok(digests)
    }

    async fn manifests(&self, repository: &Repository, digests: &[Digest]) -> Result<Vec<(Manifest, Timestamp)>> {
        let mut found = Vec::new();
        for digest in digests {
            found.extend(self.manifest(repository, digest).await?);
        }
        Ok(found)
    }
}

/// The key behind all digests of the algorithm that this key has.
fn behind_digests(all: &str, key: &str) -> String {
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512].map(Algorithm::name).into_iter();
    let of = algorithm.map(|name| format!("{all}{name}:")).find(|begin| key.starts_with(begin));
    of.map_or_else(|| key.to_owned(), |begin| format!("{begin}{END}"))
}
