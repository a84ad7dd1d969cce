//! Bodies of objects: streamed to and from files, so that memory stays small whatever their size.

use std::{collections::VecDeque, io::SeekFrom, ops::Range, path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use md5::{Digest, Md5};
use s3s::{
    S3Result, TrailingHeaders,
    checksum::ChecksumHasher,
    crypto::Checksum as _,
    dto::{Checksum, StreamingBlob},
    s3_error,
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

/// The most one PUT may carry, in bytes.
const MAX_PUT: u64 = 5 * 1024 * 1024 * 1024;

/// Bytes handed to the client at a time.
const CHUNK: usize = 256 * 1024;

/// The bytes of one PUT. The file lives as long as an object, an upload or a running download needs it.
pub(super) struct Blob {
    file: tempfile::TempPath,
    pub(super) size: u64,
}

/// A body that proved to be what its headers said.
pub(super) struct Received {
    pub(super) blob: Arc<Blob>,
    pub(super) md5: [u8; 16],
    pub(super) checksum: Checksum,
}

/// What the headers promise about a body: at most one checksum, in a header or in a trailer.
struct Promise<'a> {
    algorithm: Option<&'static str>,
    header: Option<&'a [u8]>,
}

const ALGORITHMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

impl<'a> Promise<'a> {
    fn read(headers: &'a HeaderMap) -> S3Result<Self> {
        let trailer = headers.get("x-amz-trailer").map_or("", |names| names.to_str().unwrap_or_default());
        let mut promises = ALGORITHMS.into_iter().filter_map(|algorithm| {
            let name = format!("x-amz-checksum-{algorithm}");
            let header = headers.get(&name).map(http::HeaderValue::as_bytes);
            let trailing = trailer.split(',').any(|trailing| trailing.trim().eq_ignore_ascii_case(&name));
            (header.is_some() || trailing).then_some(Self { algorithm: Some(algorithm), header })
        });
        let promise = promises.next().unwrap_or(Self { algorithm: None, header: None });
        if promises.next().is_some() {
            return Err(s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
            ));
        }
        if let Some(said) = headers.get("x-amz-sdk-checksum-algorithm")
            && !promise.algorithm.is_some_and(|algorithm| said.as_bytes().eq_ignore_ascii_case(algorithm.as_bytes()))
        {
            return Err(s3_error!(
                InvalidRequest,
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found."
            ));
        }
        Ok(promise)
    }

    fn hasher(&self) -> ChecksumHasher {
        let mut hasher = ChecksumHasher::default();
        match self.algorithm {
            Some("crc32") => hasher.crc32 = Some(s3s::crypto::Crc32::new()),
            Some("crc32c") => hasher.crc32c = Some(s3s::crypto::Crc32c::new()),
            Some("crc64nvme") => hasher.crc64nvme = Some(s3s::crypto::Crc64Nvme::new()),
            Some("sha1") => hasher.sha1 = Some(s3s::crypto::Sha1::new()),
            Some("sha256") => hasher.sha256 = Some(s3s::crypto::Sha256::new()),
            _ => {}
        }
        hasher
    }

    fn check(&self, computed: &Checksum, trailers: Option<&TrailingHeaders>) -> S3Result<()> {
        let Some(algorithm) = self.algorithm else {
            return Ok(());
        };
        let computed = value_of(computed, algorithm).unwrap_or_default();
        let promised = self.header.map(<[u8]>::to_vec).or_else(|| {
            let name = format!("x-amz-checksum-{algorithm}");
            trailers?.read(|trailers| trailers.get(name).map(|value| value.as_bytes().to_vec()))?
        });
        if promised.as_deref() == Some(computed.as_bytes()) {
            Ok(())
        } else {
            Err(s3_error!(
                BadDigest,
                "The {} you specified did not match the calculated checksum.",
                algorithm.to_uppercase()
            ))
        }
    }
}

/// The checksum of that algorithm (in lower case), in base64.
pub(super) fn value_of<'a>(checksum: &'a Checksum, algorithm: &str) -> Option<&'a str> {
    match algorithm {
        "crc32" => checksum.checksum_crc32.as_deref(),
        "crc32c" => checksum.checksum_crc32c.as_deref(),
        "crc64nvme" => checksum.checksum_crc64nvme.as_deref(),
        "sha1" => checksum.checksum_sha1.as_deref(),
        "sha256" => checksum.checksum_sha256.as_deref(),
        _ => None,
    }
}

/// Writes a body to a file and checks length, MD5 and checksum; on any error the file is gone.
pub(super) async fn receive(
    directory: &Path,
    body: Option<StreamingBlob>,
    length: Option<i64>,
    headers: &HeaderMap,
    trailers: Option<&TrailingHeaders>,
) -> S3Result<Received> {
    let promise = Promise::read(headers)?;
    let length = length
        .and_then(|length| u64::try_from(length).ok())
        .ok_or_else(|| s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."))?;
    if length > MAX_PUT {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }

    let (file, path) = tempfile::NamedTempFile::new_in(directory).map_err(internal)?.into_parts();
    let mut file = File::from_std(file);
    let (mut size, mut md5, mut hasher) = (0, Md5::new(), promise.hasher());
    let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
    while let Some(chunk) = body.next().await {
        // s3s ends a body with an error when it is cut short or differs from its signed hash.
        let chunk = chunk.map_err(|error| s3_error!(IncompleteBody, "{error}"))?;
        size += chunk.len() as u64;
        md5.update(&chunk);
        hasher.update(&chunk);
        file.write_all(&chunk).await.map_err(internal)?;
    }
    file.flush().await.map_err(internal)?;

    if size != length {
        return Err(s3_error!(
            IncompleteBody,
            "You did not provide the number of bytes specified by the Content-Length HTTP header"
        ));
    }
    let md5: [u8; 16] = md5.finalize().into();
    if let Some(promised) = headers.get("content-md5")
        && promised.as_bytes() != BASE64_STANDARD.encode(md5).as_bytes()
    {
        return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
    }
    let checksum = hasher.finalize();
    promise.check(&checksum, trailers)?;
    Ok(Received { blob: Arc::new(Blob { file: path, size }), md5, checksum })
}

/// Streams `range` of the concatenated blobs.
pub(super) fn send(blobs: &[Arc<Blob>], range: &Range<u64>) -> StreamingBlob {
    let mut pieces = VecDeque::new();
    let mut start = 0;
    for blob in blobs {
        let (from, to) = (range.start.max(start), range.end.min(start + blob.size));
        if from < to {
            pieces.push_back((Arc::clone(blob), from - start..to - start));
        }
        start += blob.size;
    }
    StreamingBlob::wrap(stream::try_unfold(Reader { pieces, open: None }, Reader::next))
}

struct Reader {
    pieces: VecDeque<(Arc<Blob>, Range<u64>)>,
    open: Option<(File, u64)>,
}

impl Reader {
    async fn next(mut self) -> std::io::Result<Option<(Bytes, Self)>> {
        loop {
            if let Some((file, remaining)) = &mut self.open
                && *remaining > 0
            {
                let wanted = (*remaining).min(CHUNK as u64);
                let mut chunk = BytesMut::with_capacity(CHUNK);
                let read = (&mut *file).take(wanted).read_buf(&mut chunk).await?;
                if read == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                *remaining -= read as u64;
                return Ok(Some((chunk.freeze(), self)));
            }
            let Some((blob, range)) = self.pieces.pop_front() else {
                return Ok(None);
            };
            let mut file = File::open(&blob.file).await?;
            file.seek(SeekFrom::Start(range.start)).await?;
            self.open = Some((file, range.end - range.start));
        }
    }
}

fn internal(error: std::io::Error) -> s3s::S3Error {
    s3_error!(error, InternalError)
}
