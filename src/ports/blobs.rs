use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use url::Url;

use super::{Progress, Result};
use crate::oci::Digest;
use crate::values::time::Timestamp;

/// Immutable content, addressed by its digest and stored once whatever the repository.
///
/// Storage never interprets the bytes. The core verifies that they match their digest, and publishes no others.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// The length in bytes of a stored blob, from the storage itself. `None`: not stored.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>>;

    /// Whether a blob that the ledger says is stored is there with its `size` bytes. Needs no network: an adapter that
    /// cannot tell without a request believes the ledger.
    async fn has(&self, _digest: &Digest, _size: u64) -> Result<bool> {
        Ok(true)
    }

    /// Where a client gets the bytes of a blob that the ledger says is stored with `size` bytes. Needs no network.
    /// `None`: the adapter can tell without a request that it is not there, or that its length is another.
    async fn locate(&self, digest: &Digest, size: u64) -> Result<Option<Location>>;

    /// Whether there is room for more: `Err` says that nothing new can be stored. Needs no network.
    async fn check_room(&self) -> Result<()> {
        Ok(())
    }

    /// Begins to store a blob of `size` bytes. `progress` receives [`Progress::Growing`] where the adapter lets readers
    /// follow.
    async fn begin(&self, digest: &Digest, size: u64, progress: &watch::Sender<Progress>) -> Result<Box<dyn Upload>>;

    /// Resumes an upload from a checkpoint at `offset`; `upload` is what [`Upload::checkpoint`] returned. Bytes that
    /// were written after it are discarded. `None`: the two do not match, or the upload is gone.
    async fn resume(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        upload: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<Box<dyn Upload>>>;

    /// Discards the uploads that belong to none of the `known` checkpoints and were not written to for `idle`. Returns
    /// how many they were.
    async fn abandon(&self, known: &HashSet<String>, idle: Duration) -> Result<usize>;

    /// Every stored blob once, in no order. One that is stored or removed meanwhile may be among them or not.
    fn list(&self) -> BoxStream<'_, Result<StoredBlob>>;

    /// Deletes the bytes of a blob. A reader that has opened them may read on; removing a blob that is not stored is a
    /// no-op.
    async fn remove(&self, digest: &Digest) -> Result<()>;
}

/// A blob on its way into storage. It becomes visible whole, by [`Self::publish`], or not at all; storing a blob twice
/// is a no-op. Memory stays bounded whatever the size.
///
/// Dropping it leaves what was written, as a crash does: an upload with a checkpoint can be resumed, others are
/// abandoned later.
#[async_trait]
pub trait Upload: Send {
    /// Where a checkpoint may lie: at multiples of so many bytes.
    fn unit(&self) -> u64;

    /// Waits until [`Self::write`] need not wait for earlier bytes. Nothing is lost if this is dropped.
    async fn room(&mut self) -> Result<()> {
        Ok(())
    }

    /// Takes the next bytes, which do not cross a multiple of the unit.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// How many bytes storage has, without a gap from the first one: a checkpoint there waits for none on their way.
    fn arrived(&self) -> u64;

    /// Once this is ready, the bytes up to `offset` survive a crash: a multiple of the unit that was written. Returns what
    /// [`Blobs::resume`] needs to go on there. Writing may go on meanwhile.
    fn checkpoint(&mut self, offset: u64) -> BoxFuture<'static, Result<String>>;

    /// Makes the blob visible. All of its bytes have been written, and their digest is verified.
    async fn publish(&mut self) -> Result<()>;

    /// Discards what was written.
    async fn discard(self: Box<Self>);
}

/// A stored blob, as the storage itself reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// When it was stored, by the storage's own clock.
    pub modified: Timestamp,
}

/// A URL that is a permission by itself: any client that has it may fetch the content. `Display` and `Debug` show its
/// origin only, because path and query can carry the signature.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedUrl(Url);

impl SignedUrl {
    /// The whole URL, for a client that may fetch the content.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl From<Url> for SignedUrl {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl fmt::Display for SignedUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.origin().ascii_serialization())
    }
}

impl fmt::Debug for SignedUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SignedUrl({self}/…)")
    }
}

/// Where the bytes of a stored blob are.
#[derive(Debug)]
pub enum Location {
    /// At a URL that needs no credentials, for some minutes (S3).
    Url(SignedUrl),
    /// In a file of this machine.
    File(Arc<File>),
    /// In memory: all its bytes.
    Memory(Bytes),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_url_shows_only_its_origin() {
        let url = Url::parse("https://cdn.example:8443/path/secret?X-Amz-Signature=secret").unwrap();
        let url = SignedUrl::from(url);
        assert_eq!(
            format!("{url} {:?}", Location::Url(url.clone())),
            "https://cdn.example:8443 Url(SignedUrl(https://cdn.example:8443/…))"
        );
        assert!(url.expose().as_str().ends_with("/path/secret?X-Amz-Signature=secret"));
    }
}
