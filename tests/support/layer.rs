//! The bytes of one layer: a tar of one file of pseudo-random content, plain or inside gzip, block by block.

use bytes::Bytes;

use crate::images::{Blob, Content};
use crate::sha256::Hasher;

/// A file's content is made in pieces of this many bytes.
const BLOCK: usize = 256 * 1024;

/// The longest stored block of deflate (RFC 1951, 3.2.4).
const STORED: usize = 65_535;

/// One layer, described by where its content starts in the sequence of random numbers.
pub(crate) struct Layer {
    seed: u64,
    position: u64,
    content: u64,
    gzip: bool,
}

/// What a manifest and a config say about a layer.
pub(crate) struct Measured {
    pub(crate) blob: Blob,
    /// The digest of the tar, whatever is around it.
    pub(crate) diff_id: String,
}

impl Layer {
    /// A layer with one file of `content` bytes; `position` tells the layers of one image apart.
    pub(crate) fn new(seed: u64, position: u64, content: u64, gzip: bool) -> Self {
        Self { seed, position, content, gzip }
    }

    /// Reads the layer once, to know its digests and its length.
    pub(crate) fn measure(&self) -> Measured {
        let blob = measure(self.blocks());
        let diff_id = if self.gzip { measure(self.tar()).digest } else { blob.digest.clone() };
        Measured { blob, diff_id }
    }

    /// The bytes as they travel.
    pub(crate) fn blocks(&self) -> Content {
        if self.gzip { Box::new(gzip(self.tar())) } else { Box::new(self.tar()) }
    }

    fn tar(&self) -> impl Iterator<Item = Bytes> + Send + use<> {
        let header = tar_header(&format!("layer-{}", self.position), self.content);
        let mut random = Random::new(self.seed ^ self.position.rotate_left(40));
        let mut left = usize::try_from(self.content).expect("a layer fits the address space");
        let padding = self.content.next_multiple_of(512) - self.content;
        let end = vec![0; usize::try_from(padding).expect("below 512") + 1024];
        let content = std::iter::from_fn(move || {
            let mut block = vec![0; left.min(BLOCK)];
            left -= block.len();
            random.fill(&mut block);
            (!block.is_empty()).then(|| Bytes::from(block))
        });
        std::iter::once(Bytes::from(header)).chain(content).chain(std::iter::once(Bytes::from(end)))
    }
}

fn measure(blocks: impl Iterator<Item = Bytes>) -> Blob {
    let (mut hasher, mut size) = (Hasher::default(), 0);
    for block in blocks {
        hasher.update(&block);
        size += block.len() as u64;
    }
    Blob { digest: hasher.digest(), size }
}

/// The header of a regular file (POSIX ustar), owned by root and dated 1970 so that it is always the same.
fn tar_header(name: &str, size: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |offset: usize, text: &str| {
        header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Wraps the bytes in gzip without compressing them (RFC 1952): random content does not compress anyway.
fn gzip(content: impl Iterator<Item = Bytes> + Send) -> impl Iterator<Item = Bytes> + Send {
    let header = Bytes::from_static(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    let (mut checksum, mut length) = (u32::MAX, 0_u32);
    let mut content = Some(content);
    let rest = std::iter::from_fn(move || {
        let blocks = content.as_mut()?;
        let mut stored = Vec::new();
        if let Some(block) = blocks.next() {
            checksum = crc32(checksum, &block);
            length = length.wrapping_add(u32::try_from(block.len()).expect("a block is short"));
            for part in block.chunks(STORED) {
                put_stored(&mut stored, part, false);
            }
        } else {
            content = None;
            put_stored(&mut stored, &[], true);
            stored.extend((!checksum).to_le_bytes());
            stored.extend(length.to_le_bytes());
        }
        Some(Bytes::from(stored))
    });
    std::iter::once(header).chain(rest)
}

fn put_stored(out: &mut Vec<u8>, part: &[u8], last: bool) {
    let length = u16::try_from(part.len()).expect("a stored block is short");
    out.push(u8::from(last));
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend(part);
}

/// The checksum of gzip, carried on from `state`; the first state is all ones, the last one is inverted.
fn crc32(state: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(state, |state, byte| {
        (0..8).fold(state ^ u32::from(*byte), |state, _| (state >> 1) ^ (0xedb8_8320 * (state & 1)))
    })
}

/// `SplitMix64`: reproducible bytes and moments, not for secrets.
pub struct Random(u64);

impl Random {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, uniform over all values.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.number().to_le_bytes()[..part.len()]);
        }
    }
}
