//! What the demo shows: lines for a person, or one JSON document for a program.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use serde::Serialize;

/// Width of the column that says what was sent.
const SENT_WIDTH: usize = 28;

/// The document that `--json` prints.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Whether every request was answered by whom it should have been.
    pub ok: bool,
    /// Why the demo has stopped early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What was shown so far.
    pub scenes: Vec<SceneReport>,
}

/// One scene.
#[derive(Debug, Serialize)]
pub struct SceneReport {
    /// `before`, `all-tcp` or `header`.
    pub name: &'static str,
    /// In the order in which they were sent.
    pub requests: Vec<RequestReport>,
}

/// One request.
#[derive(Debug, Serialize)]
pub struct RequestReport {
    /// Method and path.
    pub what: &'static str,
    /// The header that makes the difference, if it was sent.
    pub header: Option<&'static str>,
    /// Who should answer.
    pub expected: &'static str,
    /// Who has answered.
    pub answered_by: String,
    /// From the first byte of the request to the last of the response.
    pub micros: u128,
}

/// Where the lines go. Says nothing while a JSON document is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    silent: bool,
    colour: bool,
}

// === impl Document ===

impl Document {
    /// A demo that has stopped before its end.
    pub fn stopped(error: String, scenes: Vec<SceneReport>) -> Self {
        Self { ok: false, error: Some(error), scenes }
    }

    /// A demo that was shown to its end.
    pub fn complete(scenes: Vec<SceneReport>) -> Self {
        let ok = scenes.iter().flat_map(|scene| &scene.requests).all(RequestReport::is_right);
        Self { ok, error: None, scenes }
    }
}

// === impl RequestReport ===

impl RequestReport {
    /// Whether the right one has answered.
    pub fn is_right(&self) -> bool {
        self.answered_by == self.expected
    }
}

// === impl Terminal ===

impl Terminal {
    /// Standard output; in colour only where somebody sees it.
    pub fn new(silent: bool) -> Self {
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { silent, colour }
    }

    /// A line.
    pub fn line(self, text: &str) {
        if !self.silent {
            // A terminal that was closed is no reason to stop before everything is taken down.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// The title of a part.
    pub fn title(self, text: &str) {
        self.line("");
        self.line(&self.paint("1", text));
    }

    /// A request: what was sent, who has answered, how long it took.
    pub fn request(self, request: &RequestReport) {
        let sent = match request.header {
            Some(header) => format!("{}   {header}", request.what),
            None => request.what.to_owned(),
        };
        let who = format!("{:<8}", request.answered_by);
        let colour = if request.answered_by == "laptop" { "33" } else { "36" };
        let took = milliseconds(Duration::from_micros(u64::try_from(request.micros).unwrap_or(u64::MAX)));
        let verdict = match request.is_right() {
            true => String::new(),
            false => self.paint("31", &format!("   WRONG: should have been {}", request.expected)),
        };
        self.line(&format!("     {sent:<SENT_WIDTH$} answered by {}{took:>9}{verdict}", self.paint(colour, &who)));
    }

    /// A remark that is less important than the rest.
    pub fn aside(self, text: &str) {
        self.line(&self.paint("2", text));
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(expected: &'static str, answered_by: &str) -> RequestReport {
        RequestReport { what: "POST /tic", header: None, expected, answered_by: answered_by.to_owned(), micros: 1500 }
    }

    #[test]
    fn one_wrong_answer_makes_it_fail() {
        let scene = |requests| SceneReport { name: "before", requests };
        assert!(Document::complete(vec![scene(vec![request("pod", "pod")])]).ok);
        assert!(!Document::complete(vec![scene(vec![request("pod", "pod"), request("laptop", "pod")])]).ok);
    }

    #[test]
    fn the_document_has_the_promised_shape() {
        let document = Document::complete(vec![SceneReport { name: "before", requests: vec![request("pod", "pod")] }]);
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"ok":true,"scenes":[{"name":"before","requests":[{"what":"POST /tic","header":null,"expected":"pod","answered_by":"pod","micros":1500}]}]}"#
        );
    }
}
