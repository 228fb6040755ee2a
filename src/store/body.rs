//! Bodies as streams of bytes that can be read more than once.

use std::io::SeekFrom;
use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Body, ByteFlow, Piece, StoreError};

/// A file is read in pieces of this many bytes.
const CHUNK: usize = 64 << 10;

impl Body {
    /// Bytes in memory.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self { pieces: vec![Piece::Bytes(bytes.into())] }
    }

    /// A range of a file.
    #[must_use]
    pub fn file(path: &Path, offset: u64, len: u64) -> Self {
        Self { pieces: vec![Piece::File { path: path.to_owned(), offset, len }] }
    }

    /// All bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Bytes(bytes) => bytes.len() as u64,
                Piece::File { len, .. } => *len,
            })
            .sum()
    }

    /// Reads it from the beginning. A file that has become shorter is an error.
    #[must_use]
    pub fn flow(&self) -> BoxStream<'static, std::io::Result<Bytes>> {
        let pieces = self.pieces.clone();
        futures_util::stream::iter(pieces)
            .flat_map(|piece| match piece {
                Piece::Bytes(bytes) => futures_util::stream::once(async move { Ok(bytes) }).boxed(),
                Piece::File { path, offset, len } => file_flow(path, offset, len),
            })
            .boxed()
    }
}

fn file_flow(path: std::path::PathBuf, offset: u64, len: u64) -> BoxStream<'static, std::io::Result<Bytes>> {
    let state = (path, offset, len, None::<tokio::fs::File>);
    futures_util::stream::try_unfold(state, |(path, offset, left, file)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut file = match file {
            Some(file) => file,
            None => {
                let mut file = tokio::fs::File::open(&path).await?;
                file.seek(SeekFrom::Start(offset)).await?;
                file
            }
        };
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = vec![0; want];
        file.read_exact(&mut chunk).await?;
        Ok(Some((Bytes::from(chunk), (path, offset, left - want as u64, Some(file)))))
    })
    .boxed()
}

/// All bytes of a stream, for small objects.
///
/// # Errors
/// The stream's error, or when there are more than `max` bytes.
pub async fn collect(mut flow: ByteFlow, key: &str, max: usize) -> Result<Bytes, StoreError> {
    let mut all = Vec::new();
    while let Some(chunk) = flow.next().await {
        all.extend_from_slice(&chunk?);
        if all.len() > max {
            let (expected, found) = (format!("at most {max} bytes"), "more".to_owned());
            return Err(StoreError::Corrupt { key: key.to_owned(), expected, found });
        }
    }
    Ok(all.into())
}
