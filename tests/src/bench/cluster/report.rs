//! What the benchmark on a cluster prints: a table for people or one JSON document for programs.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

/// The document that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Document {
    /// What was measured.
    pub cluster: Measured,
    /// The targets that apply to it.
    pub targets: Vec<Target>,
    /// Why there is no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Processors of this machine.
    #[serde(skip)]
    pub cpus: usize,
    /// Load average of the last minute when the benchmark began.
    #[serde(skip)]
    pub load_before: f64,
}

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// The server's version.
    pub kubernetes: String,
    /// One for each way and number of pods.
    pub rows: Vec<Row>,
    /// Left out where the Service's network is not on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// `sluice intercept add`, from the start of the process until it says that it intercepts.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `intercept-add`, or `intercept-add-forwarded` where some pod could not be reached directly.
    pub case: &'static str,
    /// Pods of the workload.
    pub replicas: u32,
    /// How the client has reached the pods: `direct` or `port-forward`.
    pub way: String,
    /// How often it was measured.
    pub runs: usize,
    /// In milliseconds, as the others.
    pub median_ms: f64,
    /// The quickest.
    pub min_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// Reviews of pods by the webhook, each from the moment when it was due until its answer.
#[derive(Clone, Debug, Serialize)]
pub struct Webhook {
    /// How many are due in a second, one by one.
    pub reviews_per_second: u32,
    /// For how long.
    pub seconds: u32,
    /// Half of the reviews took no longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 of a hundred took no longer.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// How many were not answered by a patch.
    pub errors: usize,
    /// What the first of those was answered by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How late 99 of a hundred were sent at most, which is part of the above and none of the webhook's.
    #[serde(skip)]
    pub late_p99_ms: f64,
}

/// A number and what it should be at most.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What is meant.
    pub what: String,
    /// What was measured.
    pub value: f64,
    /// What it should be at most.
    pub limit: f64,
    /// Whether it is.
    pub met: bool,
}

/// Milliseconds, as exactly as they are printed.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 1e2
}

// === impl Document ===

impl Document {
    /// Compares what was measured with the targets.
    pub fn judge(&mut self) {
        /// What a person who waits does not notice.
        const ADDED_WITHIN_MS: f64 = 500.0;
        /// So little of a pod's start that nobody sees it.
        const REVIEWED_WITHIN_MS: f64 = 5.0;
        let direct = self.cluster.rows.iter().filter(|row| row.case == "intercept-add");
        let added = direct.map(|row| {
            let what = format!("{}, replicas: {}: median of {}, ms", row.case, row.replicas, row.runs);
            Target::at_most(what, row.median_ms, ADDED_WITHIN_MS)
        });
        let reviewed = self.cluster.webhook.iter().flat_map(|webhook| {
            let errors = f64::from(u32::try_from(webhook.errors).unwrap_or(u32::MAX));
            [
                Target::at_most("webhook: p99, ms".to_owned(), webhook.p99_ms, REVIEWED_WITHIN_MS),
                Target::at_most("webhook: errors".to_owned(), errors, 0.0),
            ]
        });
        self.targets = added.chain(reviewed).collect();
    }

    /// For people.
    pub fn table(&self) -> String {
        /// Load from which the numbers say more about others.
        const BUSY: f64 = 0.7;
        /// The same of the time by which reviews are sent too late.
        const LATE_MS: f64 = 1.0;
        let Measured { kubernetes, rows, webhook } = &self.cluster;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<25}{:>8}  {:<14}{:>5}{:>11}{:>9}{:>9}",
            "case", "replicas", "way", "runs", "median ms", "min ms", "max ms"
        );
        for Row { case, replicas, way, runs, median_ms, min_ms, max_ms } in rows {
            let _ = writeln!(
                text,
                "{case:<25}{replicas:>8}  {way:<14}{runs:>5}{median_ms:>11.0}{min_ms:>9.0}{max_ms:>9.0}"
            );
        }
        text.push_str("From the start of `sluice intercept add` until it says that it intercepts.\n");
        if let Some(webhook) = webhook {
            let Webhook { reviews_per_second, seconds, p50_ms, p99_ms, max_ms, errors, error, late_p99_ms } = webhook;
            let _ = writeln!(
                text,
                "\nwebhook: {reviews_per_second} reviews a second for {seconds} s: p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, \
                 max {max_ms:.2} ms; errors: {errors}"
            );
            if *late_p99_ms > LATE_MS {
                let _ = writeln!(
                    text,
                    "WARNING: this program itself was late: 99 of a hundred reviews were sent within {late_p99_ms:.2} ms of \
                     their time: the slow ones say little about the webhook."
                );
            }
            if let Some(error) = error {
                let _ = writeln!(text, "WARNING: the first error: {error}");
            }
        } else {
            text.push_str("\nwebhook: not measured: the Service's network is not on this machine\n");
        }
        let _ = writeln!(
            text,
            "\nKubernetes {kubernetes}; {} processors here, load average before: {:.2}",
            self.cpus, self.load_before
        );
        if self.load_before > BUSY {
            text.push_str(
                "WARNING: the machine was busy with something else; only a quiet one gives numbers to rely on.\n",
            );
        }
        text.push_str("\nTargets\n");
        for Target { what, value, limit, met } in &self.targets {
            let verdict = if *met { "met   " } else { "MISSED" };
            let _ = writeln!(text, "  {verdict} {what}: {value:.2} (at most {limit:.2})");
        }
        text
    }
}

// === impl Row ===

impl Row {
    /// Of the times of all runs, of which there is at least one.
    pub(super) fn of(case: &'static str, replicas: u32, way: String, times: &[Duration]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        Self {
            case,
            replicas,
            way,
            runs: sorted.len(),
            median_ms: millis((at(last / 2) + at(last.div_ceil(2))) / 2),
            min_ms: millis(at(0)),
            max_ms: millis(at(last)),
        }
    }
}

// === impl Target ===

impl Target {
    fn at_most(what: String, value: f64, limit: f64) -> Self {
        Self { what, value, limit, met: value <= limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_the_promised_shape() {
        let times = [400, 300, 900, 700].map(Duration::from_millis);
        let rows = vec![
            Row::of("intercept-add", 1, "direct".to_owned(), &times),
            Row::of("intercept-add-forwarded", 1, "port-forward".to_owned(), &times[..1]),
        ];
        let webhook = Webhook {
            reviews_per_second: 200,
            seconds: 10,
            p50_ms: 1.5,
            p99_ms: 4.0,
            max_ms: 9.25,
            errors: 0,
            error: None,
            late_p99_ms: 0.0,
        };
        let cluster = Measured { kubernetes: "v1.34.1".to_owned(), rows, webhook: Some(webhook) };
        let mut document = Document { cluster, ..Document::default() };
        document.judge();
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            concat!(
                r#"{"cluster":{"kubernetes":"v1.34.1","rows":["#,
                r#"{"case":"intercept-add","replicas":1,"way":"direct","runs":4,"median_ms":550.0,"min_ms":300.0,"max_ms":900.0},"#,
                r#"{"case":"intercept-add-forwarded","replicas":1,"way":"port-forward","runs":1,"#,
                r#""median_ms":400.0,"min_ms":400.0,"max_ms":400.0}],"#,
                r#""webhook":{"reviews_per_second":200,"seconds":10,"p50_ms":1.5,"p99_ms":4.0,"max_ms":9.25,"errors":0}},"#,
                r#""targets":[{"what":"intercept-add, replicas: 1: median of 4, ms","value":550.0,"limit":500.0,"met":false},"#,
                r#"{"what":"webhook: p99, ms","value":4.0,"limit":5.0,"met":true},"#,
                r#"{"what":"webhook: errors","value":0.0,"limit":0.0,"met":true}]}"#,
            )
        );
        let table = document.table();
        assert!(
            table.contains("MISSED intercept-add, replicas: 1: median of 4, ms: 550.00 (at most 500.00)"),
            "{table}"
        );
    }
}
