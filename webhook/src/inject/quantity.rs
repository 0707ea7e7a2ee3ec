//! Kubernetes quantities (`10m`, `1.5Gi`, `2e3`), read exactly enough to compare them.

use std::cmp::Ordering;

/// A quantity and how it was written, which is how it is written again.
#[derive(Debug, Clone)]
pub(super) struct Quantity<'a> {
    text: &'a str,
    nano: u128,
}

// === impl Quantity ===

impl<'a> Quantity<'a> {
    /// Reads one. `None` for what is none, is negative, or is beyond all that a pod could ask for.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let nano = digits.checked_mul(multiplier(suffix)?)?.div_ceil(scale);
        Some(Self { text, nano })
    }

    pub(super) fn as_str(&self) -> &'a str {
        self.text
    }
}

impl PartialEq for Quantity<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity<'_> {}

impl PartialOrd for Quantity<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

/// What a suffix stands for, in billionths.
fn multiplier(suffix: &str) -> Option<u128> {
    const NANO: u128 = 1_000_000_000;
    let decimal = |exponent: u32| 10_u128.checked_pow(exponent);
    let binary = |exponent: u32| NANO.checked_mul(1_u128.checked_shl(exponent)?);
    match suffix {
        "n" => Some(1),
        "u" => decimal(3),
        "m" => decimal(6),
        "" => decimal(9),
        "k" => decimal(12),
        "M" => decimal(15),
        "G" => decimal(18),
        "T" => decimal(21),
        "P" => decimal(24),
        "E" => decimal(27),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            decimal(u32::try_from(exponent.checked_add(9)?).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn ways_to_write_the_same() {
        for (a, b) in [
            ("1", "1000m"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("1Ki", "1024"),
            ("1.5Gi", "1536Mi"),
            ("2e3", "2k"),
            ("2E3", "2000"),
            ("1E", "1000P"),
            ("5e-1", "500m"),
        ] {
            assert_eq!(Quantity::parse(a).unwrap(), Quantity::parse(b).unwrap(), "{a} {b}");
        }
    }

    #[test]
    fn order() {
        for (less, more) in [("10m", "0.011"), ("64Mi", "64.1Mi"), ("64M", "64Mi"), ("0", "1n"), ("999m", "1")] {
            assert!(Quantity::parse(less).unwrap() < Quantity::parse(more).unwrap(), "{less} {more}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in ["", ".", "Mi", "-1", "1x", "1 Gi", "1e", "1..2", "1e99", "1.2.3"] {
            assert!(Quantity::parse(text).is_none(), "{text}");
        }
    }
}
