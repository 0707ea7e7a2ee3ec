//! The hash by which the kernel knows header names and values, written once for both sides.
//!
//! Eight bytes a step, because a byte a step costs ten times as much in the kernel. It need not resist anybody: who
//! finds a collision is looked at by the agent, which compares the bytes.

/// Multiplier of a step, from the fractional part of the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// What the hash of a name starts from.
pub const NAME_SEED: u64 = 0x736c_7569_6365_0001;

/// Makes the letters of a word small and leaves digits, `-` and `_` of a name what they are or maps them one to one, so
/// that names which differ only in case, and no others of these bytes, become equal.
pub const LOWER: u64 = 0x2020_2020_2020_2020;

/// The next eight bytes.
#[must_use]
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(FACTOR);
    mixed ^ (mixed >> 29)
}

/// The first `bytes` bytes (at most 7) of a word that was read in memory order, the others 0.
#[must_use]
#[inline(always)]
pub const fn first_bytes(word: u64, bytes: u32) -> u64 {
    // Little-endian, as the target `bpfel` and every machine that loads it is.
    word & ((1_u64 << ((bytes & 7) * 8)) - 1)
}

/// The end of a text of this length.
#[must_use]
#[inline(always)]
pub const fn finish(hash: u64, length: u32) -> u64 {
    mix(hash, length as u64)
}

/// Hash of a header's name, in any case.
#[must_use]
pub const fn name_hash(name: &[u8]) -> u64 {
    whole(NAME_SEED, name, LOWER)
}

/// Hash of a value of the header whose name has this hash.
#[must_use]
pub const fn value_hash(name_hash: u64, value: &[u8]) -> u64 {
    whole(name_hash, value, 0)
}

/// Which of 128 bits a name has: by its first eight bytes, `word` as it was read, of which `length` are the name's.
#[must_use]
#[inline(always)]
pub const fn name_bit(word: u64, length: u32) -> u32 {
    let lower = word | LOWER;
    name_bit_of(if length < 8 { first_bytes(lower, length) } else { lower })
}

/// The same, of the name's first eight bytes in lower case, with zeros behind its end.
#[must_use]
#[inline(always)]
pub const fn name_bit_of(first: u64) -> u32 {
    (first.wrapping_mul(FACTOR) >> 57) as u32
}

const fn whole(mut hash: u64, text: &[u8], lower: u64) -> u64 {
    let (words, rest) = text.as_chunks::<8>();
    let mut n = 0;
    while n < words.len() {
        hash = mix(hash, u64::from_le_bytes(words[n]) | lower);
        n += 1;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 7, and no head is that long")]
    let (length, bytes) = (text.len() as u32, rest.len() as u32);
    hash = mix(hash, first_bytes(word_of(rest) | lower, bytes));
    finish(hash, length)
}

/// The first eight bytes of a text, with zeros behind its end.
#[must_use]
pub const fn word_of(text: &[u8]) -> u64 {
    let (mut word, mut n) = ([0; 8], 0);
    while n < text.len() && n < 8 {
        word[n] = text[n];
        n += 1;
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_equal_in_any_case_and_values_are_not() {
        assert_eq!(name_hash(b"X-Sluice-Dev"), name_hash(b"x-sluice-dEV"));
        assert_ne!(name_hash(b"x-sluice-dev"), name_hash(b"x-sluice-dex"));
        let name = name_hash(b"x-dev");
        assert_ne!(value_hash(name, b"Anna"), value_hash(name, b"anna"));
        assert_ne!(value_hash(name, b"anna"), value_hash(name_hash(b"x-dez"), b"anna"));
    }

    #[test]
    fn length_counts_where_bytes_do_not() {
        assert_ne!(value_hash(0, b"a"), value_hash(0, b"a\0"));
        assert_ne!(value_hash(0, b""), value_hash(0, b"\0\0\0\0\0\0\0\0"));
        assert_ne!(name_hash(b"12345678"), name_hash(b"1234567"));
    }
}
