//! Sizes with units.

use std::fmt;
use std::str::FromStr;

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::error::{Fault, SpecError};
use crate::lex::Text;
use crate::nearest::nearest;

/// A number of bytes, at least one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Size(u64);

/// Every unit that is understood, and its bytes. Of two units of the same size the one to print comes first.
const UNITS: [(&str, u64); 15] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("P", 1 << 50),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// More digits than any size needs, few enough for the arithmetic in 128 bits.
const FRACTION_DIGITS_MAX: usize = 18;

impl Size {
    /// A size of `bytes`, unless that is 0.
    pub fn from_bytes(bytes: u64) -> Option<Size> {
        (bytes > 0).then_some(Size(bytes))
    }

    /// `count` times 1024^2 bytes, at least one of them, at most what fits.
    pub const fn from_mib(count: u64) -> Size {
        Size::from_units(count, 1 << 20)
    }

    /// `count` times 1024^3 bytes, at least one of them, at most what fits.
    pub const fn from_gib(count: u64) -> Size {
        Size::from_units(count, 1 << 30)
    }

    const fn from_units(count: u64, unit: u64) -> Size {
        match count {
            0 => Size(unit),
            count => Size(count.saturating_mul(unit)),
        }
    }

    /// The bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    pub(crate) fn parse(text: &Text) -> Result<Size, Fault> {
        parse(&text.plain()).map_err(|message| Fault::new(Code::BadSize, &text.span, message))
    }
}

fn parse(text: &str) -> Result<Size, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let is_number = !whole.is_empty() && fraction.is_none_or(|rest| !rest.is_empty() && !rest.contains('.'));
    if !is_number {
        return Err(format!("\"{text}\" is not a size; a size is a number with a unit, like 4TiB"));
    }
    if unit.is_empty() {
        return Err(format!("\"{text}\" has no unit; say {text}GiB or {text}TiB, for instance"));
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(unknown_unit(unit));
    };
    let too_large = || format!("\"{text}\" is more than {} bytes", u64::MAX);
    let fraction = fraction.unwrap_or("0");
    if fraction.len() > FRACTION_DIGITS_MAX {
        return Err(format!("\"{text}\" has more than {FRACTION_DIGITS_MAX} digits after the point"));
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let fraction_value: u128 = fraction.parse().map_err(|_| too_large())?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let part = fraction_value * u128::from(*factor) / scale;
    let bytes = u128::from(whole) * u128::from(*factor) + part;
    let bytes = u64::try_from(bytes).map_err(|_| too_large())?;
    Size::from_bytes(bytes).ok_or_else(|| format!("\"{text}\" is no bytes at all"))
}

fn unknown_unit(unit: &str) -> String {
    let hint = if unit.ends_with(',') {
        "; in a directive with white space, items are separated by white space only".to_owned()
    } else {
        nearest(unit, UNITS.iter().map(|(name, _)| *name))
            .map_or(String::new(), |near| format!("; did you mean \"{near}\"?"))
    };
    format!(
        "unknown unit \"{unit}\"{hint}{}",
        if hint.is_empty() { "; units are K to P, KiB to PiB, KB to PB" } else { "" }
    )
}

impl fmt::Display for Size {
    /// The largest unit that gives a whole number, else KB with three digits after the point: always exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, factor)| self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}.{:03}KB", self.0 / 1000, self.0 % 1000),
        }
    }
}

impl FromStr for Size {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Size, SpecError> {
        parse(text).map_err(|message| SpecError::new(Code::BadSize, message))
    }
}

impl TryFrom<u64> for Size {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Size, String> {
        Size::from_bytes(bytes).ok_or_else(|| "a size of 0 bytes".to_owned())
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> u64 {
        size.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [
            ("4TiB", 4_398_046_511_104),
            ("4T", 4_398_046_511_104),
            ("1K", 1024),
            ("1KB", 1000),
            ("2PB", 2_000_000_000_000_000),
            ("1.5GiB", 1_610_612_736),
            ("0.5K", 512),
            ("0.001KB", 1),
            ("16383PiB", 16_383 << 50),
        ] {
            assert_eq!(text.parse::<Size>().map(Size::bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refusals() {
        for text in [
            "",
            "4",
            "4.",
            ".5T",
            "4.5.6T",
            "-4T",
            "4tib",
            "4 T",
            "4TiBs",
            "T",
            "0T",
            "0.0001KB",
            "16384PiB",
            "99999999999999999999T",
            "1.0000000000000000000T",
            "4B",
            "+4T",
            "4e3T",
            "٤T",
        ] {
            assert_eq!(text.parse::<Size>().map_err(|error| error.code), Err(Code::BadSize), "{text}");
        }
        let error = "4tib".parse::<Size>().unwrap_err();
        assert_eq!(error.message, "unknown unit \"tib\"; did you mean \"TiB\"?");
    }

    proptest! {
        #[test]
        fn print_then_parse_is_identity(bytes in 1_u64..) {
            let size = Size::from_bytes(bytes).unwrap();
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn exact_units_print_as_written(count in 1_u64..1000) {
            let size = Size::from_bytes(count << 40).unwrap();
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            prop_assert!(size.to_string().ends_with("iB"));
        }
    }
}
