//! Numbers as the benchmark needs them: from counts and times, over rounds, and rounded for its document.

use std::time::Duration;

use serde::Serializer;

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// No number where there are no values.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count or a time, never that large")]
pub(super) fn whole<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(value.round() as u64)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
pub(super) fn hundredths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1e2).round() / 1e2)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
pub(super) fn thousandths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1e3).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let median = |values: &[f64]| median(values.iter().copied());
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
