//! Bytes that can be checked where they arrive without being kept: each is a function of its position.
//!
//! The same noise again and again, of a length that has no factor in common with any buffer's: what is lost, repeated
//! or swapped on the way does not fit. Copying and comparing it is quick also where nothing is optimised.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Length of the noise: a prime.
const PERIOD: usize = 65_521;
/// Bytes sent and read at a time.
const CHUNK: usize = 64 * 1024;

/// The pattern that a seed stands for.
#[derive(Debug)]
pub struct Pattern {
    /// The noise, and as much of it again as makes every piece contiguous.
    noise: Vec<u8>,
}

/// Writes `length` bytes of the pattern, which `seed` tells apart from others.
pub async fn send<W: AsyncWrite + Unpin>(to: &mut W, seed: u64, length: u64) -> Result<()> {
    let pattern = Pattern::new(seed);
    let mut position = 0;
    while position < length {
        let piece = pattern.piece(position, length - position);
        to.write_all(piece).await?;
        position += u64::try_from(piece.len())?;
    }
    to.flush().await?;
    Ok(())
}

/// Reads `length` bytes and fails at the first that is not the pattern's.
pub async fn check<R: AsyncRead + Unpin>(from: &mut R, seed: u64, length: u64) -> Result<()> {
    let pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < length {
        let expected = pattern.piece(position, length - position);
        let got = from.read(&mut buffer[..expected.len()]).await?;
        ensure!(got > 0, "the stream ended after {position} of {length} bytes");
        if buffer[..got] != expected[..got] {
            let wrong = buffer[..got].iter().zip(expected).position(|(a, b)| a != b).unwrap_or_default();
            anyhow::bail!("byte {} of {length} is not what was sent", position + u64::try_from(wrong)?);
        }
        position += u64::try_from(got)?;
    }
    Ok(())
}

/// The pattern as a whole, for bodies.
pub fn body(seed: u64, length: u64) -> Vec<u8> {
    let pattern = Pattern::new(seed);
    let mut body = Vec::new();
    loop {
        let position = u64::try_from(body.len()).unwrap_or(length);
        match pattern.piece(position, length.saturating_sub(position)) {
            [] => return body,
            piece => body.extend_from_slice(piece),
        }
    }
}

// === impl Pattern ===

impl Pattern {
    /// Makes the noise.
    pub fn new(seed: u64) -> Self {
        let words = (0..).map(|word: u64| mix(mix(seed) ^ word).to_le_bytes());
        let mut noise: Vec<u8> = words.take(PERIOD.div_ceil(8)).flatten().take(PERIOD).collect();
        noise.extend_from_within(..);
        Self { noise }
    }

    /// What stands at a position: as much as is handy, `most` bytes at most.
    pub fn piece(&self, position: u64, most: u64) -> &[u8] {
        let period = u64::try_from(PERIOD).unwrap_or(u64::MAX);
        let begin = usize::try_from(position % period).unwrap_or_default();
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(PERIOD);
        &self.noise[begin..begin + length]
    }
}

/// splitmix64's last steps: neighbours look nothing alike.
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
