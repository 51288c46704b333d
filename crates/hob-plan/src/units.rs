//! Sizes as people write and read them. Owns parsing of `8G` or `50%` and printing of GiB; knows nothing else.

/// A size the user typed: absolute, or a share of the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    Bytes(u64),
    /// 0 < share <= 1.
    Share(f64),
}

impl Size {
    /// Reads `512M`, `8G`, `8GiB`, `1.5g`, `6000000000` or `50%`. Units are powers of 1024.
    ///
    /// # Errors
    /// A sentence that names what was typed and what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size; write for example 8G, 512M or 50%");
        let t = text.trim();
        if let Some(number) = t.strip_suffix('%') {
            let share = number.trim().parse::<f64>().map_err(|_| wrong())? / 100.0;
            return if share > 0.0 && share <= 1.0 { Ok(Self::Share(share)) } else { Err(wrong()) };
        }
        let split = t.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(t.len());
        let (number, unit) = t.split_at(split);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(wrong()),
        };
        let number = number.trim().parse::<f64>().map_err(|_| wrong())?;
        let bytes = number * factor as f64;
        if bytes.is_finite() && bytes >= 1.0 && bytes < u64::MAX as f64 {
            Ok(Self::Bytes(bytes as u64))
        } else {
            Err(wrong())
        }
    }

    /// The size in bytes on a machine with `whole` bytes of memory.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (whole as f64 * share) as u64,
        }
    }
}

/// `1.25 GiB`, `87.3 MiB`, `512 B`: three significant figures, powers of 1024.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", show_figures(value), UNITS[unit])
}

/// Three significant figures: `0.123`, `1.23`, `12.3`, `123`, `1234`.
pub fn show_figures(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// `1234567` as `1,234,567`.
pub fn show_count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_people_type() {
        for (text, want) in [
            ("8G", Size::Bytes(8 << 30)),
            ("8 GiB", Size::Bytes(8 << 30)),
            ("512m", Size::Bytes(512 << 20)),
            ("1.5g", Size::Bytes(3 << 29)),
            ("6000000000", Size::Bytes(6_000_000_000)),
            ("50%", Size::Share(0.5)),
        ] {
            assert_eq!(Size::parse(text), Ok(want), "{text}");
        }
        assert_eq!(Size::Share(0.5).of(10), 5);
    }

    #[test]
    fn sizes_nobody_means() {
        for text in ["", "G", "-1G", "8X", "0", "0%", "120%", "nan", "1e300G", "8GG", "NaNg", "inf"] {
            let error = Size::parse(text).expect_err(text);
            assert!(error.contains("8G"), "{text}: {error}");
        }
    }

    #[test]
    fn printing_keeps_three_figures() {
        assert_eq!(show_bytes(512), "512 B");
        assert_eq!(show_bytes(1536), "1.50 KiB");
        assert_eq!(show_bytes(1023 * 1024), "0.999 MiB");
        assert_eq!(show_bytes(5 << 30), "5.00 GiB");
        assert_eq!(show_bytes(u64::MAX), "16384 PiB");
        assert_eq!(show_figures(0.0), "0.00");
        assert_eq!(show_figures(9.999), "10.0");
        assert_eq!(show_count(0), "0");
        assert_eq!(show_count(1_234_567), "1,234,567");
        assert_eq!(show_count(123), "123");
    }
}
