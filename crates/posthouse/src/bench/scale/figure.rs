//! One figure of a scale work, as a line of a table and as JSON.

use serde::{Deserialize, Serialize};

use super::host::Host;
use super::probe;

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScaleFigure {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Of `value` and `beside`.
    pub unit: String,
    /// What it is compared with, measured in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<f64>,
    /// `value / beside`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Half took at most so long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// All but a hundredth took at most so long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Memory of the process at that moment, load and node together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Room that the data directory takes on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// What it must show, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub must: Option<String>,
    /// Whether it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
}

impl ScaleFigure {
    /// The line above all lines.
    pub const HEAD: &'static str = "                                               value unit      \
                                    beside  ratio   p50 ms   p99 ms      rss     disk  must";

    /// A figure without anything beside it.
    pub(super) fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        ScaleFigure {
            name: name.into(),
            value,
            unit: unit.into(),
            beside: None,
            ratio: None,
            p50_ms: None,
            p99_ms: None,
            rss_bytes: probe::rss_bytes(),
            disk_bytes: None,
            must: None,
            holds: None,
        }
    }

    /// With the room that a node's data takes now.
    pub(super) fn on(mut self, host: &Host) -> Self {
        self.disk_bytes = Some(probe::disk_bytes(host.data()));
        self
    }

    /// With what it is compared with.
    pub(super) fn beside(mut self, beside: f64) -> Self {
        self.beside = Some(beside);
        self.ratio = (beside > 0.0).then_some(self.value / beside);
        self
    }

    /// With times, of which a histogram in nanoseconds says more.
    pub(super) fn times(mut self, times: &hdrhistogram::Histogram<u64>) -> Self {
        if !times.is_empty() {
            self.p50_ms = Some(times.value_at_quantile(0.5) as f64 / 1e6);
            self.p99_ms = Some(times.value_at_quantile(0.99) as f64 / 1e6);
        }
        self
    }

    /// With what it must show.
    pub(super) fn must(mut self, what: &str, holds: bool) -> Self {
        self.must = Some(what.into());
        self.holds = Some(holds);
        self
    }

    /// As a line under [`ScaleFigure::HEAD`].
    pub fn line(&self) -> String {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let digits = |value: Option<f64>| or_dash(value.map(|value| format!("{value:.2}")));
        let bytes = |value: Option<u64>| or_dash(value.map(|bytes| short(bytes as f64)));
        let holds = match self.holds {
            None => "",
            Some(true) => " (yes)",
            Some(false) => " (NO)",
        };
        format!(
            "{:<42} {:>9} {:<9} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}  {}{}",
            self.name,
            short(self.value),
            self.unit,
            or_dash(self.beside.map(short)),
            digits(self.ratio),
            digits(self.p50_ms),
            digits(self.p99_ms),
            bytes(self.rss_bytes),
            bytes(self.disk_bytes),
            self.must.as_deref().unwrap_or(""),
            holds,
        )
        .trim_end()
        .to_owned()
    }
}

/// A number in few letters.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2}G", v / 1e9),
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whether_it_holds_what_it_must() {
        let figure = ScaleFigure::new("rate", 50.0, "msg/s").beside(100.0).must(">= 0.8", false);
        assert_eq!(figure.ratio, Some(0.5));
        assert!(figure.line().ends_with(">= 0.8 (NO)"), "{}", figure.line());
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!((json["holds"].as_bool(), json["p50_ms"].as_f64()), (Some(false), None));
    }
}
