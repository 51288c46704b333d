//! What quantized matrices weigh in memory once a CPU device has packed them for its kernels. It must not know how they
//! are packed; the device's layout is checked against these sizes.

use crate::Format;

/// Rows that are packed together.
const ROWS: u64 = 16;

/// Bytes of a packed matrix `[rows, cols]`: whole groups of 16 rows and whole superblocks of 64 or 256 columns.
///
/// `None` for formats that stay as in the file, for columns that are no whole number of blocks, and on overflow.
pub fn packed_bytes(format: Format, rows: usize, cols: usize) -> Option<u64> {
    let (columns, bytes) = superblock(format)?;
    format.row_bytes(cols)?;
    let groups = (rows as u64).div_ceil(ROWS);
    groups.checked_mul((cols as u64).div_ceil(columns))?.checked_mul(ROWS * bytes)
}

/// Columns of a superblock, and its bytes per row. Formats whose scales are unpacked from 6 bits to bytes grow by them.
const fn superblock(format: Format) -> Option<(u64, u64)> {
    Some(match format {
        Format::Q4_0 | Format::IQ4NL => (64, 36),
        Format::Q4_1 => (64, 40),
        Format::Q5_0 => (64, 44),
        Format::Q5_1 => (64, 48),
        Format::Q8_0 => (64, 68),
        Format::MXFP4 => (64, 34),
        Format::Q2K => (256, 84),
        Format::Q3K => (256, 114),
        Format::Q4K => (256, 148),
        Format::Q5K => (256, 180),
        Format::Q6K => (256, 210),
        Format::IQ4XS => (256, 138),
        _ => return None,
    })
}
