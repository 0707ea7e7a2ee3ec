//! Bytes that can be checked where they arrive without being kept: each 8-byte word is a function of its position.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const WORD: u64 = 8;
const CHUNK: u64 = 64 * 1024;

/// Writes `length` bytes of the pattern, which `seed` tells apart from others.
pub async fn send<W: AsyncWrite + Unpin>(to: &mut W, seed: u64, length: u64) -> Result<()> {
    let mut position = 0;
    while position < length {
        let size = CHUNK.min(length - position);
        to.write_all(&bytes(seed, position, size)).await?;
        position += size;
    }
    to.flush().await?;
    Ok(())
}

/// Reads `length` bytes and fails at the first that is not the pattern's.
pub async fn check<R: AsyncRead + Unpin>(from: &mut R, seed: u64, length: u64) -> Result<()> {
    let mut buffer = vec![0; usize::try_from(CHUNK)?];
    let mut position = 0;
    while position < length {
        let want = usize::try_from(CHUNK.min(length - position))?;
        let got = from.read(&mut buffer[..want]).await?;
        ensure!(got > 0, "the stream ended after {position} of {length} bytes");
        let size = u64::try_from(got)?;
        // From the start of the word that the position is in.
        let skipped = position % WORD;
        let expected = bytes(seed, position - skipped, size + skipped);
        let expected = &expected[usize::try_from(skipped)?..];
        if let Some(wrong) = buffer[..got].iter().zip(expected).position(|(a, b)| a != b) {
            anyhow::bail!("byte {} of {length} is not what was sent", position + u64::try_from(wrong)?);
        }
        position += size;
    }
    Ok(())
}

/// The pattern as a whole, for bodies.
pub fn body(seed: u64, length: u64) -> Vec<u8> {
    bytes(seed, 0, length)
}

/// `length` bytes from `position`, which is the start of a word.
fn bytes(seed: u64, position: u64, length: u64) -> Vec<u8> {
    let first = position / WORD;
    let words = (first..first + length.div_ceil(WORD)).flat_map(|word| mix(seed ^ word).to_le_bytes());
    words.take(usize::try_from(length).unwrap_or(usize::MAX)).collect()
}

/// splitmix64's last steps: neighbours look nothing alike, so shifted or repeated data is noticed.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_sent_is_accepted() {
        let mut sent = Vec::new();
        send(&mut sent, 1, 200_001).await.unwrap();
        assert_eq!(sent, body(1, 200_001));
        check(&mut sent.as_slice(), 1, 200_001).await.unwrap();
    }

    #[tokio::test]
    async fn anything_else_is_not() {
        let good = body(1, 100_000);
        let mut flipped = good.clone();
        flipped[77_777] ^= 1;
        assert!(check(&mut flipped.as_slice(), 1, 100_000).await.unwrap_err().to_string().contains("byte 77777"));
        let mut repeated = good.clone();
        repeated.copy_within(0..4096, 4096);
        assert!(check(&mut repeated.as_slice(), 1, 100_000).await.is_err());
        assert!(check(&mut &good[..99_999], 1, 100_000).await.is_err(), "short");
        assert!(check(&mut good.as_slice(), 2, 100_000).await.is_err(), "of another seed");
    }
}
