//! Amounts of CPU and memory as Kubernetes writes them, read far enough to compare two of them.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANOS: u128 = 1_000_000_000;
const NANOS_PER_MILLI: u128 = 1_000_000;

/// An amount that is more than or equal to nothing. Compared by what it amounts to, shown as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Quantity {
    text: String,
    /// Billionths, the finest that Kubernetes keeps.
    nanos: u128,
}

impl Quantity {
    /// Whether it is nothing, which Kubernetes takes for "no limit".
    pub(crate) fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// As it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Reads an amount of CPU: whole thousandths of a core.
    pub(crate) fn cpu(text: &str) -> Result<Self, String> {
        let quantity: Self = text.parse()?;
        if quantity.nanos.is_multiple_of(NANOS_PER_MILLI) {
            Ok(quantity)
        } else {
            Err(format!("{text:?} is finer than 1m, a thousandth of a core"))
        }
    }

    /// Reads an amount of memory: whole bytes, so that `64m`, which is less than a byte, does not pass for `64M`.
    pub(crate) fn memory(text: &str) -> Result<Self, String> {
        let quantity: Self = text.parse()?;
        if quantity.nanos.is_multiple_of(NANOS) {
            Ok(quantity)
        } else {
            Err(format!(
                "{text:?} is not a whole number of bytes; write it like 64Mi"
            ))
        }
    }
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        nanos(text)
            .map(|nanos| Self {
                text: text.to_owned(),
                nanos,
            })
            .ok_or_else(|| format!("{text:?} is not an amount; write it like 100m, 0.5 or 64Mi"))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// `None` for what is no amount, is less than nothing, is finer than a billionth, or has more digits than anything has.
fn nanos(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    if !number.contains(|c: char| c.is_ascii_digit()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = if digits.is_empty() {
        0
    } else {
        digits.parse().ok()?
    };
    let scaled = digits.checked_mul(unit(suffix)?)?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    scaled.is_multiple_of(divisor).then_some(scaled / divisor)
}

/// A suffix in billionths.
fn unit(suffix: &str) -> Option<u128> {
    let binary = |power| 1024_u128.pow(power) * NANOS;
    Some(match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => NANOS_PER_MILLI,
        "" => NANOS,
        "k" => NANOS * 1_000,
        "M" => NANOS * 1_000_000,
        "G" => NANOS * 1_000_000_000,
        "T" => NANOS * 1_000_000_000_000,
        "P" => NANOS * 1_000_000_000_000_000,
        "E" => NANOS * 1_000_000_000_000_000_000,
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = u32::try_from(exponent.checked_add(9)?).ok()?;
            10_u128.checked_pow(power)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_what_it_amounts_to_and_not_how_it_is_written() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("+2", "2"),
            ("1.50", "1500m"),
            ("1Ki", "1024"),
            ("64Mi", "67108864"),
            ("1.5Gi", "1536Mi"),
            ("12e6", "12M"),
            ("12E6", "12M"),
            ("5e-3", "5m"),
            ("1E", "1000P"),
            ("0", "0.000"),
            ("0.1Ki", "102.4"),
        ] {
            let (one, other): (Quantity, Quantity) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one, other, "{one} {other}");
        }
        let amount = |text: &str| text.parse::<Quantity>().unwrap();
        assert!(amount("100m") < amount("1") && amount("1G") < amount("1Gi"));
        assert!(amount("0m").is_zero() && !amount("1n").is_zero());
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "",
            ".",
            "-1",
            "1 ",
            " 1",
            "1.2.3",
            "Mi",
            "1mi",
            "1MI",
            "1K",
            "1e",
            "1ee3",
            "1e99",
            "0.1n",
            "\u{661}",
            "99999999999999999999999999999999999999999",
            "1e-10",
            "$(X)",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn memory_is_whole_bytes_and_cpu_whole_thousandths() {
        assert!(Quantity::memory("64Mi").is_ok() && Quantity::memory("64m").is_err());
        assert!(Quantity::cpu("1m").is_ok() && Quantity::cpu("1u").is_err());
    }
}
