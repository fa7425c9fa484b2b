//! Figures of a bench: medians, a table for reading, and the same as JSON for whoever follows them over time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a figure should be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Aim {
    /// Not above this.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
    /// Nothing was asked for; the figure is for the reader.
    None,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
    against: String,
    aim: Aim,
    failure: Option<String>,
}

impl Row {
    /// The median of `samples`.
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        samples: Vec<f64>,
        against: impl Into<String>,
        aim: Aim,
    ) -> Row {
        Row { name: name.into(), unit, samples, against: against.into(), aim, failure: None }
    }

    /// A figure that could not be measured: not met.
    pub fn failed(name: impl Into<String>, unit: &'static str, aim: Aim, failure: impl Into<String>) -> Row {
        Row { name: name.into(), unit, samples: Vec::new(), against: String::new(), aim, failure: Some(failure.into()) }
    }

    /// What it is a figure of.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn value(&self) -> Option<f64> {
        median(&self.samples)
    }

    fn is_met(&self) -> bool {
        match (self.value(), self.aim) {
            (Some(value), Aim::AtMost(most)) => value <= most,
            (Some(value), Aim::AtLeast(least)) => value >= least,
            (Some(_), Aim::None) => true,
            (None, _) => false,
        }
    }

    fn json(&self) -> Value {
        let mut row = json!({
            "name": self.name, "value": self.value(), "unit": self.unit,
            "min": self.samples.iter().copied().reduce(f64::min), "max": self.samples.iter().copied().reduce(f64::max),
            "runs": self.samples.len(), "against": self.against,
            "aim": match self.aim { Aim::AtMost(aim) | Aim::AtLeast(aim) => Some(aim), Aim::None => None },
            "met": self.is_met(),
        });
        if let Some(failure) = &self.failure {
            row["reason"] = json!(failure);
        }
        row
    }

    fn line(&self) -> String {
        let decimals = if self.unit == "x" || self.unit == "s/GiB" { 2 } else { 1 };
        let figure = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"));
        let (min, max) = (self.samples.iter().copied().reduce(f64::min), self.samples.iter().copied().reduce(f64::max));
        let aim = match self.aim {
            Aim::AtMost(most) => format!("<= {most}"),
            Aim::AtLeast(least) => format!(">= {least}"),
            Aim::None => "-".to_owned(),
        };
        let met = match (self.aim, self.is_met()) {
            (Aim::None, true) => "",
            (_, true) => "met",
            (_, false) => "NOT MET",
        };
        let against = self.failure.as_ref().unwrap_or(&self.against);
        format!(
            "{:<52} {:>9} {:>9} {:>9} {:<6} {:>4}  {:<9} {:<8} {}",
            self.name,
            figure(self.value()),
            figure(min),
            figure(max),
            self.unit,
            self.samples.len(),
            aim,
            met,
            against
        )
    }
}

/// The middle of `samples`; of an even number the mean of both in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 { Some(*upper) } else { Some((sorted.get(sorted.len() / 2 - 1)? + upper) / 2.0) }
}

/// The differences of runs that were made in turn.
pub fn differences(with: &[f64], without: &[f64]) -> Vec<f64> {
    with.iter().zip(without).map(|(with, without)| with - without).collect()
}

/// Prints the table and writes `target/bench/<name>.json`.
pub fn report(name: &str, rows: &[Row]) -> Result<()> {
    println!(
        "{:<52} {:>9} {:>9} {:>9} {:<6} {:>4}  {:<9} {:<8} against",
        "figure", "median", "min", "max", "unit", "runs", "aim", "met"
    );
    for row in rows {
        println!("{}", row.line());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench").join(format!("{name}.json"));
    fs::create_dir_all(path.parent().context("no parent")?)?;
    let document = json!({ "rows": rows.iter().map(Row::json).collect::<Vec<_>>() });
    fs::write(&path, format!("{document:#}\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let row = Row::failed("it", "ms", Aim::AtMost(5.0), "no cluster").json();
        assert_eq!(row["met"], json!(false));
        assert_eq!(row["reason"], json!("no cluster"));
        assert_eq!(Row::new("it", "ms", vec![4.0, 6.0, 5.0], "nothing", Aim::AtMost(5.0)).json()["met"], json!(true));
        assert_eq!(Row::new("it", "x", vec![0.9], "cp", Aim::AtLeast(1.0)).json()["met"], json!(false));
    }
}
