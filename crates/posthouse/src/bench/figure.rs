//! A figure, as a line of a table and as JSON.

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured, and through which door.
    pub name: String,
    /// The median over all rounds.
    pub value: f64,
    /// Of `value` and `disk`.
    pub unit: &'static str,
    /// What the disk alone did in the same run, in the same unit: bodies of this size
    /// in pieces of the frames' size, one fdatasync each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<f64>,
    /// The median of `value / disk` of every round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The median of `value` through this door by that of the first door, round by
    /// round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_first_door: Option<f64>,
    /// Half took at most so long, in milliseconds.
    pub p50_ms: f64,
    /// All but a hundredth took at most so long, in milliseconds.
    pub p99_ms: f64,
    /// What one operation of the disk took, p99, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_p99_ms: Option<f64>,
    /// Bytes of the frames that the node wrote, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_bytes: Option<f64>,
    /// What was set.
    pub size: usize,
    /// Messages of one publish.
    pub batch: usize,
    /// Connections that publish.
    pub producers: usize,
    /// Connections that consume.
    pub consumers: usize,
    /// Topics.
    pub topics: usize,
    /// Publishes that a producer has under way.
    pub depth: usize,
    /// Seconds of a round.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// When a message counted as durable.
    pub durability: String,
}

impl Figure {
    /// The line above all lines.
    pub const HEAD: &'static str = "                                 value unit         disk  \
                                    ratio  of first   p50 ms   p99 ms  disk p99";

    /// As a line under [`Figure::HEAD`].
    pub fn line(&self) -> String {
        let or_dash = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let disk = self.disk.map_or_else(|| "-".to_owned(), short);
        format!(
            "{:<28} {:>9} {:<9} {:>7} {:>6}  {:>8} {:>8.2} {:>8.2}  {:>8}",
            self.name,
            short(self.value),
            self.unit,
            disk,
            or_dash(self.ratio, 2),
            or_dash(self.of_first_door, 2),
            self.p50_ms,
            self.p99_ms,
            or_dash(self.disk_p99_ms, 2),
        )
    }
}

/// A number in few letters: `1.25M`, `430k`, `9.31`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2}G", v / 1e9),
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

/// The middle of some values.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_few_letters() {
        let shown = [1_250_000.0, 430_400.0, 999.6, 9.306, 1.8e9].map(short);
        assert_eq!(shown, ["1.25M", "430k", "1000", "9.31", "1.80G"]);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }
}
